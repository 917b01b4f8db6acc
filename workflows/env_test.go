package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"holdfast/workflows"
	"holdfast/workspace"
)

// world is a pretended fleet: two nodes, a catalog, content. It keeps account of what exists, so that tests can say at
// every step whether a full copy does.
type world struct {
	t           *testing.T
	environment *testsuite.TestWorkflowEnvironment
	input       workspace.Input // with which the workspace begins

	// mutex guards what follows: an activity that was cancelled with the workflow may still be running when that has ended.
	mutex sync.Mutex
	over  bool

	// deaf, when set, is called before an activity does anything, and may keep it from hearing that it is given up.
	deaf func(ctx context.Context, activity string)
	// fail, when set, may make an activity fail; it is asked before the activity does anything.
	fail func(activity string, attempt int) error
	// failOn is fail for one node's activities.
	failOn func(node, activity string) error
	// after is called when an activity has done its work; an error loses its result.
	after func(activity string, attempt int) error

	asked    int // updates
	attempts map[string]int
	calls    []string

	records  map[uint64]workspace.InstanceRecord
	commits  []workspace.Commit
	content  map[string]string // <node>/<token> -> what it holds
	started  map[string]bool
	runs     map[string]bool
	placed   map[workspace.Placed]bool
	versions map[string]string // snapshot -> content
	kinds    map[string]string // snapshot -> the kind that was asked for
	owed     []string
	omitted  int64
	heads    *workspace.ReadHeadResult
	next     int
	violated []string
	// unchanged counts the looks that found nothing to store; unsettled makes backups of what is being written to.
	unchanged int
	unsettled bool
	// nodes is what the nodes' workflows say; one that is lost does nothing that it is asked for.
	nodes map[string]workspace.NodeState
	brake workspace.Brake
	// use, when set, is what a node says of when an instance was last used; else that was long ago.
	use func() workspace.LookAtUseResult
	// clock, when set, gives snapshots their time.
	clock func() time.Time
	// preStop and preSnapshot are what the activity at work was given; hooks counts how often each has run.
	preStop, preSnapshot *workspace.Hook
	hooks                map[workspace.HookPoint]int64
	// backups are what was asked for when a snapshot was made.
	backups map[string]workspace.BackupInput
	// forgets and prunes are what a retention asked for.
	forgets []workspace.ForgetInput
	prunes  []workspace.PruneInput
	// newestContent is what the person last had: it must exist somewhere at every step.
	newestContent string
}

const nodeOne, nodeTwo = "node-1", "node-2"

func newWorld(t *testing.T) *world {
	w := emptyWorld(t)
	w.environment = newEnvironment()
	w.register(w.environment)
	return w
}

// newEnvironment runs workflows as if no time passed while they wait. What it and the SDK log, hundreds of lines for a
// case, is said with -v only.
func newEnvironment() *testsuite.TestWorkflowEnvironment {
	var suite testsuite.WorkflowTestSuite
	if !testing.Verbose() {
		suite.SetLogger(quiet)
	}
	environment := suite.NewTestWorkflowEnvironment()
	environment.SetTestTimeout(3 * time.Minute)
	environment.SetWorkerOptions(worker.Options{DeadlockDetectionTimeout: time.Minute}) // a second is a busy machine
	workflows.Register(environment)
	return environment
}

// emptyWorld is a world whose activities are for any worker.
func emptyWorld(t *testing.T) *world {
	return &world{
		t: t, input: workspace.Input{Name: "atlas", Owner: "ada"}, attempts: map[string]int{},
		records: map[uint64]workspace.InstanceRecord{}, content: map[string]string{}, started: map[string]bool{}, runs: map[string]bool{}, hooks: map[workspace.HookPoint]int64{}, placed: map[workspace.Placed]bool{}, versions: map[string]string{}, kinds: map[string]string{}, backups: map[string]workspace.BackupInput{},
		nodes: map[string]workspace.NodeState{
			nodeOne: {Info: workspace.NodeInfo{Name: nodeOne}, Phase: workspace.NodeReady, Epoch: 1},
			nodeTwo: {Info: workspace.NodeInfo{Name: nodeTwo}, Phase: workspace.NodeReady, Epoch: 1},
		},
	}
}

func place(target workspace.Target) string { return fmt.Sprintf("%s/%d", target.Node, target.Token) }

// lies is where an instance's content is: on its node, or on a shared volume.
func lies(target workspace.Target) string {
	if target.Volume != "" {
		return fmt.Sprintf("%s/%d", target.Volume, target.Token)
	}
	return place(target)
}

// do runs an activity's effect between fail and after, and checks the invariant of all: content that has ever been
// there is on a node or in a committed snapshot.
func do[R any](w *world, name string, effect func() (R, error)) (R, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.over {
		return *new(R), errors.New("the test is over")
	}
	w.attempts[name]++
	attempt := w.attempts[name]
	w.calls = append(w.calls, name)
	var zero R
	if w.fail != nil {
		if err := w.fail(name, attempt); err != nil {
			return zero, err
		}
	}
	result, err := effect()
	if !w.fullCopy() {
		w.violated = append(w.violated, fmt.Sprintf("after %s (call %d) no full copy of %q exists: nodes hold %v, commits are %v", name, len(w.calls), w.newestContent, w.content, w.commits))
	}
	if err == nil && w.after != nil {
		if err := w.after(name, attempt); err != nil {
			return zero, err
		}
	}
	return result, err
}

func (w *world) unheard(ctx context.Context, activity string) {
	if w.deaf != nil {
		w.deaf(ctx, activity)
	}
}

// fullCopy says whether what the person last had exists on a node or in a committed snapshot (A1).
func (w *world) fullCopy() bool {
	if w.newestContent == "" {
		return true
	}
	for _, held := range w.content {
		if held == w.newestContent {
			return true
		}
	}
	for _, commit := range w.commits {
		if w.versions[commit.Snapshot] == w.newestContent {
			return true
		}
	}
	for snapshot, held := range w.versions { // of an instance that was replaced: a person is offered it
		if w.kinds[snapshot] == "recovered" && held == w.newestContent {
			return true
		}
	}
	return false
}

func permanent(kind workspace.ErrorType, message string) error {
	return temporal.NewNonRetryableApplicationError(message, string(kind), nil)
}

// ask sends an update at a time and records its rejection, if any. Each has an id of its own: one that was used before
// would be answered with what the first one did.
func (w *world) ask(at time.Duration, update string, request any) *error {
	w.asked++
	id := fmt.Sprintf("%s-%d", update, w.asked)
	rejected := new(error)
	*rejected = errors.New("was never asked")
	w.environment.RegisterDelayedCallback(func() {
		w.environment.UpdateWorkflow(update, id, &testsuite.TestUpdateCallback{
			OnAccept:   func() { *rejected = nil },
			OnReject:   func(err error) { *rejected = err },
			OnComplete: func(any, error) {},
		}, request)
	}, at)
	return rejected
}

// updateCallback notes whether an update was refused.
type updateCallback struct{ rejected *error }

func (c *updateCallback) Accept()             {}
func (c *updateCallback) Reject(err error)    { *c.rejected = err }
func (c *updateCallback) Complete(any, error) {}

// heartbeatTimeout is how the silence of a node looks.
func heartbeatTimeout() error {
	return temporal.NewHeartbeatTimeoutError(workspace.BackupCheckpoint{Files: 3})
}

func (w *world) state() workspace.State {
	w.t.Helper()
	value, err := w.environment.QueryWorkflow(workspace.QueryState)
	require.NoError(w.t, err)
	var state workspace.State
	require.NoError(w.t, value.Get(&state))
	return state
}

// look takes the state at a time.
func (w *world) look(at time.Duration) *workspace.State {
	state := new(workspace.State)
	w.environment.RegisterDelayedCallback(func() { *state = w.state() }, at)
	return state
}

// run runs the workflow until the given time, when it is cancelled.
func (w *world) run(until time.Duration) {
	w.environment.RegisterDelayedCallback(w.environment.CancelWorkflow, until)
	w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, w.input)
	require.True(w.t, w.environment.IsWorkflowCompleted())
	w.end()
	require.Empty(w.t, w.violated)
}

// end lets the test look at what was done.
func (w *world) end() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.over = true
}

// start is of a workspace that no timer snapshots, so that what a test asks for is all that happens.
func start() workspace.StartRequest {
	return workspace.StartRequest{Subject: "ada", Spec: &workspace.Spec{Snapshots: workspace.SnapshotPolicy{Off: true}}}
}

// startEvery is of one that is snapshotted at an interval.
func startEvery(every time.Duration) workspace.StartRequest {
	return workspace.StartRequest{Subject: "ada", Spec: &workspace.Spec{Snapshots: workspace.SnapshotPolicy{EverySeconds: int64(every / time.Second)}}}
}

// work changes the content of whatever runs, as a person does.
func (w *world) work(at time.Duration) {
	w.environment.RegisterDelayedCallback(func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.change()
	}, at)
}

func (w *world) change() {
	for place, held := range w.content {
		if (w.runs[place] || strings.HasPrefix(place, volume)) && held == w.newestContent {
			w.content[place] += "."
			w.newestContent = w.content[place]
			return
		}
	}
}
