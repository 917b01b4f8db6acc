package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Continuing as new carries everything, happens only when idle, and a command that comes in at that moment is done.
func TestContinueAsNew(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.environment.RegisterDelayedCallback(func() { w.environment.SetContinueAsNewSuggested(true) }, time.Minute)
	stop := w.ask(2*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	var before workspace.State
	w.environment.RegisterDelayedCallback(func() { before = w.state() }, 90*time.Second)
	w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", Owner: "ada"})
	w.end()

	require.NoError(t, *stop)
	require.Equal(t, workspace.Running, before.Phase)
	var again *workflow.ContinueAsNewError
	require.True(t, errors.As(w.environment.GetWorkflowError(), &again), "%v", w.environment.GetWorkflowError())
	var input workspace.Input
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &input))
	require.Equal(t, before.ID, input.State.ID)
	require.Equal(t, workspace.Stopped, input.State.Phase)
	require.Equal(t, uint64(1), input.State.Token)
	require.NotNil(t, input.State.Head)

	// The next run goes on where this one ended.
	next := newWorld(t)
	next.commits, next.records, next.versions, next.newestContent = w.commits, w.records, w.versions, w.newestContent
	next.ask(time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	running := next.look(2 * time.Minute)
	next.environment.RegisterDelayedCallback(next.environment.CancelWorkflow, 3*time.Minute)
	next.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, input)
	next.end()
	require.Equal(t, workspace.Running, running.Phase, "%+v", running.Recent)
	require.Equal(t, input.State.ID, running.ID)
	require.Equal(t, uint64(2), running.Instance.Token)
	require.Equal(t, "first++", next.content["node-1/2"])
}
