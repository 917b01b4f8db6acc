package activities

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"

	"holdfast/storage"
	"holdfast/workspace"
)

// counted counts the questions that are put to workflows.
type counted struct {
	*fakeTemporal
	mutex sync.Mutex
	asked map[string]int
}

func (c *counted) QueryWorkflow(ctx context.Context, workflowID, runID, query string, args ...any) (converter.EncodedValue, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.asked[workflowID]++
	return c.fakeTemporal.QueryWorkflow(ctx, workflowID, runID, query, args...)
}

// Many starts at once are spread over the nodes although none of them is recorded yet, and cost a question each, not one for
// each node.
func TestPlaceManyAtOnce(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := &counted{fakeTemporal: &fakeTemporal{states: map[string]any{}}, asked: map[string]int{}}
	const nodes, starts = 10, 60
	for i := range nodes {
		name := fmt.Sprintf("n-%d", i)
		f.nodes = append(f.nodes, name)
		f.states[workspace.NodeWorkflowID(name)] = workspace.NodeState{Phase: workspace.NodeReady, Info: workspace.NodeInfo{Name: name, Recipient: "r"}}
	}
	r.control.Client = f
	r.placeMany("n-3", 2) // it holds some already
	chosen := map[string]int{}
	var mutex sync.Mutex
	var all sync.WaitGroup
	for i := range starts {
		all.Go(func() {
			result, err := r.control.Place(t.Context(), workspace.PlaceInput{Name: fmt.Sprintf("w-%d", i)})
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				t.Error(err)
			}
			chosen[result.Node]++
		})
	}
	all.Wait()
	for i := range nodes {
		name, want := fmt.Sprintf("n-%d", i), 6.0
		if name == "n-3" {
			want = 4.0
		}
		require.InDelta(t, want, chosen[name], 1, "%s of %v", name, chosen)
	}
	total := 0
	for _, count := range f.asked {
		total += count
	}
	require.Less(t, total, 3*starts, "questions to workflows")
}

// What is known of all nodes may be a moment old; the node that is chosen is asked at that moment, and nobody is told that
// there is none because of what was known before.
func TestPlaceIsSureOfTheNode(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady, "node-2": workspace.NodeLost})
	change := func(name string, phase workspace.NodePhase, cordoned string) {
		id := workspace.NodeWorkflowID(name)
		state := f.states[id].(workspace.NodeState)
		state.Phase, state.Cordoned = phase, cordoned
		f.states[id] = state
	}
	place := func() (workspace.PlaceResult, error) {
		return run(r, r.control.Place, workspace.PlaceInput{Name: "atlas"})
	}
	result, err := place()
	require.NoError(t, err)
	require.Equal(t, "node-1", result.Node)

	change("node-1", workspace.NodeReady, "ada") // a moment later
	_, err = place()
	typed(t, err, workspace.ErrorNoNode)
	require.ErrorContains(t, err, "node-1 was cordoned by ada")

	change("node-2", workspace.NodeReady, "") // and another
	result, err = place()
	require.NoError(t, err)
	require.Equal(t, "node-2", result.Node)

	change("node-2", workspace.NodeSuspect, "")
	change("node-1", workspace.NodeReady, "")
	result, err = place()
	require.NoError(t, err)
	require.Equal(t, "node-1", result.Node)
}
