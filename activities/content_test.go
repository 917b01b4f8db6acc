package activities

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/engine"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

func (r *rig) state(token uint64) contentState {
	r.t.Helper()
	found, err := r.node.Volumes.identify(id, token)
	require.NoError(r.t, err)
	return found.State
}

func (r *rig) read(token uint64, name string) string {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.content(token), name))
	require.NoError(r.t, err)
	return string(data)
}

// A workspace that moved has new inodes and times. Its first backup on the new node opens none of its files.
func TestMovedContentIsNotReadAgain(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	r.record(2, input.Snapshot)
	target := r.target(2)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target, Snapshot: input.Snapshot})
	require.NoError(t, err)
	opened := func() string {
		watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		require.NoError(t, err)
		defer unix.Close(watch)
		require.NoError(t, filepath.WalkDir(r.content(2), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				_, err = unix.InotifyAddWatch(watch, path, unix.IN_OPEN)
			}
			return err
		}))
		_, err = run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
		require.NoError(t, err)
		events := make([]byte, 1<<16)
		n, err := unix.Read(watch, events)
		if err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			return ""
		}
		return fmt.Sprintf("%d bytes of events", n)
	}
	require.Empty(t, opened())
	r.write(2, "notes.txt", "more")
	require.NotEmpty(t, opened(), "the one that was changed is read")
}

func TestPrepareEmpty(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	require.Equal(t, contentPrepared, r.state(1))
	entries, err := os.ReadDir(r.content(1))
	require.NoError(t, err)
	require.Empty(t, entries)

	// invariant 8: again is already done, also when something has run on it since.
	r.write(1, "file", "kept")
	_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target})
	require.NoError(t, err)
	require.Equal(t, "kept", r.read(1, "file"))
}

// A4, invariant 5: content is restored whole and verified, or there is none.
func TestPrepareRestores(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	r.record(2, input.Snapshot)
	prepare := workspace.PrepareContentInput{Target: r.target(2), Snapshot: input.Snapshot}

	// The first attempt fails half-way: nothing of it is taken for content.
	data := func(key string) bool { return bytes.Contains([]byte(key), []byte("/data/")) }
	for _, store := range r.stores {
		store.Inject(faulty.Rule{Op: faulty.Get, Match: data, Kind: faulty.Error, Err: storage.ErrPermission})
	}
	_, err := run(r, r.node.PrepareContent, prepare)
	require.Error(t, err)
	require.NoDirExists(t, r.content(2))
	require.Equal(t, contentPreparing, r.state(2))
	_, _, err = r.node.Volumes.usable(id, 2)
	require.ErrorIs(t, err, errNoContent)
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: r.target(2)})
	typed(t, err, workspace.ErrorContentMissing) // A10: it never starts without what it expects

	// The remains of that attempt are not in the way of the next, and neither store's fault is.
	r.stores[0].Clear()
	require.NoError(t, os.WriteFile(filepath.Join(r.node.Volumes.dir(id, 2), "left over"), nil, 0o600))
	result, err := run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.Equal(t, input.Snapshot, result.Restored.Snapshot)
	require.Equal(t, "what a person wrote\n", r.read(2, "notes.txt"))
	require.NoFileExists(t, filepath.Join(r.node.Volumes.dir(id, 2), "left over"))

	r.write(2, "notes.txt", "more")
	result, err = run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.Nil(t, result.Restored)
	require.Equal(t, "more", r.read(2, "notes.txt"), "what is in place is not restored over")
}

// DESIGN 8, invariant 8: a restore that is cut goes on in the next attempt with what it has verified; nothing of it is
// taken for content before it is whole, and all of it goes when the operation is given up.
func TestPrepareGoesOnWithACutRestore(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.started(1)
	for i := range 24 {
		large := make([]byte, 2<<20)
		rand.New(rand.NewSource(int64(i))).Read(large)
		r.write(1, fmt.Sprintf("large%d", i), string(large))
	}
	input := r.stopped(1)
	r.record(2, input.Snapshot)
	prepare := workspace.PrepareContentInput{Target: r.target(2), Snapshot: input.Snapshot}
	var mutex sync.Mutex
	packs := 0 // reads of packs in one attempt
	// watch counts the reads of packs. With a target they fail as soon as something was restored to it: what a restore
	// reads ahead is less than half of all.
	watch := func(target string) {
		packs = 0
		for _, store := range r.stores {
			store.Clear()
			store.Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Error, Err: storage.ErrPermission, Match: func(key string) bool {
				if !strings.Contains(key, "/data/") {
					return false
				}
				mutex.Lock()
				packs++
				mutex.Unlock()
				return target != "" && occupied(target) > 2<<20
			}})
		}
	}
	watch(r.content(2))
	_, err := run(r, r.node.PrepareContent, prepare)
	require.Error(t, err)
	require.NoDirExists(t, r.content(2))
	require.Equal(t, contentPreparing, r.state(2))
	left, err := snapshot.Unfinished(r.content(2))
	require.NoError(t, err)
	require.Len(t, left, 1)
	held := occupied(r.content(2))
	require.Greater(t, held, int64(2<<20), "the cut came before anything was restored: the test shows nothing")
	_, _, err = r.node.Volumes.usable(id, 2)
	require.ErrorIs(t, err, errNoContent)

	// What is not fetched again is not written anew either.
	before := inodes(t, left[0])
	watch("")
	result, err := run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.Equal(t, input.Snapshot, result.Restored.Snapshot)
	require.Equal(t, contentPrepared, r.state(2))
	after := inodes(t, r.content(2))
	same := 0
	for name, inode := range before {
		if after[name] == inode {
			same++
		}
	}
	require.Positive(t, same)
	for i := range 24 {
		want := make([]byte, 2<<20)
		rand.New(rand.NewSource(int64(i))).Read(want)
		require.True(t, r.read(2, fmt.Sprintf("large%d", i)) == string(want), i)
	}

	// The agent died between the rename and the mark: nothing is restored again.
	require.NoError(t, r.node.Volumes.mark(identity{WorkspaceID: id, Name: "atlas", Token: 2, State: contentPreparing, Base: input.Snapshot}))
	watch("")
	_, err = run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.Zero(t, packs)
	require.Equal(t, contentPrepared, r.state(2))

	// Another base under this token is no reason to believe anything.
	watch("")
	require.NoError(t, r.node.Volumes.mark(identity{WorkspaceID: id, Name: "atlas", Token: 2, State: contentPreparing, Base: "another"}))
	_, err = run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.NotZero(t, packs, "it was not fetched again") // inode numbers say nothing: those of what was removed are free

	// Given up: the operation is undone, and nothing stays.
	r.record(3, input.Snapshot)
	watch(r.content(3))
	prepare.Target = r.target(3)
	_, err = run(r, r.node.PrepareContent, prepare)
	require.Error(t, err)
	require.DirExists(t, r.node.Volumes.dir(id, 3))
	require.NoError(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: r.target(3)}))
	require.NoDirExists(t, r.node.Volumes.dir(id, 3))
}

func inodes(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	found := map[string]uint64{}
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		found[entry.Name()] = info.Sys().(*syscall.Stat_t).Ino
	}
	return found
}

// invariant 5: content that was whole once and is not any more is never replaced without a word.
func TestPrepareDoesNotReplaceLostContent(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	require.NoError(t, os.Rename(r.content(1), r.content(1)+".aside"))
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target})
	typed(t, err, workspace.ErrorContentMissing)
	require.FileExists(t, filepath.Join(r.content(1)+".aside", "notes.txt"))
}

func TestPrepareAdopts(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.started(1)
	mine := "holdfast-" + workspace.InstanceName(id, 1)
	elsewhere := r.engine.add("node-2", id, 2, engine.StatusRunning)
	another := r.engine.add("node-1", otherID, 1, engine.StatusRunning)
	require.Equal(t, engine.StatusRunning, r.engine.status(mine))
	r.record(3, "")
	adopt := workspace.PrepareContentInput{Target: r.target(3), Adopt: 1}
	for range 2 {
		_, err := run(r, r.node.PrepareContent, adopt)
		require.NoError(t, err)
		require.Equal(t, "what a person wrote\n", r.read(3, "notes.txt"))
		require.Equal(t, contentStarted, r.state(3))
		require.Equal(t, []string{elsewhere, another}, r.engine.names(), "the older container is gone, and no other")
	}

	// A late duplicate of the older adoption neither takes the content nor ends what runs on it.
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: r.target(3)})
	require.NoError(t, err)
	_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(2), Adopt: 1})
	typed(t, err, workspace.ErrorContentMissing)
	require.Equal(t, engine.StatusRunning, r.engine.status("holdfast-"+workspace.InstanceName(id, 3)))
	require.Equal(t, "what a person wrote\n", r.read(3, "notes.txt"))
}

func TestPrepareAdoptsNothingForeign(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.started(1)
	foreign(t, r, 1)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(3), Adopt: 1})
	typed(t, err, workspace.ErrorContentForeign)
}

func foreign(t *testing.T, r *rig, token uint64) {
	t.Helper()
	data, err := json.Marshal(identity{WorkspaceID: otherID, Name: "other", Token: token, State: contentStarted})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(r.node.Volumes.dir(id, token), "identity.json"), data, 0o600))
}

// invariant 7: nothing new is begun with a lease that is suspect or gone.
func TestNewWorkNeedsALease(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	fresh := r.target(2)
	r.pass(6500 * time.Millisecond)
	require.ErrorIs(t, r.node.Lease.CheckNew(), ErrSuspect)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: fresh})
	transient(t, err)
	require.NoDirExists(t, r.content(2))
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target})
	transient(t, err)
	_, err = run(r, r.node.PrepareImage, workspace.PrepareImageInput{Target: target})
	transient(t, err)
	// Stopping and backing up need none.
	r.pass(time.Hour)
	require.NoError(t, r.halt(workspace.StopInstanceInput{Target: target}))
	_, err = run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
}

// A18: a node without room says so, and another one can be asked.
func TestNodeFull(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(1), SizeBytes: math.MaxInt64 / 2})
	typed(t, err, workspace.ErrorNodeFull)
	require.NoDirExists(t, r.node.Volumes.dir(id, 1))

	r.node.Reserve = math.MaxInt64 / 2
	_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(1)})
	typed(t, err, workspace.ErrorNodeFull)
	require.Equal(t, int64(defaultReserve), (&Node{}).reserve())
}

// A18: the disk that fills up in the middle is told apart from a store that is full.
func TestDiskFull(t *testing.T) {
	typed(t, classify(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), workspace.ErrorDiskFull)
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	for _, store := range r.stores {
		store.Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.Error, Err: storage.ErrNoSpace})
	}
	r.write(1, "more", "x")
	_, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "final"})
	typed(t, err, workspace.ErrorStoreFull)
	require.DirExists(t, r.content(1))
}

// invariant 6: while one operation on a workspace is under way the next waits.
func TestOneOperationAtATime(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.engine.before = func(call, _ string) {
		if call == "stop" {
			once.Do(func() { close(entered); <-leave })
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.halt(workspace.StopInstanceInput{Target: target}) }()
	<-entered
	backedUp := make(chan error, 1)
	go func() {
		_, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
		backedUp <- err
	}()
	select {
	case <-backedUp:
		t.Fatal("a backup ran beside a stop")
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	require.NoError(t, <-stopped)
	require.NoError(t, <-backedUp)
}
