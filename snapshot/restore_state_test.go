package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// requireLeases skips where files cannot be leased, and nothing is noted after a restore.
func requireLeases(t *testing.T) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer file.Close()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("there are no leases here: ", err)
	}
}

// restoredWithState restores a directory of all kinds of files, with a state file.
func restoredWithState(t *testing.T, options RestoreOptions) (r *Repository, target, state string) {
	t.Helper()
	requireLeases(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{
		"a": []byte("a"), "d/b": randomBytes(1, 3<<20), "d/e/c": []byte("c"), "d/e/same": []byte("c"), "empty": {},
		"d/large": randomBytes(2, 12<<20), "f/name": randomBytes(3, 1<<10), "holes": append(make([]byte, 9<<20), 1),
	})
	require.NoError(t, os.Link(filepath.Join(dir, "f/name"), filepath.Join(dir, "d/other")))
	require.NoError(t, os.Link(filepath.Join(dir, "f/name"), filepath.Join(dir, "d/third")))
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "link")))
	require.NoError(t, os.Chmod(filepath.Join(dir, "a"), 0o600))
	_ = unix.Setxattr(filepath.Join(dir, "d/e/c"), "user.a", []byte("b"), 0)
	r = wholeMemoryRepository(t)
	made, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/"}})
	require.NoError(t, err)
	target, state = filepath.Join(t.TempDir(), "target"), filepath.Join(t.TempDir(), "state")
	options.StateFile = state
	_, err = r.Restore(t.Context(), made.Snapshot, target, options)
	require.NoError(t, err)
	return r, target, state
}

// backupBoth backs a directory up with its state file, and anew, and returns which files the former has read.
func backupBoth(t *testing.T, r *Repository, dir, state string) (read []string) {
	t.Helper()
	reads := readFiles(r)
	again, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/"}, StateFile: state})
	require.NoError(t, err)
	read = reads()
	fresh, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: again.Snapshot, Paths: []string{"/"}})
	require.NoError(t, err)
	require.Equal(t, comparable(t, r, fresh), comparable(t, r, again))
	return read
}

// TestWhatWasRestoredIsNotReadAgain: a workspace that moved has new inodes and times, and its next backup reads no content,
// whatever kind of file it is in.
func TestWhatWasRestoredIsNotReadAgain(t *testing.T) {
	r, target, state := restoredWithState(t, RestoreOptions{})
	require.Empty(t, backupBoth(t, r, target, state))
	writeFiles(t, target, map[string][]byte{"d/e/c": []byte("C"), "new": []byte("n")})
	require.Equal(t, []string{"d/e/c", "new"}, backupBoth(t, r, target, state))
	require.NoFileExists(t, state+stateTemporary)

	// Without the state file everything is.
	r, target, state = restoredWithState(t, RestoreOptions{})
	require.NoError(t, os.Remove(state))
	require.Len(t, backupBoth(t, r, target, state), 8)
}

// TestWritesDuringARestoreAreSeen: who writes to a file that is being restored, at whatever moment, finds it in the next
// backup, also when the times are put back.
func TestWritesDuringARestoreAreSeen(t *testing.T) {
	t.Parallel()
	forge := func(path string) error {
		var before unix.Stat_t
		if err := unix.Lstat(path, &before); err != nil {
			return err
		}
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, err := unix.Pwrite(fd, []byte("!"), 0); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{before.Atim, before.Mtim}, 0)
	}
	for _, name := range []string{"a", "d/b", "d/large", "d/other"} {
		var mu sync.Mutex
		t.Run("opened while it is written: "+name, func(t *testing.T) {
			var opened []error
			r, target, state := restoredWithState(t, RestoreOptions{wrote: func(path string) {
				mu.Lock()
				defer mu.Unlock()
				hidden, err := filepath.Glob(filepath.Join(filepath.Dir(t.TempDir()), "*", ".target.restoring-*"))
				if err != nil || len(hidden) != 1 || path != name {
					return
				}
				fd, err := unix.Open(filepath.Join(hidden[0], path), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
				if err == nil {
					unix.Close(fd)
				}
				opened = append(opened, err)
			}})
			require.NotEmpty(t, opened)
			require.ErrorIs(t, opened[0], unix.EAGAIN, "there was no lease")
			read := backupBoth(t, r, target, state)
			if name == "d/other" { // the first of three names
				require.Subset(t, []string{"d/other", "d/third", "f/name"}, read)
				require.NotEmpty(t, read)
			} else {
				require.Equal(t, []string{name}, read)
			}
		})
		t.Run("written at the end: "+name, func(t *testing.T) {
			r, target, state := restoredWithState(t, RestoreOptions{Prepare: func(dir string) error {
				return forge(filepath.Join(dir, name))
			}})
			require.NotEmpty(t, backupBoth(t, r, target, state))
		})
		t.Run("written after it: "+name, func(t *testing.T) {
			r, target, state := restoredWithState(t, RestoreOptions{})
			require.NoError(t, forge(filepath.Join(target, name)))
			require.NotEmpty(t, backupBoth(t, r, target, state))
		})
	}
	t.Run("written when it is complete and others are not", func(t *testing.T) {
		requireLeases(t)
		dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
		writeFiles(t, dir, map[string][]byte{"a": []byte("a"), "b": []byte("b")})
		r := wholeMemoryRepository(t)
		made, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/"}})
		require.NoError(t, err)
		target, err := newTarget(filepath.Join(t.TempDir(), "target"), false)
		require.NoError(t, err)
		stored, err := r.resolveSnapshot(t.Context(), made.Snapshot)
		require.NoError(t, err)
		s := newRestorer(r, target, RestoreOptions{StateFile: state}, defaultMaxEntries)
		defer s.abandonState()
		s.beforeFinish = func() { require.NoError(t, forge(filepath.Join(target.temporary(), "a"))) }
		require.NoError(t, s.run(t.Context(), stored, ""))
		require.NoError(t, target.commit(t.Context(), nil, s.plan.rootMeta))
		require.NoError(t, target.finish(nil))
		s.writeState()
		require.Equal(t, []string{"a"}, backupBoth(t, r, target.path, state))
	})
	t.Run("by somebody who waits for it", func(t *testing.T) {
		done := make(chan error, 100)
		started := false
		var mu sync.Mutex
		r, target, state := restoredWithState(t, RestoreOptions{wrote: func(path string) {
			mu.Lock()
			defer mu.Unlock()
			hidden, err := filepath.Glob(filepath.Join(filepath.Dir(t.TempDir()), "*", ".target.restoring-*"))
			if path != "d/e/c" || err != nil || len(hidden) != 1 || started {
				return
			}
			started = true
			go func() { done <- forge(filepath.Join(hidden[0], path)) }() // opening waits for the lease
		}})
		require.NoError(t, <-done)
		require.Equal(t, []string{"d/e/c"}, backupBoth(t, r, target, state))
	})
}

// TestARestoreThatFailsLeavesTheStateFile: and no descriptor.
func TestARestoreThatFailsLeavesTheStateFile(t *testing.T) {
	r, target, state := restoredWithState(t, RestoreOptions{})
	before, err := os.ReadFile(state)
	require.NoError(t, err)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	descriptors := open()
	other := filepath.Join(filepath.Dir(target), "other")
	refused := errors.New("refused")
	_, err = r.Restore(t.Context(), "latest", other, RestoreOptions{StateFile: state, Prepare: func(string) error { return refused }})
	require.ErrorIs(t, err, refused)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = r.Restore(ctx, "latest", other, RestoreOptions{StateFile: state, wrote: func(path string) {
		if path == "d/large" {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, descriptors, open())
	after, err := os.ReadFile(state)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoFileExists(t, state+stateTemporary)

	// The attempt that goes on from there reads at the next backup what the cut one had left, and no more.
	_, err = r.Restore(t.Context(), "latest", other, RestoreOptions{StateFile: state})
	require.NoError(t, err)
	backupBoth(t, r, other, state)
}

// TestRestoredAndChanged: as TestTheStateFileChangesNothing, with restores in between.
func TestRestoredAndChanged(t *testing.T) {
	for _, seed := range []int64{1, 2, 3} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := wholeMemoryRepository(t)
			m := newMutator(t, seed)
			base, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
			for range 60 {
				m.step()
			}
			for round := range 4 {
				made, err := r.Backup(t.Context(), m.root, BackupOptions{Hostname: "h", Paths: []string{"/"}, StateFile: state})
				require.NoError(t, err)
				fresh, err := r.Backup(t.Context(), m.root, BackupOptions{Hostname: made.Snapshot, Paths: []string{"/"}})
				require.NoError(t, err)
				require.Equal(t, comparable(t, r, fresh), comparable(t, r, made), "seed %d, round %d: %s", seed, round, strings.Join(m.did, "\n"))
				m.did = nil
				m.root = filepath.Join(base, fmt.Sprint(round))
				_, err = r.Restore(t.Context(), made.Snapshot, m.root, RestoreOptions{StateFile: state})
				require.NoError(t, err)
				for range rand.New(rand.NewSource(seed + int64(round))).Intn(5) {
					m.step()
				}
			}
		})
	}
}
