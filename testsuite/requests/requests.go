// Package requests asks the workflows of workspaces and nodes for what people ask them for, without the command, and waits for
// what follows: benchmarks and tests of many workspaces have no time for a process each.
package requests

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

const (
	// answerWithin bounds one question for a state.
	answerWithin = 20 * time.Second
	// lookEvery is between two looks at a workspace that is waited for. Times are read from the states, so that it does not
	// matter for what is measured; asking costs that its processors.
	lookEvery = 500 * time.Millisecond
)

// Start asks for a workspace, which is made when there is none, and returns when that was accepted, which is not when it runs.
func Start(ctx context.Context, c client.Client, name string, request workspace.StartRequest) error {
	operation := c.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID: workspace.WorkflowID(name), TaskQueue: workspace.ControlQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind).ValueSet("workspace"),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeState).ValueSet(string(workspace.Pending)),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeOwner).ValueSet(request.Subject),
		),
	}, workspace.WorkspaceWorkflow, workspace.Input{Name: name, Owner: request.Subject})
	handle, err := c.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: operation,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID: uuid.NewString(), UpdateName: workspace.UpdateStart, WaitForStage: client.WorkflowUpdateStageCompleted, Args: []any{request},
		},
	})
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	return nil
}

// Update sends an update and waits for its acceptance.
func Update(ctx context.Context, c client.Client, workflow, update string, request any) error {
	handle, err := c.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: workflow, UpdateID: uuid.NewString(), UpdateName: update, Args: []any{request}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", workflow, update, err)
	}
	return nil
}

// Query reads a workflow's state.
func Query[T any](ctx context.Context, c client.Client, workflow string) (state T, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	value, err := c.QueryWorkflow(ctx, workflow, "", workspace.QueryState)
	if err == nil {
		err = value.Get(&state)
	}
	if err != nil {
		return state, fmt.Errorf("asking %s for its state: %w", workflow, err)
	}
	return state, nil
}

// Until waits until a condition has held for each of the workspaces, and returns how each was then. It asks one after the other,
// and those that have not been seen to be there again and again. The context bounds it.
func Until(ctx context.Context, c client.Client, names []string, what string, done func(workspace.State) bool) (map[string]workspace.State, error) {
	states, left := map[string]workspace.State{}, slices.Clone(names)
	for {
		var last string
		waiting := 0
		left = slices.DeleteFunc(left, func(name string) bool {
			if waiting == looksAtOnce {
				return false // as many others are not there: this one is asked when they are
			}
			state, err := Query[workspace.State](ctx, c, workspace.WorkflowID(name))
			if err != nil {
				last = err.Error()
				waiting++
				return false
			}
			states[name] = state
			if done(state) {
				return true
			}
			last = fmt.Sprintf("%s: %s %s", name, state.Phase, state.Reason)
			waiting++
			return false
		})
		if len(left) == 0 {
			return states, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting until %s: %d of %d are not there yet: %s: %w", what, len(left), len(names), last, context.Cause(ctx))
		case <-time.After(lookEvery):
		}
	}
}

// looksAtOnce bounds how many workspaces that are not there yet are asked in one look of Until: of a thousand each look would
// else cost what is waited for its processors.
const looksAtOnce = 20

// Running says whether a workspace runs and nothing is under way with it.
func Running(state workspace.State) bool {
	return state.Phase == workspace.Running && state.Operation == nil
}
