package workflows_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// What a shared volume adds to the pretended fleet: nodes that reach it, their guard processes, and an eye on that nothing
// else works on a content that a node takes over or starts.

const volume, nodeThree = "abcdefghijklmnopqrstuvwxyz", "node-3"

// pausedAfter is how long after its last beat a node's guard process pauses what it runs.
const pausedAfter = 2 * time.Minute

func startShared() workspace.StartRequest {
	request := start()
	request.Spec.Volume.Kind = workspace.VolumeShared
	return request
}

// sharing gives nodes a shared volume and a guard process.
func (w *world) sharing(nodes ...string) {
	for _, name := range nodes {
		node := w.nodes[name]
		if node.Info.Name == "" {
			node = workspace.NodeState{Info: workspace.NodeInfo{Name: name}, Phase: workspace.NodeReady, Epoch: 1}
		}
		node.Info.Volume, node.Info.Guarded, node.Info.PauseAfter = &workspace.NodeVolume{ID: volume, Dir: "/shared"}, true, pausedAfter
		w.nodes[name] = node
	}
}

// runningShared is a workspace on the shared volume that runs on node-1, was never backed up, and whose node is lost after an
// hour: beaten 25 s before.
func runningShared(t *testing.T) *world {
	w := newWorld(t)
	w.sharing(nodeOne, nodeTwo)
	w.ask(0, workspace.UpdateStart, startShared())
	w.work(30 * time.Minute)
	w.loseShared(time.Hour, nodeOne, true)
	return w
}

// loseShared loses a node, with what was last heard of its guard process.
func (w *world) loseShared(when time.Duration, name string, guarded bool) {
	w.at(when, func() { w.loseSharedNow(name, guarded) })
}

func (w *world) loseSharedNow(name string, guarded bool) {
	w.mutex.Lock()
	node := w.nodes[name]
	node.Guard = workspace.NodeGuard{Beaten: w.environment.Now().Add(-25 * time.Second)}
	if guarded {
		node.Guard.Guarded, node.Guard.PauseAfter = true, pausedAfter
	}
	w.nodes[name] = node
	w.mutex.Unlock()
	w.loseNow(name)
}

// fenced is when FenceOf says so of a node that is lost at a time.
func fenced(lost time.Duration) time.Duration {
	return lost - 25*time.Second + pausedAfter + workspace.FenceMargin
}

func (w *world) saysDead(when time.Duration, name string) {
	w.at(when, func() {
		w.mutex.Lock()
		node := w.nodes[name]
		loss := *node.Loss
		loss.Dead = "ada"
		node.Loss = &loss
		w.nodes[name] = node
		w.mutex.Unlock()
		w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: name, Epoch: 1, Lost: true, At: loss.At, Heard: loss.Heard, Word: "ada"})
	})
}

// alone says that somebody else works on the content of the volume at a moment when it must not be so: its instance runs, and
// neither its guard process nor a person keeps it from working (A5, A12).
func (w *world) alone(target workspace.Target) {
	for where, runs := range w.runs {
		node, _, _ := strings.Cut(where, "/")
		state := w.nodes[node]
		dead := state.Loss != nil && state.Loss.Dead != ""
		now := time.Now()
		if w.environment != nil {
			now = w.environment.Now()
		}
		paused := state.Phase != workspace.NodeReady && state.Guard.Guarded && !now.Before(state.Guard.Beaten.Add(pausedAfter))
		if runs && node != target.Node && !dead && !paused {
			w.violated = append(w.violated, fmt.Sprintf("node %s takes instance %d while %s is at work", target.Node, target.Token, where))
		}
	}
}

// leaves has a node be lost, long ago, which had a guard process, and tells the workspace.
func (s *scene) leaves(node string) {
	s.locked(func() {
		state, ago := s.nodes[node], time.Now().Add(-time.Hour)
		state.Phase, state.Loss = workspace.NodeLost, &workspace.NodeLoss{At: ago, Heard: ago, Epoch: 1}
		state.Guard = workspace.NodeGuard{Guarded: true, PauseAfter: pausedAfter, Beaten: ago}
		s.nodes[node] = state
	})
	s.signal(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: 1, Lost: true, At: time.Now(), Heard: time.Now()})
}

// returns has it return with its volume, and waits until it has nothing left of the workspace.
func (s *scene) returns(node string) {
	s.locked(func() {
		state := s.nodes[node]
		state.Phase, state.Loss = workspace.NodeReady, nil
		s.nodes[node] = state
	})
	s.signal(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: 2})
	s.until("cleared", func(state workspace.State) bool { return state.Operation == nil && len(state.Left) == 0 })
}

// runsShared asserts that the workspace runs on a node with the volume's content, started once more and otherwise as it was.
func (w *world) runsShared(state *workspace.State, node, content string) {
	w.t.Helper()
	require.Equal(w.t, workspace.Running, state.Phase, "%+v\n%v", state, w.calls)
	require.Equal(w.t, node, state.Instance.Node)
	require.Equal(w.t, volume, state.Instance.Volume)
	require.Equal(w.t, content, w.content[fmt.Sprintf("%s/%d", volume, state.Instance.Token)], "%v", w.content)
	require.Len(w.t, w.content, 1, "the content is there once")
	require.Nil(w.t, state.Kept)
	require.Nil(w.t, state.Block)
	require.Nil(w.t, state.Loss)
}
