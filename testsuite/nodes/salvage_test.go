package nodes_test

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

	"holdfast/testsuite/stack"
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
	if stack.Campaign() {
		kills, count = 20, 15
	}
	random := rand.New(rand.NewSource(stack.Seed(t)))
	s := stack.New(t, "all", "process")
	node := s.Nodes()[0].Name()
	other := otherNode(t, s, node)
	names, was, had, instance := []string{}, map[string]workspace.State{}, map[string]string{}, map[string]string{}
	for i := range count {
		name := fmt.Sprintf("web-%d", i)
		stack.Must(t, s, 0, nil, "start", name, "--node", node, "--from-dir", stack.RandomTree(t, int64(40+i), 12, 256<<10))
		stack.Must(t, s, 0, nil, "backup", name)
		_, content := stack.ContentDir(t, s, name)
		late := make([]byte, 3<<20)
		random.Read(late)
		require.NoError(t, os.WriteFile(filepath.Join(content, "late"), late, 0o644))
		names, was[name], had[name], instance[name] = append(names, name), stack.Show(t, s, name), stack.Manifest(t, content), filepath.Dir(content)
	}
	require.NoError(t, s.Node(node).Kill())
	for _, name := range names {
		stack.WaitState(t, s, name, "it goes on elsewhere", stack.Patience, func(state workspace.State) bool {
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
			stack.WaitFor(t, where, stack.Patience, func() bool {
				entries, err := os.ReadDir(trash)
				require.NoError(t, err)
				return len(entries) > 0 || len(here()) < before
			})
		} else {
			hold(t, s, workspace.RepositoryPrefix(""), point)
			stack.WaitFor(t, where, stack.Patience, func() bool { return held(t, s) > 0 || len(here()) == 0 })
		}
		require.NoError(t, agent.Kill())
		hold(t, s, "", 0)
		done++
		t.Logf("kill %d after %s, %s: %d are left", done, time.Since(began).Round(time.Second), where, len(here()))
		for _, name := range here() {
			// Whatever is not in the stores whole is still there as it was.
			if !exists(filepath.Join(instance[name], "content")) {
				t.Fatalf("%s is half there", name)
			}
			stack.RequireSame(t, had[name], filepath.Join(instance[name], "content"))
		}
		require.NoError(t, agent.Start(t.Context()))
	}
	require.GreaterOrEqual(t, done, max(2, kills*3/4), "it was over before enough kills")

	for _, name := range names {
		state := stack.WaitState(t, s, name, "what its node had is saved and gone", stack.Patience, func(state workspace.State) bool {
			return len(state.Left) == 0 && state.Operation == nil
		})
		require.Len(t, state.Salvaged, 1)
		require.NoDirExists(t, instance[name])
		require.Equal(t, other, state.Instance.Node, "what went on elsewhere stays there")
		require.Equal(t, was[name].Head.Snapshot, state.Head.Snapshot, "it is not the newest version")
		require.Empty(t, s.StoredNames(t, "catalog/nodes/"+node, state.ID))
		saved := recovered(t, s, name)
		require.Equal(t, []string{state.Salvaged[0].Snapshot}, saved, "exactly one, however often it was begun")
		stack.RequireSame(t, had[name], restored(t, s, name, saved[0]))
		stack.Must(t, s, 0, []string{"recovered snapshot " + workspace.Short(saved[0]), "until a person removes it"}, "why", name)
	}
	t.Logf("%d workspaces were saved and removed after %s and %d kills", len(names), time.Since(began).Round(time.Second), done)
	stack.WaitFor(t, "nothing is in the trash", stack.Patience, func() bool {
		entries, err := os.ReadDir(trash)
		require.NoError(t, err)
		return len(entries) == 0
	})
	require.Empty(t, instancesOf(t, s, node))
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", names[0])
	stack.Must(t, s, 0, nil, "restore", names[0], "--snapshot", recovered(t, s, names[0])[0])
	_, content := stack.ContentDir(t, s, names[0])
	stack.RequireSame(t, had[names[0]], content)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// recovered are the ids of a workspace's recovered snapshots.
func recovered(t *testing.T, s *stack.Stack, name string) (ids []string) {
	t.Helper()
	var listed workspace.SnapshotsResult
	r := stack.Must(t, s, 0, nil, "snapshots", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &listed), r.Stdout)
	for _, line := range listed.Snapshots {
		if line.Kind == "recovered" {
			ids = append(ids, line.Snapshot)
		}
	}
	return ids
}

// instancesOf are the names of the instances that a node's engine keeps, running or not.
func instancesOf(t *testing.T, s *stack.Stack, node string) (names []string) {
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
