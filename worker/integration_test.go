package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"

	"holdfast/activities"
	"holdfast/devstack/devtest"
	"holdfast/engine"
	"holdfast/engine/process"
	"holdfast/keys"
	"holdfast/workspace"
)

// TestMain is also the supervisor of the process engine's instances, and an agent that a test can kill.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine-supervise" {
		os.Exit(process.Supervise(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "test-agent" {
		os.Exit(agentMain(os.Args[2]))
	}
	os.Exit(m.Run())
}

// place is where everything of a test deployment lies; an agent in a process of its own is given it as JSON.
type place struct {
	Address, Namespace, CodecKey, Master string
	Stores                               []string
	DataDir, EngineRoot                  string
}

func (p place) config(logger *slog.Logger) Config {
	return Config{
		Temporal: client.Options{HostPort: p.Address, Namespace: p.Namespace}, CodecKey: p.CodecKey, Stores: p.Stores, Policy: "all",
		StopGrace: 30 * time.Second, Logger: logger,
	}
}

func (p place) node(logger *slog.Logger) (NodeConfig, error) {
	opened, err := process.New(process.Options{Root: p.EngineRoot, Logger: logger, NoCgroups: true})
	return NodeConfig{
		Config: p.config(logger), Name: "node-1", DataDir: p.DataDir, Engine: opened, Listen: "127.0.0.1:0", Version: "test", Reserve: 1,
	}, err
}

func agentMain(text string) int {
	var p place
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	config, err := p.node(slog.New(slog.DiscardHandler))
	if err == nil {
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		err = RunNode(ctx, config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// patience is how long something may take that has to happen: only a machine at a standstill takes so long.
const patience = 3 * time.Minute

// stack is a Temporal server with a control worker, and what a test does with its one node.
type stack struct {
	t      *testing.T
	server *devtest.Server
	place  place
	client client.Client
	logger *slog.Logger
	logs   *logBuffer
	// metrics are where the roles serve theirs.
	controlMetrics, agentMetrics string
}

type logBuffer struct {
	mutex sync.Mutex
	bytes bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.bytes.Write(p)
}

func (b *logBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.bytes.String()
}

func newStack(t *testing.T) *stack {
	t.Helper()
	server := devtest.Temporal(t)
	root := t.TempDir()
	s := &stack{t: t, server: server, logs: &logBuffer{}}
	s.logger = slog.New(slog.NewTextHandler(s.logs, nil))
	s.place = place{
		Address: server.Address(), Namespace: server.Namespace(), CodecKey: filepath.Join(root, "codec.key"),
		DataDir: filepath.Join(root, "node-1"), EngineRoot: filepath.Join(root, "engine"),
	}
	for _, store := range []string{"store-a", "store-b"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, store), 0o700))
		s.place.Stores = append(s.place.Stores, fileURL(filepath.Join(root, store)))
	}
	path := filepath.Join(root, "master.key")
	_, err := keys.CreateLocalKey(path)
	require.NoError(t, err)
	s.place.Master, err = keys.LocalKeyURL(path)
	require.NoError(t, err)

	ready := make(chan string, 1)
	s.background("control worker", func(ctx context.Context) error {
		config := s.place.config(s.logger)
		config.MetricsAddress, config.scraped = "127.0.0.1:0", func(address string) { s.controlMetrics = address }
		return RunControl(ctx, ControlConfig{Config: config, MasterKey: s.place.Master, Ready: func(recipient string) { ready <- recipient }})
	})
	select {
	case recipient := <-ready:
		require.NotEmpty(t, recipient)
	case <-time.After(patience):
		t.Fatalf("the control worker does not begin: %s", s.logs)
	}
	key, err := keys.LoadCodecKey(s.place.CodecKey)
	require.NoError(t, err)
	codec, err := keys.NewCodec(key)
	require.NoError(t, err)
	options := server.Options()
	options.DataConverter = keys.DataConverter(codec)
	options.FailureConverter = keys.FailureConverter(options.DataConverter)
	s.client, err = client.DialContext(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(s.client.Close)
	t.Cleanup(s.endInstances)
	return s
}

// background runs something until the returned function is called, or until the test ends.
func (s *stack) background(what string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("%s: %v", what, err)
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

// endInstances ends what a test left running, by the engine that made it.
func (s *stack) endInstances() {
	opened, err := process.New(process.Options{Root: s.place.EngineRoot, NoCgroups: true})
	require.NoError(s.t, err)
	defer opened.Close()
	instances, err := opened.List(context.Background(), nil)
	require.NoError(s.t, err)
	for _, instance := range instances {
		if err := errors.Join(opened.Stop(context.Background(), instance.ID, time.Second), opened.Remove(context.Background(), instance.ID)); err != nil {
			s.t.Errorf("ending %s: %v", instance.Name, err)
		}
	}
}

// agent runs the node's agent in this process.
func (s *stack) agent(adjust ...func(*NodeConfig)) (lease *activities.Lease, stop func()) {
	s.t.Helper()
	config, err := s.place.node(s.logger)
	require.NoError(s.t, err)
	ready, leases := make(chan struct{}), make(chan *activities.Lease, 1)
	config.Ready = func() { close(ready) }
	config.leased = func(l *activities.Lease) { leases <- l }
	for _, change := range adjust {
		change(&config)
	}
	config.MetricsAddress, config.scraped = "127.0.0.1:0", func(address string) { s.agentMetrics = address }
	stop = s.background("agent", func(ctx context.Context) error { return RunNode(ctx, config) })
	select {
	case <-ready:
	case <-time.After(patience):
		s.t.Fatalf("the agent does not begin: %s", s.logs)
	}
	return <-leases, stop
}

func (s *stack) query(id string, state any) error {
	value, err := s.client.QueryWorkflow(s.t.Context(), id, "", workspace.QueryState)
	if err != nil {
		return err
	}
	return value.Get(state)
}

// nodeIs waits until the node's workflow says so.
func (s *stack) nodeIs(phase workspace.NodePhase) workspace.NodeState {
	s.t.Helper()
	var state workspace.NodeState
	require.Eventually(s.t, func() bool {
		return s.query(workspace.NodeWorkflowID("node-1"), &state) == nil && state.Phase == phase
	}, patience, 50*time.Millisecond, "want %s, last seen %+v", phase, &state)
	return state
}

func (s *stack) workspace() workspace.State {
	s.t.Helper()
	var state workspace.State
	require.Eventually(s.t, func() bool {
		state = workspace.State{}
		return s.query(workspace.WorkflowID("atlas"), &state) == nil
	}, patience, 50*time.Millisecond)
	return state
}

// live waits until the lease is as it should be while beats are acknowledged: a busy machine may miss some.
func live(t *testing.T, lease *activities.Lease) {
	t.Helper()
	require.Eventually(t, func() bool { return lease.CheckNew() == nil }, patience, 20*time.Millisecond)
}

// settled waits until nothing is under way with the workspace any more and its phase is the given one.
func (s *stack) settled(phase workspace.Phase) workspace.State {
	s.t.Helper()
	var state workspace.State
	require.Eventually(s.t, func() bool {
		state = workspace.State{}
		return s.query(workspace.WorkflowID("atlas"), &state) == nil && state.Operation == nil && len(state.Waiting) == 0 && state.Phase == phase
	}, patience, 50*time.Millisecond, "want %s, last seen %+v", phase, &state)
	return state
}

// start starts atlas. No timer snapshots it: when one falls due depends on the clock, and it changes what tests compare.
func (s *stack) start() workspace.State {
	s.t.Helper()
	spec := &workspace.Spec{Snapshots: workspace.SnapshotPolicy{Off: true}}
	operation := s.client.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID: workspace.WorkflowID("atlas"), TaskQueue: workspace.ControlQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
	}, workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", Owner: "ada"})
	handle, err := s.client.UpdateWithStartWorkflow(s.t.Context(), client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: operation,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateName: workspace.UpdateStart, Args: []any{workspace.StartRequest{Subject: "ada", Spec: spec}},
			WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	require.NoError(s.t, err)
	require.NoError(s.t, handle.Get(s.t.Context(), nil))
	return s.settled(workspace.Running)
}

func (s *stack) stop() workspace.State {
	s.t.Helper()
	handle, err := s.client.UpdateWorkflow(s.t.Context(), client.UpdateWorkflowOptions{
		WorkflowID: workspace.WorkflowID("atlas"), UpdateName: workspace.UpdateStop, Args: []any{workspace.StopRequest{Subject: "ada"}},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	require.NoError(s.t, err)
	require.NoError(s.t, handle.Get(s.t.Context(), nil))
	return s.settled(workspace.Stopped)
}

func (s *stack) content(state workspace.State, token uint64) string {
	return filepath.Join(s.place.DataDir, "workspaces", workspace.InstanceName(state.ID, token), "content")
}

// running says whether the instance's processes are there, asked of an engine that knows nothing of the agent's.
func (s *stack) running(state workspace.State) bool {
	s.t.Helper()
	opened, err := process.New(process.Options{Root: s.place.EngineRoot, NoCgroups: true})
	require.NoError(s.t, err)
	defer opened.Close()
	instances, err := opened.List(s.t.Context(), map[string]string{engine.LabelWorkspace: state.ID, engine.LabelToken: fmt.Sprint(state.Instance.Token)})
	require.NoError(s.t, err)
	return len(instances) == 1 && instances[0].Status == engine.StatusRunning
}

// A1, A10: one node, from its registration through starts and stops of a workspace and of its agent.
func TestWorkspaceOnANode(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	lease, stopAgent := s.agent()
	live(t, lease)
	state := s.nodeIs(workspace.NodeReady)
	require.Equal(t, "process", state.Info.Engine)
	first := state

	atlas := s.start()
	require.Equal(t, "node-1", atlas.Instance.Node)
	require.True(t, s.running(atlas))
	require.NoError(t, os.WriteFile(filepath.Join(s.content(atlas, 1), "notes.txt"), []byte("what a person wrote"), 0o600))

	stopped := s.stop()
	require.Nil(t, stopped.Kept, "both stores hold it, so its node lets it go")
	require.NotNil(t, stopped.Head)
	require.NoDirExists(t, filepath.Dir(s.content(atlas, 1)))

	atlas = s.start()
	require.Equal(t, uint64(2), atlas.Instance.Token)
	data, err := os.ReadFile(filepath.Join(s.content(atlas, 2), "notes.txt"))
	require.NoError(t, err)
	require.Equal(t, "what a person wrote", string(data))

	// The agent stops: it gives its lease back, its node is lost at once, and the workspace goes on running.
	stopAgent()
	require.Error(t, lease.Check())
	state = s.nodeIs(workspace.NodeLost)
	require.Equal(t, "its agent was stopped", state.Reason)
	require.True(t, s.running(atlas))
	require.Equal(t, workspace.Running, s.workspace().Phase)

	// It starts again and goes on with what is there.
	_, stopAgent = s.agent()
	state = s.nodeIs(workspace.NodeReady)
	require.Greater(t, state.Epoch, first.Epoch)
	require.NotEqual(t, first.Info.Incarnation, state.Info.Incarnation)
	require.Equal(t, first.Info.Recipient, state.Info.Recipient, "what was sealed to the node is still for it")
	require.True(t, s.running(atlas))
	require.NoError(t, os.WriteFile(filepath.Join(s.content(atlas, 2), "more.txt"), []byte("more"), 0o600))
	stopped = s.stop()
	require.Equal(t, uint64(2), stopped.Head.Token)
	require.Equal(t, int64(2), stopped.Head.Files)
	stopAgent()
	require.Equal(t, workspace.NodeLost, s.nodeIs(workspace.NodeLost).Phase)
}

// An agent that was killed and started again supersedes its old self at once: nobody waits for a time-out.
func TestKilledAgentComesBackAtOnce(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	text, err := json.Marshal(s.place)
	require.NoError(t, err)
	child := exec.Command("/proc/self/exe", "test-agent", string(text))
	child.Stderr = os.Stderr
	require.NoError(t, child.Start())
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	killed := false
	kill := func() {
		if !killed {
			killed = true
			require.NoError(t, child.Process.Kill())
			<-ended
		}
	}
	t.Cleanup(kill)
	before := s.nodeIs(workspace.NodeReady)
	atlas := s.start()
	kill()
	died := s.nodeHistory()

	lease, _ := s.agent()
	after := s.nodeIs(workspace.NodeReady)
	require.Greater(t, after.Epoch, before.Epoch)
	require.NotEqual(t, before.Info.Incarnation, after.Info.Incarnation)
	live(t, lease)
	requireOfferedAtOnce(t, s.nodeHistory()[len(died):])
	require.True(t, s.running(atlas), "the workspace outlives its agent")
	require.Equal(t, atlas.Instance.Token, s.workspace().Instance.Token)
	require.NotNil(t, s.stop().Head)
}

// nodeHistory is what happened to the node's workflow, oldest first.
func (s *stack) nodeHistory() []*historypb.HistoryEvent {
	s.t.Helper()
	var all []*historypb.HistoryEvent
	for events := s.client.GetWorkflowHistory(s.t.Context(), workspace.NodeWorkflowID("node-1"), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); events.HasNext(); {
		event, err := events.Next()
		require.NoError(s.t, err)
		all = append(all, event)
	}
	return all
}

// requireOfferedAtOnce wants the registration to be followed by an offer of the lease, and not by the end of the old one.
func requireOfferedAtOnce(t *testing.T, events []*historypb.HistoryEvent) {
	t.Helper()
	registered := false
	for _, event := range events {
		switch event.EventType {
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
			registered = true
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
			require.False(t, registered, "the old lease was waited for")
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
			if registered {
				return
			}
		}
	}
	t.Fatal("no lease was offered after the registration")
}

// DESIGN section 7: a pause of Temporal moves nothing. The node fences itself, and takes its lease again afterwards.
func TestPausedTemporalMovesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	lease, _ := s.agent()
	before := s.nodeIs(workspace.NodeReady)
	atlas := s.start()
	live(t, lease)

	require.NoError(t, s.server.Pause())
	// The last beat that was acknowledged was sent before this moment: 7 s later the lease is not live, whoever asks when.
	// That it is live until then is proved with a clock of its own (activities, TestLeaseTimes).
	paused := time.Now()
	for time.Since(paused) < 20*time.Second {
		asked := time.Since(paused)
		if lease.Check() == nil {
			require.Less(t, asked, 7*time.Second, "it is not fenced")
		}
		time.Sleep(20 * time.Millisecond)
	}
	require.Error(t, lease.Check(), "it stays fenced")
	require.NoError(t, s.server.Resume())
	require.True(t, s.running(atlas), "people go on working")

	live(t, lease)
	after := s.nodeIs(workspace.NodeReady)
	require.GreaterOrEqual(t, after.Epoch, before.Epoch)
	require.Equal(t, before.Info.Incarnation, after.Info.Incarnation)
	now := s.settled(workspace.Running)
	require.Equal(t, atlas.Instance, now.Instance)
	require.Equal(t, atlas.Token, now.Token)
	require.True(t, s.running(atlas))
	require.NotNil(t, s.stop().Head)
}
