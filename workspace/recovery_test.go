package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDecideRecovery(t *testing.T) {
	began := lossTime.Add(-time.Hour)
	state := func(change func(*State)) State {
		s := State{
			Name: "atlas", Phase: Running, Instance: &Instance{Token: 2, Node: "a", Began: began},
			Head: &Commit{Token: 2, Sequence: 3, Snapshot: "s", Time: lossTime.Add(-45 * time.Second)},
			Loss: &Loss{Node: "a", At: lossTime, Heard: lossTime.Add(-25 * time.Second)},
		}
		if change != nil {
			change(&s)
		}
		return s
	}
	look := func(change func(*LookAtNodeResult)) LookAtNodeResult {
		l := LookAtNodeResult{Known: true, Node: lostAt("a", 0)}
		if change != nil {
			change(&l)
		}
		return l
	}
	held := Brake{Held: true, Until: lossTime.Add(time.Minute), Why: "a storm"}
	for name, test := range map[string]struct {
		state State
		look  LookAtNodeResult
		after time.Duration
		want  RecoveryAction
		until time.Duration
	}{
		"as long as the snapshot is old":      {state: state(nil), look: look(nil), want: RecoveryWait, until: 45 * time.Second},
		"then it moves":                       {state: state(nil), look: look(nil), after: 45 * time.Second, want: RecoveryMove},
		"an old snapshot":                     {state: state(func(s *State) { s.Head.Time = began }), look: look(nil), after: time.Minute, want: RecoveryWait, until: 2 * time.Minute},
		"a fresh snapshot":                    {state: state(func(s *State) { s.Head.Time = lossTime }), look: look(nil), want: RecoveryWait, until: 5 * time.Second},
		"the node is back":                    {state: state(nil), look: LookAtNodeResult{Known: true, Node: nodeNamed("a", NodeReady)}, after: time.Hour, want: RecoveryStay},
		"the node is being offered its lease": {state: state(nil), look: LookAtNodeResult{Known: true, Node: nodeNamed("a", NodeSuspect)}, want: RecoveryWait, until: 15 * time.Second},
		"the agent was stopped":               {state: state(nil), look: LookAtNodeResult{Known: true, Node: nodeNamed("a", NodeLost)}, after: time.Hour, want: RecoveryWait, until: time.Hour + time.Minute},
		"the node is not known":               {state: state(nil), look: LookAtNodeResult{}, want: RecoveryWait, until: 15 * time.Second},
		"no snapshot":                         {state: state(func(s *State) { s.Head = nil }), look: look(nil), after: time.Hour, want: RecoveryBlock},
		"no snapshot, and the node is dead":   {state: state(func(s *State) { s.Head = nil }), look: look(func(l *LookAtNodeResult) { l.Node.Loss.Dead = "ada" }), want: RecoveryBlock},
		"the node is dead":                    {state: state(nil), look: look(func(l *LookAtNodeResult) { l.Node.Loss.Dead, l.Brake = "ada", held }), want: RecoveryMove},
		"the brake":                           {state: state(nil), look: look(func(l *LookAtNodeResult) { l.Brake = held }), after: 50 * time.Second, want: RecoveryWait, until: time.Minute},
		"the brake, looked at now and then":   {state: state(nil), look: look(func(l *LookAtNodeResult) { l.Brake = Brake{Held: true} }), after: time.Hour, want: RecoveryWait, until: time.Hour + time.Minute},
		"the brake, after minutes":            {state: state(nil), look: look(func(l *LookAtNodeResult) { l.Brake = Brake{Held: true} }), after: 4 * time.Minute, want: RecoveryWait, until: 4*time.Minute + 30*time.Second},
		"replaced, though the node is back":   {state: state(func(s *State) { s.Loss.Replaced = true }), look: LookAtNodeResult{Known: true, Node: nodeNamed("a", NodeReady)}, want: RecoveryMove},
		"replaced, and the brake":             {state: state(func(s *State) { s.Loss.Replaced = true }), look: look(func(l *LookAtNodeResult) { l.Brake = held }), after: 50 * time.Second, want: RecoveryWait, until: time.Minute},
		"no loss":                             {state: state(func(s *State) { s.Loss = nil }), look: look(nil), want: RecoveryStay},
	} {
		t.Run(name, func(t *testing.T) {
			decision := DecideRecovery(test.state, test.look, lossTime.Add(test.after))
			require.Equal(t, test.want, decision.Action, "%+v", decision)
			if test.want == RecoveryWait {
				require.Equal(t, lossTime.Add(test.until), decision.Until)
				require.NotEmpty(t, decision.Why)
			}
		})
	}
}

// What was lost is told by when the content was last known to be in a snapshot.
func TestLostWork(t *testing.T) {
	began := lossTime.Add(-time.Hour)
	for name, test := range map[string]struct {
		head    *Commit
		adopted uint64
		want    time.Duration
	}{
		"a snapshot of this instance":             {head: &Commit{Token: 2, Sequence: 1, Time: lossTime.Add(-time.Minute)}, want: time.Minute},
		"only the one that it was made of":        {head: &Commit{Token: 2, Time: began.Add(-100 * time.Hour)}, want: time.Hour},
		"adopted content, newer than the version": {head: &Commit{Token: 2, Time: began.Add(-time.Hour)}, adopted: 1, want: 2 * time.Hour},
		"none at all":          {want: time.Hour},
		"taken after the loss": {head: &Commit{Token: 2, Sequence: 1, Time: lossTime.Add(time.Second)}, want: 0},
	} {
		state := State{Instance: &Instance{Token: 2, Began: began, Adopted: test.adopted}, Head: test.head}
		require.Equal(t, test.want, LostWork(state, lossTime), name)
	}
}

// D7: why says what is waited for, what it would cost, and how to go on.
func TestExplainLoss(t *testing.T) {
	state := State{
		Name: "atlas", Phase: Recovering, Since: lossTime, Instance: &Instance{Token: 2, Node: "a", Began: lossTime.Add(-time.Hour)},
		Head: &Commit{Token: 2, Sequence: 3, Snapshot: "0123456789", Time: lossTime.Add(-65 * time.Second)},
		Loss: &Loss{Node: "a", At: lossTime, Heard: lossTime.Add(-25 * time.Second), Waiting: "held: a storm", NextLook: lossTime.Add(20 * time.Second)},
	}
	e := Explain(state, nil, lossTime.Add(5*time.Second))
	require.Contains(t, e.Doing, "node a is lost since 12:00:00 UTC. It waits: held: a storm. It is looked at again in 15 s.")
	require.Contains(t, e.Safe[0], "on node a (instance 2)")
	require.Contains(t, e.Safe[2], "at most the last 65 s of work before 12:00:00 UTC")
	require.Contains(t, e.Can[0].Command, "holdfast start atlas --accept-version 0123456789")

	state.Phase, state.Loss = Running, nil
	state.Instance.Node = "b"
	state.Recovery = &Recovery{From: "a", To: "b", Snapshot: "0123456789", LostWork: 39500 * time.Millisecond}
	e = Explain(state, nil, lossTime)
	require.Contains(t, e.Safe[2], "node a was lost; it runs on node b, from snapshot 01234567: at most the last 40 s of work before the loss are not in it.")
	require.Contains(t, (&Recovery{From: "a", To: "b"}).Words(), "nothing was lost")
}
