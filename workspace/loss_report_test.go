package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAffectedBy(t *testing.T) {
	lost := time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	head := &Commit{Token: 3, Sequence: 2, Snapshot: "aaaa", Time: lost.Add(-40 * time.Second)}
	instance := &Instance{Token: 3, Node: "node-1", Began: lost.Add(-time.Hour)}
	seconds := func(n float64) *float64 { return &n }
	waits := State{Name: "atlas", Owner: "ada", Phase: Recovering, Reason: "it waits", Head: head, Instance: instance, Loss: &Loss{Node: "node-1", At: lost}}
	for name, test := range map[string]struct {
		change func(*State)
		want   *Affected
	}{
		"it waits": {func(*State) {}, &Affected{Node: "node-1", LostAt: lost, LostWorkSeconds: seconds(40), What: "it waits"}},
		"nothing to go on from": {func(s *State) { s.Head = nil },
			&Affected{Node: "node-1", LostAt: lost, What: "it waits"}},
		"its content survived": {func(s *State) { s.Instance = &Instance{Token: 3, Node: "node-1", Volume: "v"} },
			&Affected{Node: "node-1", LostAt: lost, LostWorkSeconds: seconds(0), What: "it waits"}},
		"only its content is gone": {func(s *State) { s.Loss = &Loss{Node: "node-1", At: lost, Gone: true}; s.Reason = "" },
			&Affected{Node: "node-1", LostAt: lost, LostWorkSeconds: seconds(40), What: "node node-1 is there without its content"}},
		"another node is lost": {func(s *State) { s.Loss = &Loss{Node: "node-2", At: lost} }, nil},
		"it stayed":            {func(s *State) { s.Loss = nil }, nil},
		"it went on": {func(s *State) {
			s.Loss, s.Phase = nil, Running
			s.Instance = &Instance{Token: 4, Node: "node-2"}
			s.Left = []Kept{{Node: "node-1", Token: 3}}
			s.Recovery = &Recovery{From: "node-1", To: "node-2", Token: 4, Snapshot: "aaaa", LostAt: lost, LostWork: 40 * time.Second}
		}, &Affected{Node: "node-2", LostAt: lost, Settled: true, LostWorkSeconds: seconds(40), Saving: true, What: "node node-1 was lost; it runs on node node-2, from snapshot aaaa: at most the last 40 s of work before the loss are not in it"}},
		"it went on, and the rest was saved": {func(s *State) {
			s.Loss, s.Phase = nil, Running
			s.Instance = &Instance{Token: 5, Node: "node-2"}
			s.Salvaged = []Salvaged{
				{Node: "node-1", Token: 2, Snapshot: "earlier", Saved: lost.Add(-time.Hour)},
				{Node: "node-1", Token: 4, Snapshot: "rest", Saved: lost.Add(time.Minute)},
				{Node: "node-2", Token: 3, Snapshot: "another", Saved: lost.Add(time.Hour)},
			}
			s.Recovery = &Recovery{From: "node-1", To: "node-2", Token: 5, Snapshot: "aaaa", LostAt: lost, LostWork: time.Second}
		}, &Affected{Node: "node-2", LostAt: lost, Settled: true, LostWorkSeconds: seconds(1), Recovered: "rest", What: "node node-1 was lost; it runs on node node-2, from snapshot aaaa: at most the last 1 s of work before the loss are not in it"}},
		"it went on after the loss of another, and has something there": {func(s *State) {
			s.Loss, s.Left = nil, []Kept{{Node: "node-1", Token: 1}}
			s.Instance = &Instance{Token: 4, Node: "node-3"}
			s.Recovery = &Recovery{From: "node-2", LostAt: lost}
		}, &Affected{Node: "node-3", Settled: true, Saving: true, What: "it went on without what node node-1 has, and was stopped or started again since"}},
		"it was stopped since, and has something there": {func(s *State) {
			s.Loss, s.Instance, s.Phase, s.Left = nil, nil, Stopped, []Kept{{Node: "node-1", Token: 3}}
		}, &Affected{Settled: true, Saving: true, What: "it went on without what node node-1 has, and was stopped or started again since"}},
		"it was stopped since, and has something elsewhere": {func(s *State) {
			s.Loss, s.Instance, s.Left = nil, nil, []Kept{{Node: "node-2", Token: 3}}
		}, nil},
		"another is being made": {func(s *State) {
			s.Loss.Replaced, s.Instance = true, &Instance{Token: 4, Node: "node-2", Began: lost.Add(time.Minute)}
			s.Head = &Commit{Token: 4, Snapshot: "aaaa", Time: lost.Add(time.Minute)}
			s.Recovery = &Recovery{From: "node-1", LostAt: lost, LostWork: 40 * time.Second}
		}, &Affected{Node: "node-2", LostAt: lost, LostWorkSeconds: seconds(40), What: "it waits"}},
		"another is lost since": {func(s *State) {
			s.Loss = &Loss{Node: "node-2", At: lost.Add(time.Hour)}
			s.Recovery = &Recovery{From: "node-1", To: "node-2", Volume: "v", LostAt: lost}
		}, &Affected{Node: "node-1", LostAt: lost, Settled: true, LostWorkSeconds: seconds(0), What: "node node-1 was lost; it runs on node node-2, with the files as they were on shared volume v: nothing was lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			state, loss := waits, *waits.Loss
			state.Loss = &loss
			test.change(&state)
			if test.want != nil {
				test.want.Name, test.want.Owner, test.want.State = state.Name, state.Owner, state.Phase
			}
			require.Equal(t, test.want, AffectedBy(state, "node-1"))
		})
	}
}
