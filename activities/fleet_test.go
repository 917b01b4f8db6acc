package activities

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/testsuite"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// told records who was told what.
type told struct {
	*fakeTemporal
	mutex  sync.Mutex
	news   map[string][]workspace.NodeNews // by workflow id
	answer func(workflowID string, n int) error
	beats  []workspace.AnnounceCheckpoint
}

func (t *told) SignalWorkflow(_ context.Context, workflowID, _, signal string, arg any) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if signal != workspace.SignalNodeNews {
		return errors.New("another signal")
	}
	t.news[workflowID] = append(t.news[workflowID], arg.(workspace.NodeNews))
	if t.answer != nil {
		return t.answer(workflowID, len(t.news[workflowID]))
	}
	return nil
}

func (t *told) RecordActivityHeartbeat(_ context.Context, _ []byte, details ...any) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.beats = append(t.beats, details[0].(workspace.AnnounceCheckpoint))
	return nil
}

func (r *rig) placeMany(node string, count int) {
	r.t.Helper()
	for i := range count {
		require.NoError(r.t, r.control.Catalog.RecordInstance(r.t.Context(), workspace.InstanceRecord{
			WorkspaceID: workspace.NewID(), Name: fmt.Sprintf("space-%d", i), Token: 1, Node: node, Time: time.Unix(1, 0),
		}))
	}
}

func (r *rig) announce(t *told, news workspace.NodeNews, before ...any) (workspace.AnnounceResult, error) {
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetTestTimeout(3 * time.Minute)
	environment.RegisterActivity(r.control.AnnounceNode)
	if len(before) > 0 {
		environment.SetHeartbeatDetails(before[0])
	}
	r.control.Client = t
	value, err := environment.ExecuteActivity(r.control.AnnounceNode, news)
	var result workspace.AnnounceResult
	if err == nil {
		err = value.Get(&result)
	}
	return result, err
}

// B9: everybody that the catalog places on the node is told once; one whose workflow is gone holds up nobody, and one
// that cannot be told at first is told in a later sweep.
func TestAnnounceTellsEverybody(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.placeMany("node-1", 150)
	gone, slow := workspace.WorkflowID("space-7"), workspace.WorkflowID("space-9")
	c := &told{fakeTemporal: &fakeTemporal{}, news: map[string][]workspace.NodeNews{}, answer: func(workflowID string, n int) error {
		switch {
		case workflowID == gone:
			return serviceerror.NewNotFound("it was deleted")
		case workflowID == slow && n == 1:
			return serviceerror.NewUnavailable("not now")
		}
		return nil
	}}
	r.control.sweepPatience = 10 * time.Millisecond
	result, err := r.announce(c, workspace.NodeNews{Node: "node-1", Epoch: 3, Lost: true})
	require.NoError(t, err)
	require.Equal(t, 149, result.Told)
	require.Len(t, c.news, 150)
	for workflow, news := range c.news {
		want := 1
		if workflow == slow {
			want = 2
		}
		require.Len(t, news, want, workflow)
		require.Equal(t, uint64(3), news[0].Epoch)
	}
}

// The workspace that was recorded there in the moment of the loss is found by another sweep.
func TestAnnounceFindsWhoCameLate(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.placeMany("node-1", 3)
	var once sync.Once
	c := &told{fakeTemporal: &fakeTemporal{}, news: map[string][]workspace.NodeNews{}}
	c.answer = func(string, int) error {
		once.Do(func() {
			require.NoError(t, r.control.Catalog.RecordInstance(context.Background(), workspace.InstanceRecord{
				WorkspaceID: workspace.NewID(), Name: "late", Token: 1, Node: "node-1", Time: time.Unix(1, 0),
			}))
		})
		return nil
	}
	result, err := r.announce(c, workspace.NodeNews{Node: "node-1", Lost: true})
	require.NoError(t, err)
	require.Equal(t, 4, result.Told)
	require.Contains(t, c.news, workspace.WorkflowID("late"))
}

// A store that cannot be listed may know of more: the announcement does not end before it was heard.
func TestAnnounceWaitsForAStore(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.placeMany("node-1", 3)
	r.control.sweepPatience = 10 * time.Millisecond
	var asked int
	var mutex sync.Mutex
	r.stores[1].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Error, Err: errors.New("connection refused"), Times: 3})
	c := &told{fakeTemporal: &fakeTemporal{}, news: map[string][]workspace.NodeNews{}, answer: func(string, int) error {
		mutex.Lock()
		defer mutex.Unlock()
		asked++
		return nil
	}}
	result, err := r.announce(c, workspace.NodeNews{Node: "node-1", Lost: true})
	require.NoError(t, err)
	require.Equal(t, 3, result.Told)
	require.Equal(t, 3, asked, "nobody is told twice by one attempt")
}

// An attempt that was cut goes on behind the last page that it told.
func TestAnnounceGoesOn(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.placeMany("node-1", 10)
	placements, err := r.control.Catalog.Placements(t.Context(), "node-1")
	require.NoError(t, err)
	after := workspace.InstanceName(placements[6].WorkspaceID, placements[6].Token)
	c := &told{fakeTemporal: &fakeTemporal{}, news: map[string][]workspace.NodeNews{}}
	result, err := r.announce(c, workspace.NodeNews{Node: "node-1", Lost: true}, workspace.AnnounceCheckpoint{After: after, Told: 7})
	require.NoError(t, err)
	require.GreaterOrEqual(t, result.Told, 10)
	for _, placement := range placements { // invariant 9: where it was is a hint, and a later sweep does not go by it
		described, err := r.control.Catalog.Placement(t.Context(), "node-1", placement.WorkspaceID, placement.Token)
		require.NoError(t, err)
		require.Contains(t, c.news, workspace.WorkflowID(described.Name))
	}
}

// What is known of a node comes from its workflow; the brake from all of them. A node that cannot be asked holds up nobody.
func TestLookAtNode(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady, "node-2": workspace.NodeReady, "node-3": workspace.NodeReady})
	lose := func(name string) {
		now := time.Now()
		f.states[workspace.NodeWorkflowID(name)] = workspace.NodeState{
			Info: workspace.NodeInfo{Name: name, Incarnation: "i"}, Phase: workspace.NodeLost, LostAt: now, Loss: &workspace.NodeLoss{At: now},
		}
		r.control.fleet.taken = time.Time{}
	}
	look := func(name string) workspace.LookAtNodeResult {
		result, err := r.control.LookAtNode(t.Context(), workspace.LookAtNodeInput{Node: name})
		require.NoError(t, err)
		return result
	}
	require.False(t, look("nobody").Known)
	require.Equal(t, workspace.NodeReady, look("node-1").Node.Phase)
	lose("node-1")
	f.states[workspace.NodeWorkflowID("node-2")] = serviceerror.NewUnavailable("busy")
	require.False(t, look("node-1").Brake.Held)
	lose("node-2")
	lose("node-3")
	result := look("node-1")
	require.True(t, result.Brake.Held, "%+v", result)
	require.Equal(t, workspace.NodeLost, result.Node.Phase)
	f.listed = errors.New("away")
	r.control.fleet.taken = time.Time{}
	_, err := r.control.LookAtNode(t.Context(), workspace.LookAtNodeInput{Node: "node-1"})
	require.ErrorContains(t, err, "listing nodes")
}
