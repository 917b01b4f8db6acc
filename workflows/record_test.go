package workflows_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	updatepb "go.temporal.io/api/update/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"holdfast/devstack/devtest"
	"holdfast/workflows"
	"holdfast/workspace"
)

var (
	record        = flag.Bool("record", false, "record the golden histories anew")
	recordVersion = flag.String("record-version", "v0", "the directory they are recorded into")
)

// recorder stands for every client and worker in what is recorded.
const recorder = "recorder"

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// server is a real one, with a namespace of the test's own.
type server struct {
	client.Client
	namespace string
}

// scene is a real server with a pretended fleet.
type scene struct {
	*world
	client server
	name   string
	id     string
	asked  int
	lease  *leaseScript
	leases *leaseTaker
	// control is the worker that decides.
	control worker.Worker
}

// leaseTaker is the worker of the lease queue; stopping is closed when it takes nothing any more.
type leaseTaker struct {
	worker.Worker
	stopping chan struct{}
	once     sync.Once
}

func (l *leaseTaker) Stop() {
	l.once.Do(func() {
		close(l.stopping)
		l.Worker.Stop()
	})
}

// spoilers make a history that this program cannot have written.
var spoilers = map[string]func(*historypb.History){
	"activity_renamed": func(history *historypb.History) {
		scheduled(history, workspace.ActivityVerify).ActivityType.Name = "VerifyOfOld"
	},
	"activities_swapped": func(history *historypb.History) {
		image, content := scheduled(history, workspace.ActivityPrepareImage), scheduled(history, workspace.ActivityPrepareContent)
		image.ActivityType, content.ActivityType = content.ActivityType, image.ActivityType
	},
	// As if this program had dropped the head's comparison with the stores before a second start.
	"activity_added": func(history *historypb.History) {
		scheduled(history, workspace.ActivityReadHead).ActivityType.Name = workspace.ActivityReleasePlacement
	},
}

func scheduled(history *historypb.History, name string) *historypb.ActivityTaskScheduledEventAttributes {
	for _, event := range history.Events {
		if attributes := event.GetActivityTaskScheduledEventAttributes(); attributes != nil && attributes.ActivityType.Name == name {
			return attributes
		}
	}
	panic("the history has no " + name)
}

// dial connects to a real server.
func dial(t *testing.T) server {
	t.Helper()
	options := devtest.Temporal(t).Options()
	options.Identity = recorder
	options.Logger = quiet
	c, err := client.DialContext(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return server{Client: c, namespace: options.Namespace}
}

func newScene(t *testing.T, c server, name, id string) *scene {
	t.Helper()
	s := &scene{world: emptyWorld(t), client: c, id: id, name: name, lease: &leaseScript{}}
	s.work()
	t.Cleanup(func() { _ = c.TerminateWorkflow(context.Background(), s.id, "", "recorded") }) // some have ended
	return s
}

// TestRecord records the golden histories; see replay_test.go.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("only with -record")
	}
	c := dial(t)
	for _, scenario := range scenarios {
		t.Run(scenario.name, func(t *testing.T) {
			s := newScene(t, c, scenario.name, scenario.id)
			scenario.run(s)
			history := s.history()
			save(t, filepath.Join(histories, *recordVersion, scenario.name+".json"), history)
			if scenario.name == "start_stop_start" {
				for name, spoil := range spoilers {
					bad := s.history()
					spoil(bad)
					save(t, filepath.Join(histories, "bad", name+".json"), bad)
				}
			}
		})
	}
}

func save(t *testing.T, path string, history *historypb.History) {
	t.Helper()
	content, err := temporalproto.CustomJSONMarshalOptions{Indent: " "}.Marshal(history)
	require.NoError(t, err)
	// The name of a worker's own queue begins with its host's.
	host, err := os.Hostname()
	require.NoError(t, err)
	content = bytes.ReplaceAll(content, []byte(`"`+host+`:`), []byte(`"`+recorder+`:`))
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, append(content, '\n'), 0o644))
}

// work runs the control worker and the nodes' until the scenario ends.
func (s *scene) work() {
	s.takeLeases()
	s.takeCommands()
	for _, node := range []string{nodeOne, nodeTwo} {
		s.take(workspace.NodeQueue(node))
		s.take(workspace.SalvageQueue(node))
	}
}

// takeCommands runs the control worker, which decides.
func (s *scene) takeCommands() { s.control = s.take(workspace.ControlQueue) }

func (s *scene) take(queue string) worker.Worker {
	w := worker.New(s.client.Client, queue, worker.Options{Identity: recorder, DisableWorkflowWorker: queue != workspace.ControlQueue})
	if queue == workspace.ControlQueue {
		workflows.Register(w)
	}
	s.register(w)
	s.registerOthers(w)
	require.NoError(s.t, w.Start())
	s.t.Cleanup(w.Stop)
	return w
}

func (s *scene) takeLeases() {
	w := worker.New(s.client.Client, workspace.LeaseQueue(nodeOne), worker.Options{Identity: recorder, DisableWorkflowWorker: true})
	s.registerOthers(w)
	require.NoError(s.t, w.Start())
	s.leases = &leaseTaker{Worker: w, stopping: make(chan struct{})}
	s.t.Cleanup(s.leases.Stop)
}

func (s *scene) signal(name string, arg any) {
	s.t.Helper()
	require.NoError(s.t, s.client.SignalWorkflow(s.t.Context(), s.id, "", name, arg))
}

// called is how often an activity was tried.
func (s *scene) called(name string) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.attempts[name]
}

func (s *scene) registerOthers(registry activityRegistry) {
	add := func(name string, function any) {
		registry.RegisterActivityWithOptions(function, activity.RegisterOptions{Name: name})
	}
	add(workspace.ActivityDescribeControl, func(context.Context) (workspace.ControlInfo, error) {
		return workspace.ControlInfo{Recipient: "age1control", VerifyKey: []byte("public"), Policy: "all"}, nil
	})
	add(workspace.ActivityGrantAccess, func(_ context.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
		return workspace.AccessResult{Grants: []workspace.Grant{{Node: nodeOne, Address: "127.0.0.1:1", Token: "for " + string(input.Verb)}}}, nil
	})
	add(workspace.ActivityListSnapshots, func(context.Context, workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
		return workspace.SnapshotsResult{WorkspaceID: "id", Snapshots: []workspace.SnapshotLine{{Snapshot: fmt.Sprintf("%064d", 1)}}}, nil
	})
	add(workspace.ActivityAnnounceNode, func(context.Context, workspace.NodeNews) (workspace.AnnounceResult, error) {
		return do(s.world, workspace.ActivityAnnounceNode, func() (workspace.AnnounceResult, error) {
			return workspace.AnnounceResult{Told: 1}, nil
		})
	})
	add(workspace.ActivityDrainNode, func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
		switch input.Round {
		case 1:
			return workspace.DrainResult{On: []string{"atlas"}, Waiting: []workspace.DrainItem{{Name: "atlas", Why: "it is to be moved"}}}, nil
		case 2:
			s.unheard(ctx, workspace.ActivityDrainNode)
			return do(s.world, "moved", func() (workspace.DrainResult, error) {
				return workspace.DrainResult{Departed: []workspace.DrainDeparture{{Name: "atlas", To: nodeTwo}}}, nil
			})
		}
		return workspace.DrainResult{}, nil
	})
	add(workspace.ActivityHoldLease, s.holdLease)
}

// leaseScript ends leases as the scenario says, each by its epoch: one that was superseded goes on until it hears of it.
type leaseScript struct {
	ends sync.Map
	// frozen is the epoch of a lease that is given to an agent which does not go on: it says and does nothing.
	frozen atomic.Uint64
}

func (l *leaseScript) of(epoch uint64) chan error {
	end, _ := l.ends.LoadOrStore(epoch, make(chan error))
	return end.(chan error)
}

var errReleased = errors.New("released")

func (s *scene) holdLease(ctx context.Context, input workspace.LeaseInput) (workspace.LeaseResult, error) {
	if s.lease.frozen.Load() == input.Epoch {
		<-ctx.Done()
		return workspace.LeaseResult{}, ctx.Err()
	}
	if err := s.client.SignalWorkflow(ctx, s.id, "", workspace.SignalLeaseTaken, workspace.LeaseTaken{Epoch: input.Epoch, Incarnation: input.Incarnation}); err != nil {
		return workspace.LeaseResult{}, err
	}
	beat := time.NewTicker(200 * time.Millisecond)
	defer beat.Stop()
	for {
		select {
		case err := <-s.lease.of(input.Epoch):
			if errors.Is(err, errReleased) {
				return workspace.LeaseResult{Released: true}, nil
			}
			return workspace.LeaseResult{}, err
		case <-beat.C:
			activity.RecordHeartbeat(ctx, workspace.LeaseBeat{Epoch: input.Epoch})
		case <-ctx.Done():
			return workspace.LeaseResult{}, ctx.Err()
		}
	}
}

func (s *scene) leaseIs(epoch uint64, phase workspace.NodePhase) {
	s.t.Helper()
	var state workspace.NodeState
	require.Eventually(s.t, func() bool {
		value, err := s.client.QueryWorkflow(s.t.Context(), s.id, "", workspace.QueryState)
		return err == nil && value.Get(&state) == nil && state.Epoch == epoch && state.Phase == phase
	}, 30*time.Second, 50*time.Millisecond, "%+v", &state)
}

func begin(s *scene, name string, input any) client.WorkflowRun {
	s.t.Helper()
	run, err := s.client.ExecuteWorkflow(s.t.Context(), client.StartWorkflowOptions{ID: s.id, TaskQueue: workspace.ControlQueue}, name, input)
	require.NoError(s.t, err)
	return run
}

// updateID is another one each time, also over scenarios: the server answers an update-with-start whose id it knows from
// the run before without starting anything.
func (s *scene) updateID() string {
	s.asked++
	return fmt.Sprintf("%s-%d", s.name, s.asked)
}

// ask sends an update and returns its error.
func (s *scene) ask(update string, request any) error {
	handle, err := s.client.UpdateWorkflow(s.t.Context(), client.UpdateWorkflowOptions{
		WorkflowID: s.id, UpdateID: s.updateID(), UpdateName: update, Args: []any{request},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err != nil {
		return err
	}
	return handle.Get(s.t.Context(), nil)
}

// askLater has an update wait at the server for a worker that takes it.
func (s *scene) askLater(update string, request any) {
	s.t.Helper()
	id := s.updateID()
	go func() {
		_, _ = s.client.UpdateWorkflow(s.t.Context(), client.UpdateWorkflowOptions{
			WorkflowID: s.id, UpdateID: id, UpdateName: update, Args: []any{request}, WaitForStage: client.WorkflowUpdateStageAccepted,
		})
	}()
	require.Eventually(s.t, func() bool {
		_, err := s.client.WorkflowService().PollWorkflowExecutionUpdate(s.t.Context(), &workflowservice.PollWorkflowExecutionUpdateRequest{
			Namespace:  s.client.namespace,
			UpdateRef:  &updatepb.UpdateRef{WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: s.id}, UpdateId: id},
			WaitPolicy: &updatepb.WaitPolicy{LifecycleStage: enumspb.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED},
		})
		return err == nil
	}, 30*time.Second, 20*time.Millisecond)
}

// happened waits until the history shows something.
func (s *scene) happened(what string, shows func(*historypb.History) bool) {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return shows(s.history()) }, 30*time.Second, 50*time.Millisecond, what)
}

// request asks and waits until nothing is under way and the phase is the given one; an empty one wants a refusal.
func (s *scene) request(update string, request any, phase workspace.Phase) workspace.State {
	s.t.Helper()
	err := s.ask(update, request)
	if phase == "" {
		require.Error(s.t, err)
		return workspace.State{}
	}
	require.NoError(s.t, err)
	return s.until(string(phase), func(state workspace.State) bool {
		return state.Operation == nil && len(state.Waiting) == 0 && state.Phase == phase
	})
}

func (s *scene) until(what string, is func(workspace.State) bool) workspace.State {
	s.t.Helper()
	var state workspace.State
	require.Eventually(s.t, func() bool {
		value, err := s.client.QueryWorkflow(s.t.Context(), s.id, "", workspace.QueryState)
		state = workspace.State{}
		return err == nil && value.Get(&state) == nil && is(state)
	}, time.Minute, 50*time.Millisecond, "want %s, last seen %+v", what, &state)
	return state
}

// start is an update-with-start, as the command does it.
func (s *scene) start() { s.t.Helper(); s.startWith(start()) }

func (s *scene) startWith(request workspace.StartRequest) {
	s.t.Helper()
	s.beginWith(request)
	s.until("running", func(state workspace.State) bool { return state.Phase == workspace.Running && state.Operation == nil })
}

// beginWith is startWith without the wait.
func (s *scene) beginWith(request workspace.StartRequest) {
	s.t.Helper()
	handle, err := s.client.UpdateWithStartWorkflow(s.t.Context(), client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: s.client.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
			ID: s.id, TaskQueue: workspace.ControlQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		}, workspace.WorkspaceWorkflow, s.input),
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID: s.updateID(), UpdateName: workspace.UpdateStart, Args: []any{request},
			WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	require.NoError(s.t, err)
	require.NoError(s.t, handle.Get(s.t.Context(), nil))
}

func (s *scene) locked(change func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change()
}

func (s *scene) failing(fail func(string, int) error) { s.locked(func() { s.fail = fail }) }

// reached waits until an activity has been tried.
func (s *scene) reached(name string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		return s.attempts[name] > 0
	}, 30*time.Second, 20*time.Millisecond)
}

func (s *scene) history() *historypb.History {
	s.t.Helper()
	history := &historypb.History{}
	for events := s.client.GetWorkflowHistory(s.t.Context(), s.id, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); events.HasNext(); {
		event, err := events.Next()
		require.NoError(s.t, err)
		history.Events = append(history.Events, event)
	}
	return history
}
