package testsuite_test

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// TestKilledSalvage proves A19 and A12 for what comes back: a node that was lost returns with what its workspaces wrote after
// their last snapshots, and its agent is killed again and again at random points while it saves and removes that. It ends in the
// same place wherever it was killed: nothing of the replaced instances is on the node, in its engine or in the catalog, and each
// of them is in exactly one recovered snapshot, which restores byte for byte.
func TestKilledSalvage(t *testing.T) {
	t.Parallel()
	// Each kill costs the half minute after which the silence of an activity is noticed.
	kills, count := 3, 3
	if campaign() {
		kills, count = 20, 15
	}
	random := rand.New(rand.NewSource(seedOf(t)))
	s := newStack(t, "all", "process")
	node := s.Nodes()[0].Name()
	other := s.otherNode(t, node)
	names, was, had, instance := []string{}, map[string]workspace.State{}, map[string]string{}, map[string]string{}
	for i := range count {
		name := fmt.Sprintf("web-%d", i)
		must(t, s, 0, nil, "start", name, "--node", node, "--from-dir", randomTree(t, int64(40+i), 12, 256<<10))
		must(t, s, 0, nil, "backup", name)
		_, content := contentDir(t, s, name)
		late := make([]byte, 3<<20)
		random.Read(late)
		require.NoError(t, os.WriteFile(filepath.Join(content, "late"), late, 0o644))
		names, was[name], had[name], instance[name] = append(names, name), show(t, s, name), manifest(t, content), filepath.Dir(content)
	}
	require.NoError(t, s.Node(node).Kill())
	for _, name := range names {
		waitState(t, s, name, "it goes on elsewhere", patience, func(state workspace.State) bool {
			return state.Phase == workspace.Running && state.Instance.Node == other && state.Operation == nil
		})
	}

	here := func() (left []string) {
		for _, name := range names {
			if exists(instance[name]) {
				left = append(left, name)
			}
		}
		return left
	}
	trash := filepath.Join(s.NodeDir(node), "trash")
	agent := s.Node(node)
	require.NoError(t, agent.Start(t.Context()))
	began := time.Now()
	done := 0
	for done < kills && len(here()) > 0 {
		// A point is after some of the requests that are made of the store for them, which are held there; or when something is in the
		// trash. What one of them needs is about a hundred.
		point := random.Int63n(50)
		where := fmt.Sprintf("at request %d", point)
		if random.Intn(6) == 0 {
			where = "with something in the trash"
			before := len(here())
			waitFor(t, where, patience, func() bool {
				entries, err := os.ReadDir(trash)
				require.NoError(t, err)
				return len(entries) > 0 || len(here()) < before
			})
		} else {
			s.hold(t, workspace.RepositoryPrefix(""), point)
			waitFor(t, where, patience, func() bool { return s.held(t) > 0 || len(here()) == 0 })
		}
		require.NoError(t, agent.Kill())
		s.hold(t, "", 0)
		done++
		t.Logf("kill %d after %s, %s: %d are left", done, time.Since(began).Round(time.Second), where, len(here()))
		for _, name := range here() {
			// Whatever is not in the stores whole is still there as it was.
			if !exists(filepath.Join(instance[name], "content")) {
				t.Fatalf("%s is half there", name)
			}
			requireSame(t, had[name], filepath.Join(instance[name], "content"))
		}
		require.NoError(t, agent.Start(t.Context()))
	}
	require.GreaterOrEqual(t, done, max(2, kills*3/4), "it was over before enough kills")

	for _, name := range names {
		state := waitState(t, s, name, "what its node had is saved and gone", patience, func(state workspace.State) bool {
			return len(state.Left) == 0 && state.Operation == nil
		})
		require.Len(t, state.Salvaged, 1)
		require.NoDirExists(t, instance[name])
		require.Equal(t, other, state.Instance.Node, "what went on elsewhere stays there")
		require.Equal(t, was[name].Head.Snapshot, state.Head.Snapshot, "it is not the newest version")
		require.Empty(t, s.storedNames(t, "catalog/nodes/"+node, state.ID))
		saved := s.recovered(t, name)
		require.Equal(t, []string{state.Salvaged[0].Snapshot}, saved, "exactly one, however often it was begun")
		requireSame(t, had[name], s.restored(t, name, saved[0]))
		must(t, s, 0, []string{"recovered snapshot " + workspace.Short(saved[0]), "until a person removes it"}, "why", name)
	}
	t.Logf("%d workspaces were saved and removed after %s and %d kills", len(names), time.Since(began).Round(time.Second), done)
	waitFor(t, "nothing is in the trash", patience, func() bool {
		entries, err := os.ReadDir(trash)
		require.NoError(t, err)
		return len(entries) == 0
	})
	require.Empty(t, s.instancesOf(t, node))
	must(t, s, 0, []string{"is stopped"}, "stop", names[0])
	must(t, s, 0, nil, "restore", names[0], "--snapshot", s.recovered(t, names[0])[0])
	_, content := contentDir(t, s, names[0])
	requireSame(t, had[names[0]], content)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// recovered are the ids of a workspace's recovered snapshots.
func (s *stack) recovered(t *testing.T, name string) (ids []string) {
	t.Helper()
	var listed workspace.SnapshotsResult
	r := must(t, s, 0, nil, "snapshots", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &listed), r.stdout)
	for _, line := range listed.Snapshots {
		if line.Kind == "recovered" {
			ids = append(ids, line.Snapshot)
		}
	}
	return ids
}

// instancesOf are the names of the instances that a node's engine keeps, running or not.
func (s *stack) instancesOf(t *testing.T, node string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.NodeDir(node), "engine"))
	require.NoError(t, err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "holdfast-") {
			names = append(names, entry.Name())
		}
	}
	return names
}
