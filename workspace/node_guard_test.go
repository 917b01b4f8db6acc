package workspace

import (
	"testing"
	"time"
)

// A fence that is believed too early lets two instances write to one volume.
func TestFencedAt(t *testing.T) {
	beaten := time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	lost := func() NodeState {
		return NodeState{
			Phase: NodeLost, Loss: &NodeLoss{At: beaten.Add(15 * time.Second), Heard: beaten.Add(-time.Hour)},
			Guard: NodeGuard{Guarded: true, PauseAfter: 2 * time.Minute, Beaten: beaten},
		}
	}
	cases := map[string]struct {
		change func(*NodeState)
		want   time.Duration // after beaten; 0: never
	}{
		"a guarded node":                   {func(*NodeState) {}, 2*time.Minute + FenceMargin},
		"the guard's own time":             {func(s *NodeState) { s.Guard.PauseAfter = time.Hour }, time.Hour + FenceMargin},
		"no guard":                         {func(s *NodeState) { s.Guard.Guarded = false }, 0},
		"an agent that says nothing of it": {func(s *NodeState) { s.Guard = NodeGuard{} }, 0},
		"a guard without a time":           {func(s *NodeState) { s.Guard.PauseAfter = 0 }, 0},
		"no beat":                          {func(s *NodeState) { s.Guard.Beaten = time.Time{} }, 0},
		"a suspect":                        {func(s *NodeState) { s.Phase, s.Loss = NodeSuspect, nil }, 0},
		"it has its lease":                 {func(s *NodeState) { s.Phase, s.Loss = NodeReady, nil }, 0},
		"it is offered its lease again":    {func(s *NodeState) { s.Phase = NodeOffered }, 0},
		"its agent was stopped just now":   {func(s *NodeState) { s.Loss = nil }, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			state := lost()
			c.change(&state)
			at, ok := state.FencedAt()
			if ok != (c.want > 0) {
				t.Fatalf("got %s, %v", at, ok)
			}
			if ok && !at.Equal(beaten.Add(c.want)) {
				t.Fatalf("got %s, want %s", at.Sub(beaten), c.want)
			}
		})
	}
}
