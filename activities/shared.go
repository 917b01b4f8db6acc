package activities

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/workspace"
)

// A shared volume is a directory that several nodes reach: what is in it survives each of them. It is laid out as a node's
// disk is, with a file that says which volume it is:
//
//	<root>/holdfast-volume.json   the volume's random id, made once (MakeShared)
//	<root>/workspaces/, trash/    as below a node's data directory
//
// A mount point on which nothing is mounted has no such file, and another volume has another one: neither is ever written
// to, read, or taken for a volume that has lost what was on it (invariant 5). So the file is read again before every use,
// nothing above an instance's own directory is ever made by an agent, and a volume is made by a person.
const sharedIdentity = "holdfast-volume.json"

// volumeMark is the content of that file.
type volumeMark struct {
	ID   string    `json:"id"`
	Made time.Time `json:"made"`
}

// errVolume: the shared volume is not where it should be on this node. It passes: it is mounted again, or the work is done by
// another node.
var errVolume = errors.New("the shared volume is not usable on this node")

// MakeShared makes a shared volume of a directory that is there and has nothing in it, and returns its id. One that is a
// volume already stays as it is (created is false), also when another node makes it at the same moment.
func MakeShared(dir string) (id string, created bool, err error) {
	mark, err := readVolume(dir)
	if err == nil {
		return mark.ID, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", false, fmt.Errorf("looking at %s: %w", dir, err)
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == sharedIdentity: // another has made it in this moment
			mark, err := readVolume(dir)
			return mark.ID, false, err
		case name == "workspaces" || name == "trash", name == "lost+found", strings.HasPrefix(name, "."):
		default:
			return "", false, fmt.Errorf("%s has %q in it: a shared volume is made of a directory with nothing in it", dir, name)
		}
	}
	for _, name := range []string{"workspaces", "trash"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", false, fmt.Errorf("making a shared volume: %w", err)
		}
	}
	data, err := json.Marshal(volumeMark{ID: strings.ToLower(rand.Text()), Made: time.Now().UTC()})
	if err != nil {
		return "", false, fmt.Errorf("making a shared volume: %w", err)
	}
	// Whole under another name first, and then linked: the name is there with all its content, or not at all, and is never
	// given to a second one.
	temporary, err := os.CreateTemp(dir, "."+sharedIdentity+"-")
	if err != nil {
		return "", false, fmt.Errorf("making a shared volume: %w", err)
	}
	defer func() { _ = os.Remove(temporary.Name()) }() // its name alone: the file has another by then
	_, err = temporary.Write(data)
	if err := errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return "", false, fmt.Errorf("making a shared volume: %w", err)
	}
	switch err := os.Link(temporary.Name(), filepath.Join(dir, sharedIdentity)); {
	case errors.Is(err, fs.ErrExist):
	case err != nil:
		return "", false, fmt.Errorf("making a shared volume: %w", err)
	default:
		created = true
	}
	if err := syncDir(dir); err != nil {
		return "", false, err
	}
	mark, err = readVolume(dir)
	return mark.ID, created && err == nil, err
}

// readVolume reads which volume a directory is; fs.ErrNotExist when it is none.
func readVolume(dir string) (volumeMark, error) {
	var mark volumeMark
	data, err := os.ReadFile(filepath.Join(dir, sharedIdentity))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mark, fmt.Errorf("%s has no %s, so that nothing, or something else, is mounted there: %w", dir, sharedIdentity, err)
	case err != nil:
		return mark, fmt.Errorf("reading which shared volume %s is: %w", dir, err)
	}
	if json.Unmarshal(data, &mark) != nil || !workspace.ValidVolumeID(mark.ID) {
		return volumeMark{}, fmt.Errorf("reading which shared volume %s is: %s is damaged", dir, sharedIdentity)
	}
	return mark, nil
}

// shared is what a Volumes of a shared root knows beside its root.
type shared struct {
	node string // whose agent this is
	key  string // the node's public key: another machine can come to have its name
	want string // the id that the volume must have; empty: any
}

// OpenShared gives an agent, by its node's name and public key, the shared volume that is, or will be, mounted on dir. Nothing is made there, and nothing is wrong
// with one that is not mounted yet: it is looked for before every use.
func OpenShared(dir, node, key string) *Volumes {
	return &Volumes{root: dir, shared: &shared{node: node, key: key}, busy: map[string]*turn{}}
}

// VolumeID is which shared volume is there now (invariant 5).
func (v *Volumes) VolumeID() (string, error) {
	mark, err := readVolume(v.root)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errVolume, withoutType(err))
	}
	return mark.ID, nil
}

// withoutType keeps that a file is missing from being taken for content that is missing.
func withoutType(err error) error { return errors.New(err.Error()) }

// check reads again which volume is there; a node's own disk is always the same (invariant 5).
func (v *Volumes) check() error {
	if v.shared == nil {
		return nil
	}
	id, err := v.VolumeID()
	switch {
	case err != nil:
		return err
	case v.shared.want != "" && id != v.shared.want:
		return fmt.Errorf("%w: %s is shared volume %s, and the content is on %s", errVolume, v.root, id, v.shared.want)
	}
	return nil
}

// of is the same directory as long as it is the given volume.
func (v *Volumes) of(id string) *Volumes {
	return &Volumes{root: v.root, shared: &shared{node: v.shared.node, key: v.shared.key, want: id}}
}

// mine says whether this node holds the directory: several nodes' agents look at one shared volume.
func (v *Volumes) mine(found identity) bool {
	return v.shared == nil || found.Node == v.shared.node && found.Key == v.shared.key
}

// on is where an instance's content is on this node: on its own disk, or on the shared volume that the workflow names, which
// must be there now (invariant 5).
func (n *Node) on(volume string) (*Volumes, error) {
	switch {
	case volume == "":
		return n.Volumes, nil
	case n.Shared == nil:
		return nil, fmt.Errorf("%w: node %s has none, and the content is on shared volume %s", errVolume, n.Name, volume)
	}
	found := n.Shared.of(volume)
	return found, found.check()
}

// onOrElsewhere is on for the steps of a start, which another node can make.
func (n *Node) onOrElsewhere(volume string) (*Volumes, error) {
	found, err := n.on(volume)
	if errors.Is(err, errVolume) {
		return nil, permanent(workspace.ErrorVolumeMissing, err)
	}
	return found, err
}
