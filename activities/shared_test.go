package activities

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// sharedRig is a rig whose node reaches a shared volume, as a second node does.
type sharedRig struct {
	*rig
	volume string // the volume's id
	mount  string
	other  *Node
}

func newSharedRig(t *testing.T) *sharedRig {
	t.Helper()
	s := &sharedRig{rig: newRig(t, storage.PolicyAny), mount: t.TempDir()}
	id, created, err := MakeShared(s.mount)
	require.NoError(t, err)
	require.True(t, created)
	s.volume = id
	s.node.Shared, s.node.Holder = OpenShared(s.mount, s.node.Name, "key of node-1"), &holder{}
	s.other = s.another("node-2", s.catalog)
	s.other.Volumes, err = OpenVolumes(t.TempDir())
	require.NoError(t, err)
	s.other.Shared, s.other.Holder = OpenShared(s.mount, s.other.Name, "key of node-2"), &holder{}
	return s
}

// A5: nothing on a shared volume runs without a guard process that has taken it first, and what runs is marked.
func TestSharedInstanceIsGuarded(t *testing.T) {
	for name, guard := range map[string]Holder{"none": nil, "one that does not answer": &holder{err: errors.New("no answer")}} {
		s := newSharedRig(t)
		target := s.target(1)
		s.record(1, "")
		_, err := run(s.rig, s.node.PrepareContent, workspace.PrepareContentInput{Target: target})
		require.NoError(t, err)
		s.node.Holder = guard
		_, err = run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:"})
		typed(t, err, workspace.ErrorNodeUnguarded)
		require.NotContains(t, s.engine.calls, "start", name)
	}
	s := newSharedRig(t)
	s.runs(1)
	require.Equal(t, s.engine.names(), s.node.Holder.(*holder).held)
	for _, spec := range s.engine.specs {
		require.Equal(t, engine.Exclusive, spec.Labels[engine.LabelExclusive])
	}
}

func (s *sharedRig) target(token uint64) workspace.Target {
	target := s.rig.target(token)
	target.Volume = s.volume
	return target
}

// runs makes an instance on the shared volume, held by node-1, with a few files that no store has.
func (s *sharedRig) runs(token uint64) workspace.Target {
	s.t.Helper()
	target := s.target(token)
	s.record(token, "")
	_, err := run(s.rig, s.node.PrepareContent, workspace.PrepareContentInput{Target: target})
	require.NoError(s.t, err)
	_, err = run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: s.sealed.Secrets})
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir(token), "content", "notes.txt"), []byte("what a person wrote\n"), 0o644))
	return target
}

func (s *sharedRig) dir(token uint64) string {
	return filepath.Join(s.mount, "workspaces", workspace.InstanceName(id, token))
}

// takes has the other node take over the content of an older token.
func (s *sharedRig) takes(node *Node, from, to uint64) error {
	target := s.target(to)
	target.Node = node.Name
	_, err := run(s.rig, node.PrepareContent, workspace.PrepareContentInput{Target: target, Adopt: from})
	return err
}

func (s *sharedRig) has(token uint64) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir(token), "content", "notes.txt"))
	require.NoError(s.t, err)
	require.Equal(s.t, "what a person wrote\n", string(text))
}

// unmount takes the volume away from its mount point, which is then an empty directory, until the returned function is called.
func (s *sharedRig) unmount() (mount func()) {
	s.t.Helper()
	away := s.mount + ".away"
	require.NoError(s.t, os.Rename(s.mount, away))
	require.NoError(s.t, os.Mkdir(s.mount, 0o755))
	return func() {
		s.t.Helper()
		require.NoError(s.t, os.Remove(s.mount), "something was written to the mount point")
		require.NoError(s.t, os.Rename(away, s.mount))
	}
}

func TestMakeShared(t *testing.T) {
	dir := t.TempDir()
	first, created, err := MakeShared(dir)
	require.NoError(t, err)
	require.True(t, created)
	require.True(t, workspace.ValidVolumeID(first))
	again, created, err := MakeShared(dir)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, first, again)

	t.Run("by several at once", func(t *testing.T) {
		dir := t.TempDir()
		ids, made := make([]string, 8), make([]bool, 8)
		var all sync.WaitGroup
		for i := range ids {
			all.Go(func() {
				var err error
				if ids[i], made[i], err = MakeShared(dir); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		count := 0
		for i := range ids {
			require.Equal(t, ids[0], ids[i])
			if made[i] {
				count++
			}
		}
		require.Equal(t, 1, count, "an id is given once")
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 3, "nothing else is left")
	})
	t.Run("of a directory with something in it", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600))
		_, _, err := MakeShared(dir)
		require.ErrorContains(t, err, "thesis.tex")
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 1)
	})
	t.Run("of nothing", func(t *testing.T) {
		_, _, err := MakeShared(filepath.Join(t.TempDir(), "none"))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("of one whose identity is damaged", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, sharedIdentity), []byte(`{"id":"../.."}`), 0o600))
		_, _, err := MakeShared(dir)
		require.ErrorContains(t, err, "damaged")
		_, err = OpenShared(dir, "node-1", "key").VolumeID()
		require.ErrorIs(t, err, errVolume)
	})
}

// invariants 1 and 5: while its mount point is empty, or has another volume on it, a shared volume is not used, not written to,
// not snapshotted, and what is on it is not taken for gone.
func TestVolumeThatIsNotThere(t *testing.T) {
	for name, unmount := range map[string]func(s *sharedRig) func(){
		"not mounted": (*sharedRig).unmount,
		"another volume": func(s *sharedRig) func() {
			mount := s.unmount()
			_, _, err := MakeShared(s.mount)
			require.NoError(s.t, err)
			return func() {
				for _, name := range []string{"workspaces", "trash", sharedIdentity} {
					require.NoError(s.t, os.Remove(filepath.Join(s.mount, name)), "something was written to the other volume")
				}
				mount()
			}
		},
		"its identity is gone": func(s *sharedRig) func() {
			path := filepath.Join(s.mount, sharedIdentity)
			require.NoError(s.t, os.Rename(path, path+".away"))
			return func() { require.NoError(s.t, os.Rename(path+".away", path)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSharedRig(t)
			target := s.runs(1)
			final := s.finished(target)
			mount := unmount(s)

			_, err := run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:"})
			typed(t, err, workspace.ErrorVolumeMissing)
			next := s.target(2)
			s.record(2, "")
			for _, input := range []workspace.PrepareContentInput{{Target: next}, {Target: next, Adopt: 1}, {Target: next, Snapshot: final.Snapshot}} {
				_, err = run(s.rig, s.node.PrepareContent, input)
				typed(t, err, workspace.ErrorVolumeMissing)
			}
			for _, kind := range []string{"live", "final", "recovered"} {
				_, err = run(s.rig, s.node.Backup, workspace.BackupInput{Target: target, Kind: kind})
				transient(t, err)
				require.ErrorContains(t, err, "shared volume")
			}
			transient(t, runPlain(s.rig, s.node.RemoveInstance, final))
			transient(t, runPlain(s.rig, s.node.DiscardInstance, workspace.DiscardInstanceInput{Target: target, DiscardData: "atlas"}))
			_, err = run(s.rig, s.node.FindInstance, workspace.FindInstanceInput{Target: target})
			transient(t, err)
			require.ErrorIs(t, s.node.Download(t.Context(), dataport.Claims{WorkspaceID: id, Token: 1, Volume: s.volume}, dataport.DownloadRequest{}, nil), dataport.ErrNotHere)
			require.ErrorIs(t, s.node.HookLog(t.Context(), dataport.Claims{WorkspaceID: id, Token: 1, Volume: s.volume}, nil), dataport.ErrNotHere)
			if name != "another volume" { // which an agent may look through
				require.Error(t, s.node.Shared.EmptyTrash(t.Context()))
				_, err = s.node.Shared.Held()
				require.Error(t, err)
				_, err = s.node.Shared.Unknown()
				require.Error(t, err)
			}
			require.NoError(t, s.halt(workspace.StopInstanceInput{Target: target}), "what runs can be stopped without it")

			mount()
			s.has(1)
			require.NoError(t, runPlain(s.rig, s.node.RemoveInstance, final))
			require.NoDirExists(t, s.dir(1))
		})
	}
}

// Nor is anything made there that is missing above an instance's own directory: then something else is there by now.
func TestNothingAboveAnInstanceIsMade(t *testing.T) {
	s := newSharedRig(t)
	require.NoError(t, os.Remove(filepath.Join(s.mount, "workspaces")))
	_, err := run(s.rig, s.node.PrepareContent, workspace.PrepareContentInput{Target: s.target(1)})
	transient(t, err)
	require.NoDirExists(t, filepath.Join(s.mount, "workspaces"))
}

func TestNodeWithoutAVolume(t *testing.T) {
	s := newSharedRig(t)
	s.node.Shared = nil
	_, err := run(s.rig, s.node.PrepareContent, workspace.PrepareContentInput{Target: s.target(1)})
	typed(t, err, workspace.ErrorVolumeMissing)
}

// A5, invariants 1, 5, 6: what a node had is another's, byte for byte, and the node that had it finds nothing: it removes
// nothing, saves nothing, writes nothing, and makes no directory again.
func TestAnotherNodeTakesOver(t *testing.T) {
	s := newSharedRig(t)
	old := s.runs(1)
	final := s.finished(old)
	s.record(2, "")
	require.NoError(t, s.takes(s.other, 1, 2))
	s.has(2)
	require.NoDirExists(t, s.dir(1))
	mark, err := s.other.Shared.identify(id, 2)
	require.NoError(t, err)
	require.Equal(t, "node-2", mark.Node)
	require.Equal(t, contentStarted, mark.State, "something has run on it, whoever holds it")
	require.NoError(t, s.takes(s.other, 1, 2), "twice is once")

	for _, kind := range []string{"live", "final", "recovered"} {
		_, err := run(s.rig, s.node.Backup, workspace.BackupInput{Target: old, Kind: kind})
		typed(t, err, workspace.ErrorContentMissing)
	}
	typed(t, s.takes(s.node, 1, 1), workspace.ErrorContentMissing)
	_, err = run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: old, Image: "image:"})
	typed(t, err, workspace.ErrorContentMissing)
	require.NoError(t, runPlain(s.rig, s.node.RemoveInstance, final), "it was removed before, as far as this node can see")
	require.NoError(t, runPlain(s.rig, s.node.DiscardInstance, workspace.DiscardInstanceInput{Target: old, DiscardData: "atlas"}))

	// Not with the new token, either: the identity says whose it is.
	mine := s.target(2)
	_, err = run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: mine, Image: "image:"})
	typed(t, err, workspace.ErrorContentForeign)
	_, err = run(s.rig, s.node.Backup, workspace.BackupInput{Target: mine, Kind: "final"})
	typed(t, err, workspace.ErrorContentForeign)
	typed(t, runPlain(s.rig, s.node.DiscardInstance, workspace.DiscardInstanceInput{Target: mine, DiscardData: "atlas"}), workspace.ErrorContentForeign)
	held, err := s.node.Shared.Held()
	require.NoError(t, err)
	require.Empty(t, held, "each agent tells of its own")
	held, err = s.other.Shared.Held()
	require.NoError(t, err)
	require.Len(t, held, 1)
	unknown, err := s.node.Shared.Unknown()
	require.NoError(t, err)
	require.Empty(t, unknown, "another node's is not nobody's")
	s.has(2)
	entries, err := os.ReadDir(filepath.Join(s.mount, "workspaces"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

// What was replaced is stopped and forgotten by the engine, and nothing else: its content is another's.
func TestDismissOfWhatWasTakenOver(t *testing.T) {
	s := newSharedRig(t)
	old := s.runs(1)
	s.record(2, "")
	require.NoError(t, s.takes(s.other, 1, 2))
	for range 2 {
		require.NoError(t, s.halt(workspace.StopInstanceInput{Target: old, Dismiss: true}))
		require.Empty(t, s.engine.names())
	}
	require.Equal(t, engine.WhereItStands, s.engine.grace, "it does not run on to hear a signal")
	s.has(2)
	// Also of a node that cannot see the volume.
	mount := s.unmount()
	require.NoError(t, s.halt(workspace.StopInstanceInput{Target: old, Dismiss: true}))
	mount()
}

// invariants 6 and 8: of several nodes that want the same content exactly one gets it, and what comes late finds nothing.
func TestOneOfSeveralTakesOver(t *testing.T) {
	for range 20 {
		s := newSharedRig(t)
		s.runs(1)
		s.record(3, "")
		a, b := s.node.Shared.of(s.volume), s.other.Shared.of(s.volume)
		var early, late error
		var both sync.WaitGroup
		both.Go(func() { early = a.adopt(id, "atlas", 1, 2) })
		both.Go(func() {
			for { // its activity is tried again, and finds what the other has made of it
				if late = b.adopt(id, "atlas", 1, 3); late == nil {
					return
				}
			}
		})
		both.Wait()
		require.NoError(t, late, "the newest token gets it in the end, after %v", early)
		s.has(3)
		require.NoDirExists(t, s.dir(2))
		mark, err := b.identify(id, 3)
		require.NoError(t, err)
		require.Equal(t, "node-2", mark.Node)
		require.Error(t, a.adopt(id, "atlas", 1, 2))
		require.NoError(t, a.trash(t.Context(), id, 2))
		require.NoError(t, a.trash(t.Context(), id, 1))
		s.has(3)
	}
}

// A6: while the node that holds it is away, a person fetches what is there through another.
func TestDownloadThroughAnotherNode(t *testing.T) {
	s := newSharedRig(t)
	s.runs(1)
	content, err := s.other.Shared.of(s.volume).readable(id, 1)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(s.dir(1), "content"), content)
	_, _, err = s.other.Shared.of(s.volume).usable(id, 1)
	require.ErrorIs(t, err, errForeign, "and does nothing else with it")
}

// Another machine that has come to have a node's name is not that node: what that one runs may run still.
func TestAnotherMachineOfTheSameName(t *testing.T) {
	s := newSharedRig(t)
	old := s.runs(1)
	final := s.finished(old)
	s.node.Shared = OpenShared(s.mount, s.node.Name, "key of another machine")
	_, err := run(s.rig, s.node.StartInstance, workspace.StartInstanceInput{Target: old, Image: "image:"})
	typed(t, err, workspace.ErrorContentForeign)
	_, err = run(s.rig, s.node.FindInstance, workspace.FindInstanceInput{Target: old})
	typed(t, err, workspace.ErrorContentForeign)
	typed(t, runPlain(s.rig, s.node.RemoveInstance, final), workspace.ErrorContentForeign)
	s.has(1)
}

// A18: the reserve is of the volume that the content is on.
func TestReserveOfTheVolume(t *testing.T) {
	s := newSharedRig(t)
	s.node.Reserve = 1 << 60
	_, err := run(s.rig, s.node.PrepareContent, workspace.PrepareContentInput{Target: s.target(1)})
	typed(t, err, workspace.ErrorNodeFull)
	require.NoDirExists(t, s.dir(1))
}
