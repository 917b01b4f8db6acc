package worker

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"holdfast/engine"
	"holdfast/workspace"
)

// gate is an engine that keeps whoever asks for the instances of some workspaces waiting until it is opened, and counts how many
// wait at once.
type gate struct {
	engine.Engine
	mutex  sync.Mutex
	behind map[string]bool // workspaces, by id
	open   chan struct{}
	inside int
	most   int
	passed map[string]bool
}

func (g *gate) List(ctx context.Context, labels map[string]string) ([]engine.Instance, error) {
	id := labels[engine.LabelWorkspace]
	g.mutex.Lock()
	behind := g.behind[id]
	if behind {
		g.inside++
		g.most = max(g.most, g.inside)
		g.passed[id] = true
	}
	g.mutex.Unlock()
	if !behind {
		return g.Engine.List(ctx, labels)
	}
	defer func() {
		g.mutex.Lock()
		defer g.mutex.Unlock()
		g.inside--
	}()
	select {
	case <-g.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return g.Engine.List(ctx, labels)
}

func (g *gate) counts() (inside, most, passed int) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.inside, g.most, len(g.passed)
}

// A19: a node returns with what fifty replaced instances had. It takes up two at a time, whatever it has room for, and each of the
// others waits only for a while before it does what else it has to; a workspace that is current is started and stopped meanwhile as if
// they were not there. In the end each has had its turn.
func TestManyReplacedInstancesStarveNobody(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	const many = 50
	g := &gate{behind: map[string]bool{}, passed: map[string]bool{}, open: make(chan struct{})}
	var names []string
	states := map[string]*workspace.State{}
	for i := range many {
		name := fmt.Sprintf("returned-%d", i)
		state := &workspace.State{
			Name: name, ID: workspace.NewID(), Owner: "ada", Created: time.Now(), Phase: workspace.Stopped, Since: time.Now(), Token: 2,
			Head: &workspace.Commit{Token: 2, Snapshot: "of the instance that took its place"},
			Left: []workspace.Kept{{Node: "node-1", Token: 1, Replaced: true, Back: true, Sealed: []byte("sealed"), Why: "its node was lost"}},
		}
		g.behind[state.ID] = true
		names, states[name] = append(names, name), state
	}
	lease, _ := s.agent(func(config *NodeConfig) {
		g.Engine = config.Engine
		config.Engine = g
	})
	live(t, lease)
	s.nodeIs(workspace.NodeReady)
	for _, name := range names {
		_, err := s.client.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: workspace.WorkflowID(name), TaskQueue: workspace.ControlQueue},
			workspace.WorkspaceWorkflow, workspace.Input{Name: name, State: states[name]})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { inside, _, _ := g.counts(); return inside == 2 }, patience, 20*time.Millisecond)

	began := time.Now()
	s.start()
	s.stop()
	t.Logf("a current workspace was started and stopped in %s beside them", time.Since(began).Round(time.Millisecond))
	look := func(name string) workspace.State {
		var state workspace.State
		require.Eventually(t, func() bool { return s.query(workspace.WorkflowID(name), &state) == nil }, patience, 50*time.Millisecond)
		return state
	}
	counting := func(is func(workspace.State) bool) (n int) {
		for _, name := range names {
			if is(look(name)) {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool {
		return counting(func(state workspace.State) bool { return !state.Left[0].Next.IsZero() && len(state.Recent) == 0 }) == many-2
	}, patience, time.Second, "who waits does not wait for ever")

	close(g.open)
	require.Eventually(t, func() bool {
		return counting(func(state workspace.State) bool { return !state.Left[0].Back && state.Operation == nil }) == many
	}, patience, time.Second, "each has its turn")
	_, most, passed := g.counts()
	require.Equal(t, 2, most)
	require.Equal(t, many, passed)
	require.Contains(t, look(names[0]).Left[0].Why, "the node holds no such content", "that there was nothing is told, and nothing is removed")
}
