package nodes_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/guard"
	"holdfast/testsuite/stack"
	"holdfast/worker"
)

// TestGuardProcessOutlivesTheAgent proves decision 18 with every part there is: a node's agent is frozen, and then killed, while
// Temporal and the stores are there. What is exclusive is paused, what is not goes on; with the lease, and no newer record, it
// goes on.
func TestGuardProcessOutlivesTheAgent(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process", func(options *devstack.StackOptions) {
		plain := options.Roles.Node
		options.Roles.Node = func(file devstack.StackFile, name, dir string) devstack.Command {
			command := plain(file, name, dir)
			command.Args = append(command.Args, "--pause-after", "10s")
			return command
		}
	})
	stack.Must(t, s, 0, nil, "start", "shared", "--node", "node-1")
	stack.Must(t, s, 0, nil, "start", "own", "--node", "node-1")
	was := stack.Show(t, s, "shared")
	_, content := stack.ContentDir(t, s, "shared")
	exclusive := counts(t, s, "shared", content)
	_, content = stack.ContentDir(t, s, "own")
	own := counts(t, s, "own", content)
	containers := engineOf(t, s, "node-1")
	paused := func() bool { return statuses(t, containers, was.ID)["1"] == engine.StatusPaused }
	running := func() bool { return statuses(t, containers, was.ID)["1"] == engine.StatusRunning }
	require.NoError(t, guard.Hold(t.Context(), worker.GuardDir(s.NodeDir("node-1")), guard.Instance{Kind: "process", ID: was.Instance.Container}))

	for name, end := range map[string]struct{ away, back func() error }{
		"frozen": {s.Node("node-1").Pause, s.Node("node-1").Resume},
		"killed": {s.Node("node-1").Kill, func() error { return s.Node("node-1").Start(t.Context()) }},
	} {
		began := time.Now()
		require.NoError(t, end.away(), name)
		stack.WaitFor(t, "it is paused: its agent was "+name, stack.Patience, paused)
		t.Logf("paused %s after its agent was %s", time.Since(began).Round(100*time.Millisecond), name)
		stands(t, exclusive)
		grows(t, own)
		require.NoError(t, end.back(), name)
		stack.WaitFor(t, "it goes on: its agent is back", stack.Patience, running)
		grows(t, exclusive)
	}
	now := stack.Show(t, s, "shared")
	require.Equal(t, was.Instance.Token, now.Instance.Token, "nobody has taken it over")
}
