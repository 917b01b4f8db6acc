package nodes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// killInstance ends everything of an instance of the process engine with SIGKILL, as the end of its machine does: its
// supervisor, which would tell how it ended, and then its init. Each is the process that the engine's own record names.
func killInstance(t *testing.T, s *stack.Stack, state workspace.State) {
	t.Helper()
	type process struct {
		PID       int    `json:"pid"`
		StartTime uint64 `json:"start_time"`
	}
	var run struct {
		Supervisor, Init process
	}
	name := "holdfast-" + workspace.InstanceName(state.ID, state.Instance.Token)
	data, err := os.ReadFile(filepath.Join(s.NodeDir(state.Instance.Node), "engine", name, "run.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &run))
	for _, p := range []process{run.Supervisor, run.Init} {
		require.Greater(t, p.PID, 1)
		require.Equal(t, p.StartTime, startTime(t, p.PID), "process %d is another one by now", p.PID)
		require.NoError(t, unix.Kill(p.PID, unix.SIGKILL))
	}
	stack.WaitFor(t, "the instance is gone", stack.Patience, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", run.Init.PID))
		return err != nil || bytes.Contains(stat, []byte(") Z "))
	})
}

// startTime is field 22 of a process's stat.
func startTime(t *testing.T, pid int) uint64 {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	require.NoError(t, err)
	return ticks
}

// TestMachineIsSwitchedOffAndOn proves A19 for a machine that is back before anybody calls its node lost: what ran there
// runs again by itself, as the same instance, with all its content, whether it was ever backed up or not; what has lost
// its content goes on from its snapshot; and an instance that outlived the agent is left alone.
func TestMachineIsSwitchedOffAndOn(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	node := s.Nodes()[0].Name()
	other := otherNode(t, s, node)
	was, before := map[string]workspace.State{}, map[string]string{}
	for i, name := range []string{"bare", "gone", "alive"} {
		stack.Must(t, s, 0, nil, "start", name, "--node", node, "--from-dir", stack.RandomTree(t, int64(20+i), 6, 64<<10))
		_, content := stack.ContentDir(t, s, name)
		if name == "gone" {
			stack.Must(t, s, 0, nil, "backup", name)
		} else {
			require.NoError(t, os.WriteFile(filepath.Join(content, "late.txt"), []byte("in no snapshot"), 0o644))
		}
		was[name], before[name] = stack.Show(t, s, name), stack.Manifest(t, content)
	}
	_, lost := stack.ContentDir(t, s, "gone")

	killed := time.Now()
	require.NoError(t, s.Node(node).Kill())
	killInstance(t, s, was["bare"])
	killInstance(t, s, was["gone"])
	require.NoError(t, os.Rename(filepath.Dir(lost), filepath.Join(s.Dir, "taken-away")))
	require.NoError(t, s.Node(node).Start(t.Context()))

	again := stack.WaitState(t, s, "bare", "it was started again", stack.Patience, func(state workspace.State) bool {
		last := len(state.Recent) - 1
		return state.Phase == workspace.Running && state.Look == nil && state.Recent[last].Kind == workspace.OperationFind
	})
	t.Logf("it runs again %s after the kill", time.Since(killed).Round(100*time.Millisecond))
	require.Equal(t, was["bare"].Instance.Token, again.Instance.Token)
	require.Equal(t, node, again.Instance.Node)
	require.Nil(t, again.Recovery)
	_, content := stack.ContentDir(t, s, "bare")
	stack.RequireSame(t, before["bare"], content)
	stack.Must(t, s, 0, []string{"in no snapshot"}, "exec", "bare", "--", "cat", "late.txt")

	moved := stack.WaitState(t, s, "gone", "it goes on from its snapshot", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Instance.Node == other && state.Operation == nil
	})
	require.Greater(t, moved.Instance.Token, was["gone"].Instance.Token)
	_, content = stack.ContentDir(t, s, "gone")
	stack.RequireSame(t, before["gone"], content)
	stack.Must(t, s, 0, []string{"node " + node + " had lost its content", "at most the last"}, "why", "gone")

	left := stack.WaitState(t, s, "alive", "it was looked at", stack.Patience, func(state workspace.State) bool { return state.Look == nil && state.Operation == nil })
	require.Equal(t, workspace.Running, left.Phase)
	require.Equal(t, was["alive"].Instance.Container, left.Instance.Container)
	require.Len(t, left.Recent, len(was["alive"].Recent), "%+v", left.Recent)
	stack.Must(t, s, 0, []string{"in no snapshot"}, "exec", "alive", "--", "cat", "late.txt")
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "bare")
	stack.Must(t, s, 0, nil, "start", "bare", "--node", other)
	_, content = stack.ContentDir(t, s, "bare")
	stack.RequireSame(t, before["bare"], content)
}
