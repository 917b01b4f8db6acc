package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"go.temporal.io/api/serviceerror"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/workspace"
)

const (
	snapshotA = "aaaaaaaa11111111aaaaaaaa11111111aaaaaaaa11111111aaaaaaaa11111111"
	snapshotB = "bbbbbbbb22222222bbbbbbbb22222222bbbbbbbb22222222bbbbbbbb22222222"
)

var testNow = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)

// look is one answer to State and Pending.
type look struct {
	state   workspace.State
	pending []workspace.PendingActivity
	err     error
}

// fakeControl answers with prepared looks, the last one for ever, and remembers what was asked.
type fakeControl struct {
	mu       sync.Mutex
	looks    []look
	index    int
	updates  []any
	update   string
	starts   []workspace.StartRequest
	accepted error

	workspaces []listedWorkspace
	nodes      []listedNode
	nodeStates []workspace.NodeState
	beats      map[string]*workspace.LeaseBeat // by node
	access     []workspace.AccessInput
	grants     workspace.AccessResult
	snapshots  workspace.SnapshotsResult
	closed     bool
}

func (f *fakeControl) current() look {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.looks) == 0 {
		return look{err: explainRemote("web", workspace.ErrNotFound)}
	}
	return f.looks[min(f.index, len(f.looks)-1)]
}

func (f *fakeControl) State(context.Context, string) (workspace.State, error) {
	answer := f.current()
	f.mu.Lock()
	f.index++
	f.mu.Unlock()
	return answer.state, answer.err
}

func (f *fakeControl) Pending(context.Context, string) ([]workspace.PendingActivity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.looks) == 0 {
		return nil, nil
	}
	return f.looks[max(0, min(f.index-1, len(f.looks)-1))].pending, nil
}

func (f *fakeControl) Start(_ context.Context, _, _, _ string, request workspace.StartRequest) (workspace.Accepted, error) {
	f.starts = append(f.starts, request)
	return workspace.Accepted{OperationID: "op"}, f.accepted
}

func (f *fakeControl) Update(_ context.Context, _, update, _ string, request any) (workspace.Accepted, error) {
	f.update = update
	f.updates = append(f.updates, request)
	return workspace.Accepted{OperationID: "op"}, f.accepted
}

func (f *fakeControl) Workspaces(context.Context) ([]listedWorkspace, error) {
	return f.workspaces, nil
}
func (f *fakeControl) Nodes(context.Context) ([]listedNode, error) { return f.nodes, nil }
func (f *fakeControl) Node(_ context.Context, name string) (workspace.NodeState, error) {
	for _, state := range f.nodeStates {
		if state.Info.Name == name {
			return state, nil
		}
	}
	return workspace.NodeState{}, explainNode(name, serviceerror.NewNotFound("no such workflow"))
}
func (f *fakeControl) Beat(_ context.Context, node string) (*workspace.LeaseBeat, error) {
	return f.beats[node], nil
}
func (f *fakeControl) OrderNode(ctx context.Context, name, _ string, order workspace.NodeOrder) (workspace.NodeState, error) {
	f.updates = append(f.updates, order)
	state, err := f.Node(ctx, name)
	if err == nil {
		err = explainNode(name, f.accepted)
	}
	return state, err
}
func (f *fakeControl) Access(_ context.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.access = append(f.access, input)
	return f.grants, nil
}
func (f *fakeControl) Snapshots(context.Context, workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
	return f.snapshots, nil
}
func (f *fakeControl) Close() { f.closed = true }

// fakeDataPort plays a node's data port.
type fakeDataPort struct {
	exit     int
	err      error
	info     dataport.DownloadInfo
	content  string
	cut      error // after the content
	uploads  []string
	uploadOK func(attempt int) error
	requests []dataport.ExecRequest
	notices  []string
}

func (f *fakeDataPort) Exec(_ context.Context, request dataport.ExecRequest, streams dataport.Streams) (int, error) {
	f.requests = append(f.requests, request)
	if f.err != nil {
		return 0, f.err
	}
	io.WriteString(streams.Stdout, f.content)
	for _, notice := range f.notices {
		streams.Notice(notice)
	}
	return f.exit, nil
}

func (f *fakeDataPort) Shell(ctx context.Context, request dataport.ExecRequest, streams dataport.Streams) (int, error) {
	return f.Exec(ctx, request, streams)
}

func (f *fakeDataPort) HookLog(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, "--- the hook\n")
	return err
}

func (f *fakeDataPort) Logs(_ context.Context, _ engine.LogOptions, w io.Writer) error {
	io.WriteString(w, f.content)
	return f.err
}

func (f *fakeDataPort) Download(_ context.Context, _ dataport.DownloadRequest, begin dataport.BeginDownload) error {
	if f.err != nil {
		return f.err
	}
	w, err := begin(f.info)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, f.content); err != nil {
		return err
	}
	return f.cut
}

func (f *fakeDataPort) Upload(_ context.Context, r io.Reader) (dataport.UploadResult, error) {
	var got bytes.Buffer
	if _, err := io.Copy(&got, r); err != nil {
		return dataport.UploadResult{}, dataport.ErrCut
	}
	f.uploads = append(f.uploads, got.String())
	if f.uploadOK != nil {
		if err := f.uploadOK(len(f.uploads)); err != nil {
			return dataport.UploadResult{}, err
		}
	}
	return dataport.UploadResult{Files: 1, Bytes: int64(got.Len())}, nil
}

// testProgram runs commands against fakes.
type testProgram struct {
	*program
	out, errs bytes.Buffer
	control   *fakeControl
	clock     time.Time
	mu        sync.Mutex
	// waited is called for every pause of the follow loop.
	waited func()
	ports  map[string]*fakeDataPort // by node
}

func newTestProgram(t *testing.T, control *fakeControl) *testProgram {
	t.Helper()
	t.Setenv("HOLDFAST_CONFIG", "")
	t.Setenv("HOLDFAST_OWNER", "ada")
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	p := &testProgram{control: control, clock: testNow, ports: map[string]*fakeDataPort{}}
	p.program = &program{
		stdin: strings.NewReader(""), stdout: &p.out, stderr: &p.errs,
		now: func() time.Time { p.mu.Lock(); defer p.mu.Unlock(); return p.clock },
		wait: func(ctx context.Context, d time.Duration) error {
			p.mu.Lock()
			p.clock = p.clock.Add(d)
			p.mu.Unlock()
			if p.waited != nil {
				p.waited()
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return nil
		},
		connect:  func(context.Context, *cli.Context, settings) (control_, error) { return control, nil },
		dataPort: func(grant workspace.Grant) (dataClient, error) { return p.ports[grant.Node], nil },
	}
	return p
}

// control_ lets the fake's parameter shadow the interface's name.
type control_ = control

// run runs a command line and returns its exit code.
func (p *testProgram) run(args ...string) int { return p.runContext(context.Background(), args...) }

func (p *testProgram) runContext(ctx context.Context, args ...string) int {
	p.typed = append([]string{"holdfast"}, args...)
	app := p.app()
	return exitCode(app.RunContext(ctx, normalize(app, p.typed)), &p.errs)
}

func wantIn(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	flat := strings.Join(strings.Fields(text), " ")
	for _, part := range parts {
		if !strings.Contains(flat, strings.Join(strings.Fields(part), " ")) {
			t.Errorf("%s: %q is missing in:\n%s", what, part, text)
		}
	}
}
