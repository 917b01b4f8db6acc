package workflows_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// constants are the values of a file's string constants whose names begin with the prefix.
func constants(t *testing.T, file, prefix string) (values []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if rest, found := strings.CutPrefix(name.Name, prefix); !found || rest == "" || i >= len(spec.Values) {
				continue
			}
			if literal, ok := spec.Values[i].(*ast.BasicLit); ok && literal.Kind == token.STRING {
				value, err := strconv.Unquote(literal.Value)
				require.NoError(t, err)
				values = append(values, value)
			}
		}
		return true
	})
	require.NotEmpty(t, values)
	return values
}

// TestNoActivityIsForgotten: an activity that is added is in the matrix of failures, or named here with where it fails.
func TestNoActivityIsForgotten(t *testing.T) {
	elsewhere := map[string]string{
		workspace.ActivityRecordDeleted:   "TestDeleteFailingWithEveryError",
		workspace.ActivityFindInstance:    "find_test.go",
		workspace.ActivityAnnounceNode:    "the node's workflow, node_lost_test.go",
		workspace.ActivityDrainNode:       "the node's workflow, node_drain_test.go",
		workspace.ActivityForget:          "retention_test.go",
		workspace.ActivityPrune:           "retention_test.go",
		workspace.ActivityHoldLease:       "the node's workflow, node_test.go",
		workspace.ActivityGrantAccess:     "a workflow that does nothing else, requests.go",
		workspace.ActivityListSnapshots:   "a workflow that does nothing else, requests.go",
		workspace.ActivityDescribeControl: "a workflow that does nothing else, requests.go",
	}
	for _, name := range constants(t, "../workspace/names.go", "Activity") {
		_, named := elsewhere[name]
		require.NotEqual(t, named, slices.Contains(everyActivity, name), "activity %s is to be in everyActivity or in elsewhere", name)
		delete(elsewhere, name)
	}
	require.Empty(t, elsewhere, "no such activities")
}

// TestNoErrorIsForgotten: an error type that is added is thrown by every activity in the matrix, or only workflows have it.
func TestNoErrorIsForgotten(t *testing.T) {
	byWorkflows := []string{string(workspace.ErrorInterrupted), string(workspace.ErrorOlderVersion), string(workspace.ErrorNameTaken)}
	thrown := everyError()
	for _, kind := range constants(t, "../workspace/errors.go", "Error") {
		_, isThrown := thrown[kind]
		require.NotEqual(t, slices.Contains(byWorkflows, kind), isThrown, "error type %s is to be in everyError or in byWorkflows", kind)
	}
}

// Invariants 8 and 10: whatever keeps a deletion from being recorded, before it is or after, it is not taken for done, the
// workspace is still there, and it is deleted once the cause is gone.
func TestDeleteFailingWithEveryError(t *testing.T) {
	for kind, fault := range everyError() {
		for _, lost := range []bool{false, true} {
			t.Run(kind+"/lost="+strconv.FormatBool(lost), func(t *testing.T) {
				w := newWorld(t)
				w.inject(workspace.ActivityRecordDeleted, fault, lost, 1)
				w.ask(0, workspace.UpdateStart, start())
				w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
				w.ask(2*time.Minute, workspace.UpdateDelete, workspace.DeleteRequest{})
				failing := w.look(4 * time.Hour)
				w.environment.RegisterDelayedCallback(func() { w.fail, w.after = nil, nil }, 5*time.Hour)
				w.ask(10*time.Hour, workspace.UpdateDelete, workspace.DeleteRequest{})
				w.run(20 * time.Hour)
				require.NotEqual(t, workspace.Deleted, failing.Phase)
				require.NotNil(t, failing.Head)
				require.True(t, w.fullCopy())
				require.True(t, w.environment.IsWorkflowCompleted(), "it was never deleted")
				require.NoError(t, w.environment.GetWorkflowError())
			})
		}
	}
}
