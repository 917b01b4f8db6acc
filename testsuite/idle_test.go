package testsuite_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

func stopAhead(t *testing.T, s *stack.Stack, name string) *workspace.StopAhead {
	t.Helper()
	var state struct {
		StopAhead *workspace.StopAhead `json:"stop_ahead"`
	}
	r := stack.Must(t, s, 0, nil, "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state), r.Stdout)
	return state.StopAhead
}

// TestIdleStopOfProcesses and TestIdleStopOfContainers are tests of their own, and not parts of one, because each is nearly three
// minutes of waiting: parts would begin when everything else has begun.
func TestIdleStopOfProcesses(t *testing.T) {
	t.Parallel()
	stopsWhenIdle(t, "process")
}

func TestIdleStopOfContainers(t *testing.T) {
	t.Parallel()
	stopsWhenIdle(t, "docker")
}

// stopsWhenIdle is an idle workspace on the real stack, beside one in which a job works that nobody is connected to: the
// first is put off, warned of and stopped with all that it has; the second runs on.
func stopsWhenIdle(t *testing.T, engine string) {
	t.Helper()
	s := stack.New(t, "any", engine)
	stack.Must(t, s, 0, nil, "start", "busy", "--idle-stop", "1m", "--snapshot-every", "off")
	stack.Must(t, s, 0, nil, "exec", "busy", "--", "sh", "-c",
		"(while [ ! -e enough ]; do i=0; while [ $i -lt 4000 ]; do i=$((i+1)); done; sleep 0.2; done) </dev/null >/dev/null 2>&1 &")
	stack.Must(t, s, 0, nil, "keep", "busy", "--for", "2m") // so that it is asked about after two of the node's looks
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", fidelityTree(t), "--idle-stop", "1m", "--snapshot-every", "off")
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo edited > work.txt")
	if engine == "docker" {
		for _, name := range []string{"busy", "web"} {
			id := stack.Show(t, s, name).ID
			t.Cleanup(func() { stack.RemoveContainers(t, id) })
		}
	}
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, []string{"when it is not used for 1m", "not before"}, "show", "web")

	// Put off until the node has seen that it is quiet for longer than the policy: an answer that it is used, of its
	// start, would have it asked again only five minutes later.
	stack.Must(t, s, 0, []string{"web is not stopped by itself before"}, "keep", "web", "--for", "150s")
	stack.Must(t, s, 0, []string{"put off", "said", "holdfast keep web --for 4h"}, "why", "web")
	kept := stopAhead(t, s, "web").Keep
	require.NotNil(t, kept)
	stack.WaitFor(t, "the warning", stack.Patience, func() bool {
		ahead := stopAhead(t, s, "web")
		return ahead != nil && ahead.Warned
	})
	stack.WaitFor(t, "the stop", stack.Patience, func() bool {
		state := stack.Show(t, s, "web")
		return state.Phase == workspace.Stopped && state.Operation == nil
	})
	state := stack.Show(t, s, "web")
	require.False(t, state.Since.Before(kept.Until), "stopped at %s, kept until %s", state.Since, kept.Until)
	require.Contains(t, state.Reason, "it was not used for 1m: backed up as snapshot")
	require.Equal(t, "final", state.Head.Kind)
	require.NoDirExists(t, content)

	// With all that it had.
	stack.Must(t, s, 0, nil, "start", "web", "--idle-stop", "off")
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
	require.Nil(t, stopAhead(t, s, "web"))
	stack.Must(t, s, 4, []string{"nothing stops it by itself"}, "keep", "web", "--for", "1h")

	busy := stack.Show(t, s, "busy")
	require.Equal(t, workspace.Running, busy.Phase)
	require.Empty(t, busy.Watch.WarnedOf)
	require.Greater(t, busy.Watch.Used.Sub(busy.Instance.Began), 30*time.Second)
	require.True(t, strings.Contains(busy.Watch.Use, "of a processor"), busy.Watch.Use)
}
