package workspace

import (
	"strings"
	"testing"
	"time"
)

var (
	drainBegan = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	drainPlan  = DrainPlan{ID: "d1", By: "ada", Began: drainBegan, Parallel: 4, Deadline: drainBegan.Add(time.Hour)}
)

// runningOn is a workspace that has run since before the drain.
func runningOn(node string) State {
	return State{Name: "web", Phase: Running, Instance: &Instance{Node: node, Token: 3, Began: drainBegan.Add(-time.Hour)}, Placed: []Placed{{node, 3}}}
}

func TestDecideDrain(t *testing.T) {
	ended := func(id string, kind OperationKind, began, took time.Duration, failed ErrorType) Operation {
		return Operation{ID: id, Kind: kind, Began: drainBegan.Add(began), Ended: drainBegan.Add(began + took), Failed: failed != "", ErrorType: failed, Error: "why not"}
	}
	for name, test := range map[string]struct {
		change  func(*State)
		plan    func(*DrainPlan)
		at      time.Duration // after it began
		gone    bool          // the catalog does not place it there
		verdict DrainVerdict
		says    string
		again   time.Duration
		only    bool
		to      string
	}{
		"runs there":     {verdict: DrainMove},
		"runs elsewhere": {change: func(s *State) { s.Instance.Node = "n2"; s.Placed = nil }, gone: true, verdict: DrainGone, to: "n2"},
		"is stopped":     {change: func(s *State) { *s = State{Name: "web", Phase: Stopped} }, gone: true, verdict: DrainGone},
		"is being moved": {change: func(s *State) { s.Operation = &Operation{ID: "drain-d1-x", Kind: OperationMove, Step: StepBackup} }, verdict: DrainUnder, says: "backing up"},
		"is to be moved": {change: func(s *State) { s.Waiting = []Operation{{ID: "drain-d1-x", Kind: OperationMove}} }, verdict: DrainUnder},
		"has left, but its move goes on": {change: func(s *State) {
			s.Instance, s.Placed, s.Operation = nil, nil, &Operation{ID: "drain-d1-x", Kind: OperationMove, Step: StepContent}
		}, gone: true, verdict: DrainUnder},
		"a person moves it":      {change: func(s *State) { s.Operation = &Operation{ID: "p", Kind: OperationMove, Step: StepBackup} }, verdict: DrainWait, says: "its move goes first"},
		"a person stops it":      {change: func(s *State) { s.Waiting = []Operation{{ID: "p", Kind: OperationStop}} }, verdict: DrainWait, says: "its stop goes first"},
		"another drain moves it": {change: func(s *State) { s.Operation = &Operation{ID: "drain-d0-x", Kind: OperationMove} }, verdict: DrainWait},
		"a timer snapshots it":   {change: func(s *State) { s.Operation = &Operation{ID: "s", Kind: OperationSnapshot} }, verdict: DrainMove},
		"is being started there": {change: func(s *State) {
			s.Instance, s.Placed, s.Operation = nil, nil, &Operation{Kind: OperationStart, Step: StepRecord}
		}, verdict: DrainWait, says: "its start goes first"},
		"is blocked":        {change: func(s *State) { s.Phase, s.Block = Blocked, &Block{Message: "403", Mend: "mend it"} }, verdict: DrainWait, says: "403; mend: mend it"},
		"its node was lost": {change: func(s *State) { s.Loss = &Loss{Node: "n1"} }, verdict: DrainWait, says: "being found out"},
		"a store is late":   {change: func(s *State) { s.Instance, s.Kept = nil, &Kept{Node: "n1", Why: "not all stores hold it"} }, verdict: DrainWait, says: "its newest content is kept there: not all stores"},
		"content is held":   {change: func(s *State) { s.Instance, s.Kept = nil, &Kept{Node: "n1", Held: true, Why: "removing failed"} }, verdict: DrainWait, says: "removing failed; mend: `holdfast why web`"},
		"a person started it there": {change: func(s *State) {
			s.Instance.Began = drainBegan.Add(5 * time.Minute)
			s.Recent = []Operation{ended("p", OperationStart, 4*time.Minute, 2*time.Minute, "")}
		}, at: 10 * time.Minute, verdict: DrainWait, says: "it is left to them; mend: `holdfast move web`"},
		"it was being started there when the drain began": {change: func(s *State) {
			s.Instance.Began = drainBegan.Add(time.Second)
			s.Recent = []Operation{ended("p", OperationStart, -time.Second, time.Minute, "")}
		}, at: 10 * time.Minute, verdict: DrainMove},
		"the drain's own move brought it back": {change: func(s *State) {
			s.Instance.Began = drainBegan.Add(2 * time.Minute)
			s.Recent = []Operation{ended("drain-d1-x", OperationMove, time.Minute, 2*time.Minute, ErrorOmissions)}
		}, at: 10 * time.Minute, verdict: DrainMove, says: "why not"},
		"it failed just now": {change: func(s *State) {
			s.Recent = []Operation{ended("drain-d1-x", OperationMove, 0, time.Second, ErrorNoNode)}
		},
			at: 10 * time.Second, verdict: DrainWait, says: "why not; tried again at 12:00:16 UTC; mend: make room", again: 16 * time.Second},
		"it has failed for minutes": {change: func(s *State) {
			s.Recent = []Operation{ended("drain-d1-x", OperationMove, 4*time.Minute, 0, ErrorNotStored)}
		},
			at: 5 * time.Minute, verdict: DrainWait, says: "holdfast doctor", again: 6 * time.Minute},
		"it has failed for long": {change: func(s *State) {
			s.Recent = []Operation{ended("drain-d1-x", OperationMove, 40*time.Minute, 0, ErrorStartFailed)}
		},
			at: 44 * time.Minute, verdict: DrainWait, again: 45 * time.Minute},
		"it failed, and its time has come": {change: func(s *State) {
			s.Recent = []Operation{ended("drain-d1-x", OperationMove, 0, time.Second, ErrorNoNode)}
		},
			at: 20 * time.Second, verdict: DrainMove, says: "why not"},
		"another drain's failure": {change: func(s *State) {
			s.Recent = []Operation{ended("drain-d0-x", OperationMove, 0, time.Second, ErrorNoNode)}
		},
			at: 2 * time.Second, verdict: DrainMove},
		"past the deadline it goes on":          {at: 2 * time.Hour, verdict: DrainMove},
		"it is stopped when that was asked for": {plan: func(p *DrainPlan) { p.Stop = true }, at: 2 * time.Hour, verdict: DrainStop},
		"it is not stopped before the deadline": {plan: func(p *DrainPlan) { p.Stop = true }, at: 30 * time.Minute, verdict: DrainMove},
		"what could not be moved is stopped": {plan: func(p *DrainPlan) { p.Stop = true },
			change: func(s *State) {
				s.Recent = []Operation{ended("drain-d1-x", OperationMove, 59*time.Minute, time.Minute, ErrorNoNode)}
			}, at: time.Hour, verdict: DrainStop},
		"what a replaced instance had is being saved": {change: func(s *State) {
			s.Instance.Node, s.Left = "n2", []Kept{{Node: "n1", Token: 2, Replaced: true, Back: true}}
		}, verdict: DrainWait, says: "is being saved"},
		"what a replaced instance had could not be saved": {change: func(s *State) {
			s.Instance.Node, s.Left = "n2", []Kept{{Node: "n1", Token: 2, Replaced: true, Why: "damaged"}}
		}, verdict: DrainWait, says: "damaged; mend: start the node's agent"},
		"what a replaced instance had is saved": {change: func(s *State) {
			s.Instance.Node, s.Left = "n2", []Kept{{Node: "n1", Token: 2, Replaced: true, Snapshot: "s", Why: "saved as s"}}
		}, verdict: DrainLeft, says: "saved as s"},
		"what a person went on without": {change: func(s *State) {
			s.Instance.Node, s.Left = "n2", []Kept{{Node: "n1", Token: 2, Why: "gone on without"}}
		}, verdict: DrainLeft, says: "gone on without", only: true},
		"it was deleted":     {change: func(s *State) { *s = State{Name: "web", Phase: Deleted} }, verdict: DrainLeft, says: "it was deleted", only: true},
		"it is still placed": {change: func(s *State) { s.Instance.Node = "n2" }, verdict: DrainWait, says: "still placed there"},
	} {
		t.Run(name, func(t *testing.T) {
			state, plan := runningOn("n1"), drainPlan
			if test.change != nil {
				test.change(&state)
			}
			if test.plan != nil {
				test.plan(&plan)
			}
			step := DecideDrain(state, "n1", !test.gone, plan, drainBegan.Add(test.at))
			var again time.Time
			if test.again != 0 {
				again = drainBegan.Add(test.again)
			}
			if step.Verdict != test.verdict || !strings.Contains(step.Words(), test.says) || !step.Again.Equal(again) || step.Only != test.only || step.To != test.to || step.Name != "web" {
				t.Errorf("got %+v: %s", step, step.Words())
			}
		})
	}
}

func TestDrainRequest(t *testing.T) {
	for request, fine := range map[DrainRequest]bool{
		{}: true, {Parallel: 64, Deadline: time.Hour, Stop: true}: true, {Parallel: -1}: false, {Parallel: 65}: false, {Deadline: -1}: false, {Stop: true}: false,
	} {
		if err := request.Validate(); (err == nil) != fine {
			t.Errorf("%+v: %v", request, err)
		}
	}
}

func TestDrainWords(t *testing.T) {
	d := &NodeDrain{DrainPlan: drainPlan}
	says := func(words ...string) {
		t.Helper()
		for _, word := range words {
			if got := d.Words(drainBegan.Add(2 * time.Hour)); !strings.Contains(got, word) {
				t.Errorf("%q is missing in %q", word, got)
			}
		}
	}
	says("being drained by ada")
	d.Looked, d.On, d.Moved, d.Stopped = drainBegan, []string{"a", "web"}, 3, 1
	d.Moving, d.Waiting = []DrainItem{{Name: "a", Why: "backing up"}}, []DrainItem{{Name: "web", Why: "no room", Mend: "make some"}}
	says("later than its deadline", "3 moved", "1 gone and not running", "1 being moved", "2 still there")
	for name, want := range map[string]string{"a": "being moved (backing up)", "web": "no room; mend: make some", "c": "when its turn comes"} {
		if got := d.Of(name); !strings.Contains(got, want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	d.Drained = drainBegan
	says("drained: nothing is on it")
	d.LeftCount = 2
	says("left on its disk: 2")
	d.Ended, d.End, d.Why = drainBegan, DrainNodeLost, "the node was lost"
	says("was drained, and is gone since")
	d.Drained = time.Time{}
	says("its drain ended: the node was lost", "2 still there")
	if d.Of("web") != "" || (*NodeDrain)(nil).Words(drainBegan) != "" || (*NodeDrain)(nil).Of("web") != "" {
		t.Error("an ended drain does nothing about anybody")
	}
}
