package activities

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

func openVolumes(t *testing.T) *Volumes {
	t.Helper()
	v, err := OpenVolumes(t.TempDir())
	require.NoError(t, err)
	return v
}

// instance makes an instance's directory with a file in its content.
func instance(t *testing.T, v *Volumes, token uint64, state contentState) {
	t.Helper()
	require.NoError(t, os.MkdirAll(v.content(id, token), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(v.content(id, token), "file"), []byte("content"), 0o600))
	require.NoError(t, v.mark(identity{WorkspaceID: id, Name: "atlas", Token: token, State: state, Time: time.Unix(1, 0)}))
}

func holds(t *testing.T, v *Volumes, token uint64) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(v.content(id, token), "file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(data))
}

// invariant 5: content is used only when the identity beside it matches, it was whole once, and it is there.
func TestUsable(t *testing.T) {
	v := openVolumes(t)
	_, _, err := v.usable(id, 1)
	require.ErrorIs(t, err, errNoContent)

	instance(t, v, 1, contentStarted)
	content, mark, err := v.usable(id, 1)
	require.NoError(t, err)
	require.Equal(t, v.content(id, 1), content)
	require.Equal(t, contentStarted, mark.State)

	for name, test := range map[string]struct {
		spoil func(t *testing.T, v *Volumes)
		err   error
	}{
		"never whole": {func(t *testing.T, v *Volumes) { instance(t, v, 1, contentPreparing) }, errNoContent},
		"another token's": {func(t *testing.T, v *Volumes) {
			instance(t, v, 2, contentStarted)
			require.NoError(t, os.RemoveAll(v.dir(id, 1)))
			require.NoError(t, os.Rename(v.dir(id, 2), v.dir(id, 1)))
		}, errForeign},
		"another workspace's": {func(t *testing.T, v *Volumes) {
			data := `{"workspace_id":"` + otherID + `","token":1,"state":"started"}`
			require.NoError(t, os.WriteFile(filepath.Join(v.dir(id, 1), "identity.json"), []byte(data), 0o600))
		}, errForeign},
		"an identity that cannot be read": {func(t *testing.T, v *Volumes) {
			require.NoError(t, os.WriteFile(filepath.Join(v.dir(id, 1), "identity.json"), []byte(`{"worksp`), 0o600))
		}, errForeign},
		"no content": {func(t *testing.T, v *Volumes) { require.NoError(t, os.RemoveAll(v.content(id, 1))) }, errNoContent},
		"a link in its place": {func(t *testing.T, v *Volumes) {
			require.NoError(t, os.RemoveAll(v.content(id, 1)))
			require.NoError(t, os.Symlink(t.TempDir(), v.content(id, 1)))
		}, errNoContent},
		"a file in its place": {func(t *testing.T, v *Volumes) {
			require.NoError(t, os.RemoveAll(v.content(id, 1)))
			require.NoError(t, os.WriteFile(v.content(id, 1), nil, 0o600))
		}, errNoContent},
		"no identity": {func(t *testing.T, v *Volumes) {
			require.NoError(t, os.Remove(filepath.Join(v.dir(id, 1), "identity.json")))
		}, errNoContent},
	} {
		t.Run(name, func(t *testing.T) {
			v := openVolumes(t)
			instance(t, v, 1, contentStarted)
			test.spoil(t, v)
			_, _, err := v.usable(id, 1)
			require.ErrorIs(t, err, test.err)
		})
	}
}

// invariant 5: content on another mount than its identity is foreign, whatever lies there.
func TestContentOnAnotherMount(t *testing.T) {
	if os.Geteuid() != 0 {
		storagetest.Missing(t, "root", "only root can mount")
	}
	v := openVolumes(t)
	instance(t, v, 1, contentStarted)
	if err := unix.Mount("holdfast-test", v.content(id, 1), "tmpfs", 0, "size=1m"); err != nil {
		storagetest.Missing(t, "root", "mounting is not permitted here: "+err.Error())
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(v.content(id, 1), 0)) })
	_, _, err := v.usable(id, 1)
	require.ErrorIs(t, err, errForeign)
}

func TestAdopt(t *testing.T) {
	t.Run("a rename and a new identity", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentStarted)
		for range 2 { // invariant 8
			require.NoError(t, v.adopt(id, "atlas", 1, 3))
			holds(t, v, 3)
			_, mark, err := v.usable(id, 3)
			require.NoError(t, err)
			require.Equal(t, contentStarted, mark.State, "that something ran on it is not forgotten")
			require.NoDirExists(t, v.dir(id, 1))
		}
	})
	t.Run("a crash between the two", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentStarted)
		require.NoError(t, os.Rename(v.dir(id, 1), v.dir(id, 3)))
		_, _, err := v.usable(id, 3)
		require.ErrorIs(t, err, errForeign, "until it is finished it is not used")
		require.NoError(t, v.adopt(id, "atlas", 1, 3))
		_, mark, err := v.usable(id, 3)
		require.NoError(t, err)
		require.Equal(t, contentStarted, mark.State)
		holds(t, v, 3)
	})
	t.Run("an attempt between adopted it", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentStarted)
		require.NoError(t, v.adopt(id, "atlas", 1, 2))
		require.NoError(t, v.adopt(id, "atlas", 1, 3))
		holds(t, v, 3)
	})
	t.Run("a late duplicate of an older adoption takes nothing from a newer one", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentStarted)
		require.NoError(t, v.adopt(id, "atlas", 1, 3))
		require.ErrorIs(t, v.adopt(id, "atlas", 1, 2), errNoContent)
		holds(t, v, 3)
	})
	t.Run("nothing there", func(t *testing.T) {
		v := openVolumes(t)
		require.ErrorIs(t, v.adopt(id, "atlas", 1, 3), errNoContent)
	})
	t.Run("only what is older than wanted", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentStarted)
		require.ErrorIs(t, v.adopt(id, "atlas", 2, 3), errNoContent)
		holds(t, v, 1)
	})
	t.Run("what was never whole", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 1, contentPreparing)
		require.ErrorIs(t, v.adopt(id, "atlas", 1, 3), errNoContent)
	})
	t.Run("a foreign one", func(t *testing.T) {
		v := openVolumes(t)
		instance(t, v, 3, contentStarted)
		data := `{"workspace_id":"` + otherID + `","token":3,"state":"started"}`
		require.NoError(t, os.WriteFile(filepath.Join(v.dir(id, 3), "identity.json"), []byte(data), 0o600))
		require.ErrorIs(t, v.adopt(id, "atlas", 1, 3), errForeign)
		holds(t, v, 3)
	})
}

// invariant 6: exactly the named one goes to the trash, by a rename first; a late duplicate finds nothing.
func TestTrash(t *testing.T) {
	v := openVolumes(t)
	instance(t, v, 1, contentStarted)
	instance(t, v, 11, contentStarted)
	another := filepath.Join(v.root, "workspaces", workspace.InstanceName(otherID, 1)) // another workspace's first instance
	require.Equal(t, another, v.dir(otherID, 1))
	require.NoError(t, os.MkdirAll(another, 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(v.content(id, 1), "closed"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(v.content(id, 1), "closed"), 0o500))
	open, err := os.Open(v.content(id, 1))
	require.NoError(t, err)
	defer open.Close()
	for range 2 {
		require.NoError(t, v.trash(t.Context(), id, 1))
		require.NoDirExists(t, v.dir(id, 1))
		holds(t, v, 11)
		require.DirExists(t, another)
	}
	// Where it was when it was deleted, as the kernel remembers it of a directory that is open.
	last, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", open.Fd()))
	require.NoError(t, err)
	require.Contains(t, last, filepath.Join(v.root, "trash")+"/", "it was deleted in its place")
	left, err := os.ReadDir(filepath.Join(v.root, "trash"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// invariant 6: what cannot be moved to the trash is not deleted where it is.
func TestWhatCannotBeMovedStays(t *testing.T) {
	v := openVolumes(t)
	instance(t, v, 1, contentStarted)
	require.NoError(t, os.Remove(filepath.Join(v.root, "trash")))
	require.NoError(t, os.WriteFile(filepath.Join(v.root, "trash"), nil, 0o600))
	require.ErrorContains(t, v.trash(t.Context(), id, 1), "to the trash")
	holds(t, v, 1)
}

func TestEmptyTrash(t *testing.T) {
	v := openVolumes(t)
	instance(t, v, 2, contentStarted)
	cut := filepath.Join(v.root, "trash", workspace.InstanceName(id, 1)+".123")
	require.NoError(t, os.MkdirAll(filepath.Join(cut, "content", "deep"), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(cut, "content"), 0o500))
	require.NoError(t, v.EmptyTrash(t.Context()))
	require.NoDirExists(t, cut)
	holds(t, v, 2)
}

// invariant 1: what nobody knows is named and kept.
func TestHeld(t *testing.T) {
	v, err := OpenVolumes(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(v.dir(id, 3), 0o700))
	require.NoError(t, v.mark(identity{WorkspaceID: id, Name: "atlas", Token: 3, State: contentStarted}))
	require.NoError(t, os.MkdirAll(v.dir(id, 4), 0o700)) // no identity: Unknown lists it
	held, err := v.Held()
	require.NoError(t, err)
	require.Len(t, held, 1)
	require.Contains(t, held[0], "workspace atlas, started")
}

func TestUnknown(t *testing.T) {
	v := openVolumes(t)
	instance(t, v, 1, contentStarted)
	for _, name := range []string{"backup of my own", workspace.InstanceName(otherID, 7), id} {
		require.NoError(t, os.MkdirAll(filepath.Join(v.root, "workspaces", name, "content"), 0o700))
	}
	unknown, err := v.Unknown()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"backup of my own", workspace.InstanceName(otherID, 7), id}, unknown)
	for _, name := range unknown {
		require.DirExists(t, filepath.Join(v.root, "workspaces", name, "content"))
	}
}

// invariant 6: one operation at a time for each workspace; who waits honours its context.
func TestLock(t *testing.T) {
	v := openVolumes(t)
	unlock, err := v.lock(t.Context(), id, newTurn())
	require.NoError(t, err)
	other, err := v.lock(t.Context(), otherID, newTurn())
	require.NoError(t, err, "another workspace does not wait")
	other()

	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := v.lock(ctx, id, newTurn())
		gaveUp <- err
	}()
	cancel()
	require.ErrorIs(t, <-gaveUp, context.Canceled)

	const waiters = 8
	inside, most := make(chan int, 1), make(chan int, waiters)
	inside <- 0
	done := make(chan struct{})
	for range waiters {
		go func() {
			defer func() { done <- struct{}{} }()
			unlock, err := v.lock(context.Background(), id, newTurn())
			if err != nil {
				t.Error(err)
				return
			}
			n := <-inside + 1
			inside <- n
			most <- n
			n = <-inside - 1
			inside <- n
			unlock()
		}()
	}
	select {
	case <-most:
		t.Fatal("somebody came in while the lock was held")
	case <-time.After(20 * time.Millisecond):
	}
	unlock()
	for range waiters {
		<-done
		require.Equal(t, 1, <-most)
	}
	require.Empty(t, v.busy)
}

func TestDataDirectoryThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := OpenVolumes(file)
	require.ErrorContains(t, err, "--data-dir")
}
