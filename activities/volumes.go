package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"holdfast/workspace"
)

// Volumes is a node's disk, or a shared volume (shared.go): one directory for each instance, named by workspace id and token
// (invariant 6).
//
//	<root>/workspaces/<id>.<token>/identity.json   who the content belongs to
//	<root>/workspaces/<id>.<token>/content/        what the instance sees as /workspace
//	<root>/workspaces/<id>.<token>/state           what the last backup or restore knew of the content; losing it costs time only
//	<root>/trash/                                  what is being removed
type Volumes struct {
	root string
	// shared is set for a volume that several nodes reach.
	shared *shared
	mutex  sync.Mutex
	busy   map[string]*turn
}

// turn is one operation's time with a workspace.
type turn struct {
	over   chan struct{} // closed when it has ended
	wanted chan struct{} // gets a value when another operation begins to wait for it
}

func newTurn() *turn { return &turn{over: make(chan struct{}), wanted: make(chan struct{}, 1)} }

// contentState says how far an instance's directory has come.
type contentState string

const (
	contentPreparing contentState = "preparing" // the content is not, or not surely, whole
	contentPrepared  contentState = "prepared"  // whole, and nothing has ever run on it
	contentStarted   contentState = "started"   // something may have written to it: only a backup lets it go
)

// identity is the file beside the content that says whose it is (invariant 5).
type identity struct {
	WorkspaceID string       `json:"workspace_id"`
	Name        string       `json:"name"`
	Token       uint64       `json:"token"`
	State       contentState `json:"state"`
	Base        string       `json:"base,omitempty"`
	Time        time.Time    `json:"time"`
	// Node and Key are whose instance it is, on a shared volume: the node's name and its public key.
	Node string `json:"node,omitempty"`
	Key  string `json:"key,omitempty"`
}

// Errors of a node's disk.
var (
	errNoContent = errors.New("the node holds no such content")
	errForeign   = errors.New("the directory belongs to another workspace or instance")
)

// OpenVolumes makes the directories below root, which must be on one file system.
func OpenVolumes(root string) (*Volumes, error) {
	for _, dir := range []string{"workspaces", "trash"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("making the node's data directory: %w; choose another with --data-dir, or make it writable", err)
		}
	}
	return &Volumes{root: root, busy: map[string]*turn{}}, nil
}

// lock waits until no other operation on the workspace is under way on this node (invariant 6), and lets the one that is
// know that it is waited for.
func (v *Volumes) lock(ctx context.Context, id string, mine *turn) (unlock func(), err error) {
	for {
		v.mutex.Lock()
		other := v.busy[id]
		if other == nil {
			v.busy[id] = mine
			v.mutex.Unlock()
			return func() {
				v.mutex.Lock()
				delete(v.busy, id)
				v.mutex.Unlock()
				close(mine.over)
			}, nil
		}
		v.mutex.Unlock()
		select {
		case other.wanted <- struct{}{}:
		default:
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another operation on %s: %w", id, ctx.Err())
		}
	}
}

func (v *Volumes) dir(id string, token uint64) string {
	return filepath.Join(v.root, "workspaces", workspace.InstanceName(id, token))
}

func (v *Volumes) content(id string, token uint64) string {
	return filepath.Join(v.dir(id, token), "content")
}

// state is the file in which backups and restores of an instance's content remember what it was.
func (v *Volumes) state(id string, token uint64) string {
	return filepath.Join(v.dir(id, token), "state")
}

// identify reads the identity of an instance's directory; errNoContent when there is none, errForeign when it names
// another workspace or token, or, on a shared volume, another node (invariant 5).
func (v *Volumes) identify(id string, token uint64) (identity, error) {
	found, err := v.known(id, token)
	if err == nil && !v.mine(found) {
		return found, fmt.Errorf("%s is held by node %s, of the key %.16s…: %w", workspace.InstanceName(id, token), found.Node, found.Key, errForeign)
	}
	return found, err
}

// known is identify whichever node holds it.
func (v *Volumes) known(id string, token uint64) (identity, error) {
	if err := v.check(); err != nil {
		return identity{}, err
	}
	found, err := v.readIdentity(v.dir(id, token))
	if err != nil {
		return found, err
	}
	if found.WorkspaceID != id || found.Token != token {
		return found, fmt.Errorf("%s is marked as %s: %w", workspace.InstanceName(id, token), workspace.InstanceName(found.WorkspaceID, found.Token), errForeign)
	}
	return found, nil
}

func (v *Volumes) readIdentity(dir string) (identity, error) {
	var found identity
	data, err := os.ReadFile(filepath.Join(dir, "identity.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return found, fmt.Errorf("%s: %w", filepath.Base(dir), errNoContent)
	case err != nil:
		return found, fmt.Errorf("reading who %s belongs to: %w", filepath.Base(dir), err)
	}
	if err := json.Unmarshal(data, &found); err != nil {
		return found, fmt.Errorf("reading who %s belongs to: %w: %w", filepath.Base(dir), errForeign, err)
	}
	return found, nil
}

// usable returns the content directory of an instance after the checks of invariant 5: its identity matches, its
// content was whole once, and it is a directory on the same file system as its identity (a mount that is missing or
// foreign would not be).
func (v *Volumes) usable(id string, token uint64) (string, identity, error) {
	found, err := v.identify(id, token)
	if err != nil {
		return "", found, err
	}
	return v.whole(id, token, found)
}

// readable is usable for who only reads, whichever node holds it: that of a node that is lost can be fetched through another.
func (v *Volumes) readable(id string, token uint64) (string, error) {
	found, err := v.known(id, token)
	if err != nil {
		return "", err
	}
	content, _, err := v.whole(id, token, found)
	return content, err
}

func (v *Volumes) whole(id string, token uint64, found identity) (string, identity, error) {
	if found.State == contentPreparing {
		return "", found, fmt.Errorf("%s was never whole: %w", workspace.InstanceName(id, token), errNoContent)
	}
	content := v.content(id, token)
	var beside, inside unix.Stat_t
	if err := unix.Lstat(v.dir(id, token), &beside); err != nil {
		return "", found, fmt.Errorf("looking at %s: %w", workspace.InstanceName(id, token), err)
	}
	err := unix.Lstat(content, &inside)
	if errors.Is(err, fs.ErrNotExist) || err == nil && inside.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "", found, fmt.Errorf("%s has lost its content directory: %w", workspace.InstanceName(id, token), errNoContent)
	}
	if err != nil {
		return "", found, fmt.Errorf("looking at the content of %s: %w", workspace.InstanceName(id, token), err)
	}
	if beside.Dev != inside.Dev {
		return "", found, fmt.Errorf("the content of %s is on another file system than its identity: %w", workspace.InstanceName(id, token), errForeign)
	}
	return content, found, nil
}

// mark writes an identity, atomically and durably.
func (v *Volumes) mark(mark identity) error {
	if err := v.check(); err != nil {
		return err
	}
	if v.shared != nil {
		mark.Node, mark.Key = v.shared.node, v.shared.key
	}
	dir := v.dir(mark.WorkspaceID, mark.Token)
	data, err := json.Marshal(mark)
	if err != nil {
		return fmt.Errorf("encoding an identity: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, "identity.json"), data, 0o600); err != nil {
		return fmt.Errorf("marking %s as %s: %w", filepath.Base(dir), mark.State, err)
	}
	return syncDir(dir)
}

// adopt gives the content of an older token to a new one, and on a shared volume to this node: a rename, then the new identity.
// Repeating it after a crash between the two finishes it. Of several that want the same content one gets it: the name that
// they rename is there once.
func (v *Volumes) adopt(id, name string, from, to uint64) error {
	if err := v.check(); err != nil {
		return err
	}
	take := func(found identity) error {
		return v.mark(identity{WorkspaceID: id, Name: name, Token: to, State: found.State, Base: found.Base, Time: time.Now()})
	}
	switch found, err := v.readIdentity(v.dir(id, to)); {
	case err == nil && found.WorkspaceID == id && found.Token == to && v.mine(found):
		return nil
	case err == nil && found.WorkspaceID == id && found.Token < to:
		return take(found)
	case err == nil:
		return fmt.Errorf("adopting the content of %s: %w", id, errForeign)
	case !errors.Is(err, errNoContent):
		return err
	}
	// An attempt between may have adopted it already: the newest one below the new token is the content.
	newest, err := v.newest(id, to)
	if err != nil {
		return err
	}
	if newest < from {
		// A client of a file server may list a directory as it was a while ago, and finds a name all the same.
		if _, err := os.Lstat(v.dir(id, from)); err == nil {
			newest = from
		}
	}
	if newest < from {
		return fmt.Errorf("adopting the content of %s: %w", workspace.InstanceName(id, from), errNoContent)
	}
	found, err := v.adoptable(id, newest)
	if err != nil {
		return fmt.Errorf("adopting the content of %s: %w", workspace.InstanceName(id, newest), err)
	}
	if err := os.Rename(v.dir(id, newest), v.dir(id, to)); err != nil {
		return fmt.Errorf("adopting the content of %s: %w", workspace.InstanceName(id, newest), err)
	}
	if err := syncDir(filepath.Join(v.root, "workspaces")); err != nil {
		return err
	}
	return take(found)
}

// adoptable is the identity of content that another token may take over. One that is behind its directory's name is of an
// adoption that was cut between its two steps, and was then gone on without: its directory's name is what counts.
func (v *Volumes) adoptable(id string, token uint64) (identity, error) {
	found, err := v.readIdentity(v.dir(id, token))
	switch {
	case err != nil:
		return found, err
	case found.WorkspaceID != id || found.Token > token:
		return found, fmt.Errorf("%s is marked as %s: %w", workspace.InstanceName(id, token), workspace.InstanceName(found.WorkspaceID, found.Token), errForeign)
	}
	_, found, err = v.whole(id, token, found)
	return found, err
}

// newest is the highest token below limit of which the node has a directory, 0 when none.
func (v *Volumes) newest(id string, limit uint64) (uint64, error) {
	entries, err := os.ReadDir(filepath.Join(v.root, "workspaces"))
	if err != nil {
		return 0, fmt.Errorf("listing the node's content: %w", err)
	}
	var newest uint64
	for _, entry := range entries {
		if other, token, err := workspace.ParseInstanceName(entry.Name()); err == nil && other == id && token < limit {
			newest = max(newest, token)
		}
	}
	return newest, nil
}

// trash renames exactly this instance's directory out of the way, so that a late duplicate of the removal finds
// nothing (invariant 6), and then deletes it. It is safe only after invariant 1 was checked.
func (v *Volumes) trash(ctx context.Context, id string, token uint64) error {
	if err := v.check(); err != nil { // invariant 5: what is not mounted is not gone
		return err
	}
	name := workspace.InstanceName(id, token)
	where := filepath.Join(v.root, "trash", fmt.Sprintf("%s.%d", name, time.Now().UnixNano()))
	switch err := os.Rename(v.dir(id, token), where); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("moving %s to the trash: %w", name, err)
	}
	if err := syncDir(filepath.Join(v.root, "workspaces")); err != nil {
		return err
	}
	return removeTree(ctx, where)
}

// EmptyTrash deletes what a removal that was cut had moved to the trash. On a shared volume it may be another node's, which is
// removing it at the same moment: what is in the trash is nobody's.
func (v *Volumes) EmptyTrash(ctx context.Context) error {
	if err := v.check(); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(v.root, "trash"))
	if err != nil {
		return fmt.Errorf("listing the trash: %w", err)
	}
	for _, entry := range entries {
		if err := removeTree(ctx, filepath.Join(v.root, "trash", entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes a directory whatever its modes are.
func removeTree(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// A directory without its owner's write bit keeps an agent that is not root from emptying it.
	walk := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if entry != nil && entry.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return err
	})
	if walk != nil && !errors.Is(walk, fs.ErrPermission) && !errors.Is(walk, fs.ErrNotExist) {
		return fmt.Errorf("emptying the trash: %w", walk)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("emptying the trash: %w", err)
	}
	return nil
}

// Unknown lists directories that are no instance's: they are kept and named (invariant 1).
func (v *Volumes) Unknown() ([]string, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(v.root, "workspaces"))
	if err != nil {
		return nil, fmt.Errorf("listing the node's content: %w", err)
	}
	var unknown []string
	for _, entry := range entries {
		id, token, err := workspace.ParseInstanceName(entry.Name())
		if err == nil {
			_, err = v.known(id, token)
		}
		if err != nil && !strings.HasPrefix(entry.Name(), ".") {
			unknown = append(unknown, entry.Name())
		}
	}
	return unknown, nil
}

// Held describes every instance whose content is on the node, and of a shared volume those that this node holds: what its workspace's workflow may have forgotten is found
// here (invariant 1: content that nobody knows is kept and listed).
func (v *Volumes) Held() ([]string, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(v.root, "workspaces"))
	if err != nil {
		return nil, fmt.Errorf("listing the node's content: %w", err)
	}
	var held []string
	for _, entry := range entries {
		id, token, err := workspace.ParseInstanceName(entry.Name())
		if err != nil {
			continue
		}
		if found, err := v.identify(id, token); err == nil {
			held = append(held, fmt.Sprintf("%s: workspace %s, %s since %s", entry.Name(), found.Name, found.State, found.Time.UTC().Format(time.RFC3339)))
		}
	}
	return held, nil
}

// free is how many bytes the node's disk has left for content.
func (v *Volumes) free() (int64, error) {
	if err := v.check(); err != nil {
		return 0, err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(v.root, &stat); err != nil {
		return 0, fmt.Errorf("asking for the disk's free room: %w", err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

func syncDir(dir string) error {
	handle, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing a directory: %w", err)
	}
	defer handle.Close()
	if err := handle.Sync(); err != nil {
		return fmt.Errorf("syncing a directory: %w", err)
	}
	return nil
}
