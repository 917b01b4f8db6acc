package activities

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// What an agent can leave behind at each step of taking over, and who goes on: invariants 5, 6 and 8. The steps are the renaming
// of the directory and the new identity, which is written beside the old one and renamed over it.
func TestKilledTakeOverEndsInTheSamePlace(t *testing.T) {
	steps := map[string]func(t *testing.T, s *sharedRig){
		"before anything": func(*testing.T, *sharedRig) {},
		"after the renaming": func(t *testing.T, s *sharedRig) {
			require.NoError(t, os.Rename(s.dir(1), s.dir(2)))
		},
		"with half of a new identity": func(t *testing.T, s *sharedRig) {
			require.NoError(t, os.Rename(s.dir(1), s.dir(2)))
			require.NoError(t, os.WriteFile(filepath.Join(s.dir(2), ".identity.json123"), []byte(`{"workspace_id":"abc`), 0o600))
		},
		"after the new identity": func(t *testing.T, s *sharedRig) {
			require.NoError(t, s.other.Shared.of(s.volume).adopt(id, "atlas", 1, 2))
		},
	}
	for name, step := range steps {
		for who, goesOn := range map[string]func(s *sharedRig) (node *Node, token uint64){
			"the same node again":           func(s *sharedRig) (*Node, uint64) { return s.other, 2 },
			"a third, with a newer token":   func(s *sharedRig) (*Node, uint64) { return s.third(), 3 },
			"the first, which has returned": func(s *sharedRig) (*Node, uint64) { return s.node, 3 },
		} {
			t.Run(name+"/"+who, func(t *testing.T) {
				s := newSharedRig(t)
				old := s.runs(1)
				s.record(2, "")
				step(t, s)
				node, token := goesOn(s)
				if token > 2 {
					s.record(token, "")
				}
				for range 2 {
					require.NoError(t, s.takes(node, 1, token))
					s.has(token)
				}
				mark, err := node.Shared.of(s.volume).identify(id, token)
				require.NoError(t, err)
				require.Equal(t, node.Name, mark.Node)
				require.Equal(t, contentStarted, mark.State)
				entries, err := os.ReadDir(filepath.Join(s.mount, "workspaces"))
				require.NoError(t, err)
				require.Len(t, entries, 1, "one directory, as before")

				// What was late comes now, from both.
				require.Error(t, s.takes(s.node, 1, 1))
				if token > 2 {
					require.Error(t, s.takes(s.other, 1, 2))
					require.NoError(t, runPlain(s.rig, s.other.DiscardInstance, workspace.DiscardInstanceInput{Target: s.target(2), DiscardData: "atlas"}))
				}
				require.NoError(t, runPlain(s.rig, s.node.DiscardInstance, workspace.DiscardInstanceInput{Target: old, DiscardData: "atlas"}))
				s.has(token)
			})
		}
	}
}

// third is one more node that reaches the volume.
func (s *sharedRig) third() *Node {
	node := s.another("node-3", s.catalog)
	var err error
	node.Volumes, err = OpenVolumes(s.t.TempDir())
	require.NoError(s.t, err)
	node.Shared = OpenShared(s.mount, node.Name, "key of node-3")
	return node
}

// Neither content that was never whole nor another workspace's is taken over.
func TestOnlyWholeContentIsTakenOver(t *testing.T) {
	s := newSharedRig(t)
	v := s.node.Shared.of(s.volume)
	require.NoError(t, os.MkdirAll(v.content(id, 1), 0o700))
	require.NoError(t, v.mark(identity{WorkspaceID: id, Token: 1, State: contentPreparing}))
	typed(t, s.takes(s.other, 1, 2), workspace.ErrorContentMissing)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir(1), identityFile), []byte(`{"workspace_id":"`+otherID+`","token":1,"state":"started"}`), 0o600))
	typed(t, s.takes(s.other, 1, 2), workspace.ErrorContentForeign)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir(1), identityFile), []byte(`{"workspace_id":"`+id+`","token":7,"state":"started"}`), 0o600))
	typed(t, s.takes(s.other, 1, 2), workspace.ErrorContentForeign)
	require.DirExists(t, s.dir(1))
}

// The same on a node's own disk: an adoption that was cut between its two steps, and then gone on without.
func TestAdoptionThatWasCutIsGoneOnWith(t *testing.T) {
	v := openVolumes(t)
	instance(t, v, 1, contentStarted)
	require.NoError(t, os.Rename(v.dir(id, 1), v.dir(id, 2)))
	require.NoError(t, v.adopt(id, "atlas", 1, 3))
	holds(t, v, 3)
}
