package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"golang.org/x/time/rate"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// drained is a pretended fleet: workspaces on node-1 that do what they are asked, in their own time.
type drained struct {
	*fakeTemporal
	r     *rig
	mutex sync.Mutex
	node  workspace.NodeState
	all   map[string]*workspace.State // by name
	asked []string                    // update and name, in order
	most  int                         // of those that were under way at once
	// answer, when set, is asked before an update is taken.
	answer func(name string) error
	// lost has updates taken, and their answers lost.
	lost bool
	// asks is called at each query of a workspace, without the lock.
	asks func(name string)
}

type updated struct {
	client.WorkflowUpdateHandle
	err error
}

func (u updated) Get(context.Context, any) error { return u.err }

func (f *drained) QueryWorkflow(_ context.Context, workflowID, _, _ string, _ ...any) (converter.EncodedValue, error) {
	name, is := strings.CutPrefix(workflowID, workspace.WorkflowID(""))
	if is && f.asks != nil {
		f.asks(name)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if workflowID == workspace.NodeWorkflowID("node-1") {
		return value{f.node}, nil
	}
	if state, ok := f.all[name]; is && ok {
		return value{*state}, nil
	}
	return nil, serviceerror.NewNotFound("no such workflow")
}

func (f *drained) RecordActivityHeartbeat(context.Context, []byte, ...any) error { return nil }

func (f *drained) UpdateWorkflow(_ context.Context, options client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error) {
	name := strings.TrimPrefix(options.WorkflowID, workspace.WorkflowID(""))
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.asked = append(f.asked, options.UpdateName+" "+name)
	if f.answer != nil {
		if err := f.answer(name); err != nil {
			return updated{err: err}, nil
		}
	}
	kind := workspace.OperationMove
	switch request := options.Args[0].(type) {
	case workspace.MoveRequest:
		require.Equal(f.r.t, "node-1", request.From)
		require.Contains(f.r.t, request.Subject, "by ada")
	case workspace.StopRequest:
		require.Equal(f.r.t, "node-1", request.From)
		kind = workspace.OperationStop
	}
	f.all[name].Operation = &workspace.Operation{ID: options.UpdateID, Kind: kind, Began: time.Now(), Step: workspace.StepBackup}
	under := 0
	for _, state := range f.all {
		if state.Operation != nil {
			under++
		}
	}
	f.most = max(f.most, under)
	if f.lost {
		return nil, serviceerror.NewUnavailable("the answer is lost")
	}
	return updated{}, nil
}

// end ends what a workspace was asked for: it has left, or runs where it was.
func (f *drained) end(name string, failed workspace.ErrorType) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	state := f.all[name]
	operation := *state.Operation
	operation.Ended, operation.Failed, operation.ErrorType, operation.Error = time.Now(), failed != "", failed, "no room"
	state.Operation, state.Recent = nil, append(state.Recent, operation)
	if failed != "" {
		return
	}
	require.NoError(f.r.t, f.r.control.Catalog.ReleasePlacement(context.Background(), "node-1", state.ID, 1))
	state.Placed = nil
	if state.Instance.Node = "node-2"; operation.Kind == workspace.OperationStop {
		state.Instance, state.Phase = nil, workspace.Stopped
	}
}

// newDrained places workspaces space-00, space-01 … on node-1.
func newDrained(t *testing.T, count int) *drained {
	r := newRig(t, storage.PolicyAny)
	f := &drained{fakeTemporal: &fakeTemporal{}, r: r, all: map[string]*workspace.State{}}
	for i := range count {
		f.place(fmt.Sprintf("space-%02d", i))
	}
	f.node = workspace.NodeState{Phase: workspace.NodeReady, Cordoned: "ada", Drain: &workspace.NodeDrain{
		DrainPlan: workspace.DrainPlan{ID: "d", By: "ada", Began: time.Now().Add(-time.Second), Parallel: 3}, Round: 2,
	}}
	r.control.Client, r.control.drainPoll = f, time.Millisecond
	return f
}

func (f *drained) place(name string) *workspace.State {
	state := &workspace.State{ID: workspace.NewID(), Name: name, Phase: workspace.Running,
		Instance: &workspace.Instance{Node: "node-1", Token: 1}, Placed: []workspace.Placed{{Node: "node-1", Token: 1}}}
	f.all[name] = state
	require.NoError(f.r.t, f.r.control.Catalog.RecordInstance(f.r.t.Context(), workspace.InstanceRecord{
		WorkspaceID: state.ID, Name: name, Token: 1, Node: "node-1", Time: time.Unix(1, 0),
	}))
	return state
}

func (f *drained) round(on ...string) (workspace.DrainResult, error) { return f.reporting(0, on...) }

// reporting is a round that goes on for so long at least.
func (f *drained) reporting(report time.Duration, on ...string) (workspace.DrainResult, error) {
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetTestTimeout(3 * time.Minute)
	environment.RegisterActivity(f.r.control.DrainNode)
	value, err := environment.ExecuteActivity(f.r.control.DrainNode, workspace.DrainInput{
		Node: "node-1", Plan: f.node.Drain.DrainPlan, Round: f.node.Drain.Round, On: on, Report: report,
	})
	var result workspace.DrainResult
	if err == nil {
		err = value.Get(&result)
	}
	return result, err
}

func (f *drained) names() (names []string) {
	for name := range f.all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A round that is to tell late does not wait with the next: all are moved in it, as many at once as the plan says.
func TestDrainThatTellsLate(t *testing.T) {
	f := newDrained(t, 10)
	f.asks = func(name string) {
		f.mutex.Lock()
		under := f.all[name].Operation != nil
		f.mutex.Unlock()
		if under {
			f.end(name, "")
		}
	}
	result, err := f.reporting(time.Hour, f.names()...)
	require.NoError(t, err)
	require.Empty(t, result.On)
	require.Len(t, result.Departed, 10)
	require.Len(t, f.asked, 10)
	require.LessOrEqual(t, f.most, 3)
}

// The first round only looks, so that everybody who leaves later is counted; then all are moved, each asked once, and never
// more at once than the plan says.
func TestDrainMovesEverybodyOnce(t *testing.T) {
	f := newDrained(t, 10)
	f.node.Drain.Round = 1
	result, err := f.round()
	require.NoError(t, err)
	require.Equal(t, f.names(), result.On)
	require.Empty(t, f.asked)
	require.Len(t, result.Waiting, 10)

	looks := map[string]int{}
	f.asks = func(name string) {
		f.mutex.Lock()
		under := f.all[name].Operation != nil
		if under {
			looks[name]++
		}
		ends := under && looks[name] > 3
		f.mutex.Unlock()
		if ends {
			f.end(name, "")
		}
	}
	var departed []string
	for len(result.On) > 0 {
		f.node.Drain.Round++
		result, err = f.round(result.On...)
		require.NoError(t, err)
		for _, departure := range result.Departed {
			require.Equal(t, "node-2", departure.To)
			departed = append(departed, departure.Name)
		}
	}
	slices.Sort(departed)
	require.Equal(t, f.names(), departed)
	require.Equal(t, 3, f.most, "no more at once than the plan says, and no fewer")
	asked := slices.Clone(f.asked)
	slices.Sort(asked)
	require.Len(t, slices.Compact(asked), len(f.asked), "nobody is asked twice")
	require.Len(t, f.asked, 10)
	require.Empty(t, result.Left)
}

// One that leaves between the listing of the node and the question to it has left: nothing of it is said to be there.
func TestDrainSeesWhoLeavesWhileItLooks(t *testing.T) {
	f := newDrained(t, 1)
	f.all["space-00"].Operation = &workspace.Operation{ID: "drain-d-1", Kind: workspace.OperationMove, Step: workspace.StepContent}
	f.asks = func(name string) {
		f.mutex.Lock()
		under := f.all[name].Operation != nil
		f.mutex.Unlock()
		if under {
			f.end(name, "")
		}
	}
	result, err := f.round(f.names()...)
	require.NoError(t, err)
	require.Empty(t, result.Left)
	require.Len(t, result.Departed, 1)
	require.Equal(t, "node-2", result.Departed[0].To)
}

// What is under way counts, whoever asked for it before: also what has left the node and is not there yet.
func TestDrainCountsWhatIsUnderWay(t *testing.T) {
	f := newDrained(t, 6)
	f.node.Drain.Parallel = 2
	under := &workspace.Operation{ID: "drain-d-1", Kind: workspace.OperationMove, Step: workspace.StepContent}
	f.all["space-00"].Operation = under
	away := f.all["space-01"]
	away.Operation, away.Instance, away.Placed = under, nil, nil
	require.NoError(t, f.r.control.Catalog.ReleasePlacement(t.Context(), "node-1", away.ID, 1))
	ctx := t.Context()
	d := &drainRound{control: f.r.control, input: workspace.DrainInput{Node: "node-1", Plan: f.node.Drain.DrainPlan, Round: 2, On: f.names()}, limit: rate.NewLimiter(rate.Inf, 1), here: map[string]*drainee{}}
	require.NoError(t, d.look(ctx))
	_, err := d.fill(ctx)
	require.NoError(t, err)
	require.Empty(t, f.asked)
	require.Len(t, d.result().Moving, 2)
}

// A round of a drain that was ended, that another has followed, or whose node is not cordoned or not there, asks for nothing;
// and one that is ended in the middle asks for nothing more.
func TestDrainThatIsOverAsksForNothing(t *testing.T) {
	for name, change := range map[string]func(*workspace.NodeState){
		"ended":         func(s *workspace.NodeState) { s.Drain.Ended = time.Now() },
		"another drain": func(s *workspace.NodeState) { s.Drain.ID = "e" },
		"another round": func(s *workspace.NodeState) { s.Drain.Round++ },
		"uncordoned":    func(s *workspace.NodeState) { s.Cordoned = "" },
		"away":          func(s *workspace.NodeState) { s.Phase = workspace.NodeSuspect },
		"forgotten":     func(s *workspace.NodeState) { s.Drain = nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newDrained(t, 4)
			input := workspace.DrainInput{Node: "node-1", Plan: f.node.Drain.DrainPlan, Round: 2, On: f.names()}
			before := *f.node.Drain
			f.answer = func(string) error { change(&f.node); return nil }
			d := &drainRound{control: f.r.control, input: input, limit: rate.NewLimiter(rate.Inf, 1), here: map[string]*drainee{}, poll: time.Millisecond, report: time.Millisecond}
			require.NoError(t, d.run(t.Context()))
			require.Len(t, f.asked, 1, "%v", f.asked)

			f = newDrained(t, 4)
			f.node.Drain = &before
			change(&f.node)
			d = &drainRound{control: f.r.control, input: input, limit: rate.NewLimiter(rate.Inf, 1), here: map[string]*drainee{}, poll: time.Millisecond, report: time.Millisecond}
			require.NoError(t, d.run(t.Context()))
			require.Empty(t, f.asked)
		})
	}
}

// A person's command that came first is told, and an answer that was lost is no reason to ask again.
func TestDrainOfThoseWhoRefuseOrDoNotAnswer(t *testing.T) {
	f := newDrained(t, 2)
	f.answer = func(string) error {
		return temporal.NewNonRetryableApplicationError("workspace space: its stop goes first", string(workspace.ErrorRefused), nil)
	}
	result, err := f.round(f.names()...)
	require.NoError(t, err)
	require.Len(t, f.asked, 2)
	require.Contains(t, result.Waiting[0].Why, "its stop goes first")

	f = newDrained(t, 2)
	f.lost = true
	looks := 0
	f.asks = func(name string) {
		f.mutex.Lock()
		under := f.all[name].Operation != nil
		looks++
		ends := under && looks > 20
		f.mutex.Unlock()
		if ends {
			f.end(name, "")
		}
	}
	result, err = f.round(f.names()...)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"move space-00", "move space-01"}, f.asked)
	require.Empty(t, result.On)
	require.Len(t, result.Departed, 2)
}

// One that cannot be moved is named with its cause and its mend, is not asked again before its time, and holds up nobody.
func TestDrainNamesWhoStays(t *testing.T) {
	f := newDrained(t, 5)
	f.node.Drain.Parallel = 1
	f.asks = func(name string) {
		f.mutex.Lock()
		under := f.all[name].Operation != nil
		f.mutex.Unlock()
		switch {
		case under && name == "space-00":
			f.end(name, workspace.ErrorNoNode)
		case under:
			f.end(name, "")
		}
	}
	result, err := f.round(f.names()...)
	for err == nil && len(result.On) > 1 {
		f.node.Drain.Round++
		result, err = f.round(result.On...)
	}
	require.NoError(t, err)
	require.Equal(t, []string{"space-00"}, result.On)
	require.Contains(t, result.Waiting[0].Why, "no room")
	require.Contains(t, result.Waiting[0].Mend, "holdfast node uncordon")
	require.False(t, result.Waiting[0].Again.IsZero())
	require.Len(t, f.asked, 5)
}

// Nothing is dropped at the deadline: what runs there is moved on, or stopped when that was asked for.
func TestDrainAfterItsDeadline(t *testing.T) {
	for _, stop := range []bool{false, true} {
		f := newDrained(t, 2)
		f.node.Drain.Deadline, f.node.Drain.Stop = time.Now().Add(-time.Minute), stop
		f.asks = func(name string) {
			f.mutex.Lock()
			under := f.all[name].Operation != nil
			f.mutex.Unlock()
			if under {
				f.end(name, "")
			}
		}
		result, err := f.round(f.names()...)
		require.NoError(t, err)
		want, to := "move space-00", "node-2"
		if stop {
			want, to = "stop space-00", ""
		}
		require.Contains(t, f.asked, want)
		require.Len(t, f.asked, 2)
		require.Equal(t, to, result.Departed[0].To)
	}
}

// A node is not taken for empty while a store that may know of more cannot be listed, or while somebody cannot be asked; and
// what belongs to nobody is named.
func TestDrainThatCannotSeeEverything(t *testing.T) {
	f := newDrained(t, 1)
	f.place("gone")
	f.place("other")
	delete(f.all, "gone")
	f.all["other"] = &workspace.State{ID: workspace.NewID(), Name: "other", Phase: workspace.Running, Instance: &workspace.Instance{Node: "node-2"}}
	f.all["space-00"].Instance, f.all["space-00"].Kept = nil, &workspace.Kept{Node: "node-1", Why: "a store is late"}
	f.r.stores[1].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Error, Err: errors.New("connection refused"), Times: 1})
	result, err := f.round()
	require.NoError(t, err)
	require.Contains(t, result.Unheard, "connection refused")
	require.Equal(t, []string{"space-00"}, result.On)
	require.Contains(t, result.Waiting[0].Why, "a store is late")
	require.Equal(t, 2, result.LeftCount)
	require.Equal(t, []string{"gone", "other"}, []string{result.Left[0].Name, result.Left[1].Name})
	require.True(t, result.Left[0].Only)
	result, err = f.round()
	require.NoError(t, err)
	require.Empty(t, result.Unheard)
}
