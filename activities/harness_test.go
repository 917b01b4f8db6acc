package activities

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.uber.org/goleak"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	id      = "abcdefghijklmnopqrstuvwxyz"
	otherID = "zyxwvutsrqponmlkjihgfedcba"
	// Secrets that are planted: they appear in no error and no log line.
	secretValue = "planted-environment-value-5f1c"
	secretToken = "planted-git-token-77aa"
)

// fakeEngine keeps instances in memory, by the contract of engine.Engine.
type fakeEngine struct {
	engine.Engine // what a test does not expect panics

	mutex     sync.Mutex
	instances map[string]*engine.Instance
	calls     []string
	// fail may make a call fail, before it does anything.
	fail func(call, name string) error
	// before is called at the begin of each call.
	before func(call, name string)
	// exec, when set, is what commands do.
	exec func(ctx context.Context, spec engine.ExecSpec) (int, error)
	// stuck makes Ready wait for its context.
	stuck bool
	specs map[string]engine.Spec
	grace time.Duration // of the last Stop
	work  engine.Work   // of every instance
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{instances: map[string]*engine.Instance{}, specs: map[string]engine.Spec{}}
}

func (f *fakeEngine) enter(call, name string) error {
	f.mutex.Lock()
	before := f.before
	f.mutex.Unlock()
	if before != nil {
		before(call, name)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.calls = append(f.calls, call)
	if f.fail != nil {
		return f.fail(call, name)
	}
	return nil
}

func (f *fakeEngine) PrepareImage(_ context.Context, reference string, progress func(string)) (engine.Image, error) {
	if err := f.enter("prepare", reference); err != nil {
		return engine.Image{}, err
	}
	progress("pulling")
	return engine.Image{Reference: "image:" + reference, Made: reference == "", Cached: reference == "cached"}, nil
}

func (f *fakeEngine) Create(_ context.Context, spec engine.Spec) (string, error) {
	if err := f.enter("create", spec.Name); err != nil {
		return "", err
	}
	if err := spec.Validate(); err != nil {
		return "", err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if there, ok := f.instances[spec.Name]; ok {
		if !maps.Equal(there.Labels, spec.Labels) {
			return "", fmt.Errorf("creating: %w", engine.ErrConflict)
		}
		return spec.Name, nil
	}
	f.instances[spec.Name] = &engine.Instance{ID: spec.Name, Name: spec.Name, Status: engine.StatusCreated, Labels: maps.Clone(spec.Labels)}
	f.specs[spec.Name] = spec
	return spec.Name, nil
}

func (f *fakeEngine) set(ctx context.Context, call, id string, status engine.Status) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := f.enter(call, id); err != nil {
		return err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	there, ok := f.instances[id]
	if !ok {
		return engine.ErrNotFound
	}
	there.Status = status
	return nil
}

func (f *fakeEngine) Start(ctx context.Context, id string) error {
	if f.status(id) == engine.StatusPaused {
		return engine.ErrPaused
	}
	return f.set(ctx, "start", id, engine.StatusRunning)
}

func (f *fakeEngine) Pause(ctx context.Context, id string) error {
	return f.set(ctx, "pause", id, engine.StatusPaused)
}

func (f *fakeEngine) Unpause(ctx context.Context, id string) error {
	return f.set(ctx, "unpause", id, engine.StatusRunning)
}

func (f *fakeEngine) Stop(ctx context.Context, id string, grace time.Duration) error {
	f.mutex.Lock()
	f.grace = grace
	f.mutex.Unlock()
	return f.set(ctx, "stop", id, engine.StatusExited)
}

func (f *fakeEngine) Ready(ctx context.Context, id string) error {
	if err := f.enter("ready", id); err != nil {
		return err
	}
	if f.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (f *fakeEngine) List(_ context.Context, labels map[string]string) ([]engine.Instance, error) {
	if err := f.enter("list", ""); err != nil {
		return nil, err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	var found []engine.Instance
	for _, name := range slices.Sorted(maps.Keys(f.instances)) {
		if engine.MatchLabels(f.instances[name].Labels, labels) {
			found = append(found, *f.instances[name])
		}
	}
	return found, nil
}

func (f *fakeEngine) Remove(_ context.Context, id string) error {
	if err := f.enter("remove", id); err != nil {
		return err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if there, ok := f.instances[id]; ok && there.Status == engine.StatusRunning {
		return errors.New("it runs")
	}
	delete(f.instances, id)
	return nil
}

func (f *fakeEngine) Exec(ctx context.Context, id string, spec engine.ExecSpec) (int, error) {
	if err := f.enter("exec", id); err != nil {
		return 0, err
	}
	if f.exec != nil {
		return f.exec(ctx, spec)
	}
	_, err := fmt.Fprint(spec.Stdout, strings.Join(spec.Command, " "))
	return 7, err
}

func (f *fakeEngine) Logs(_ context.Context, _ string, _ engine.LogOptions, w io.Writer) error {
	_, err := io.WriteString(w, "a line\n")
	return err
}

func (f *fakeEngine) Work(ctx context.Context, id string) (engine.Work, error) {
	if ctx.Err() != nil {
		return engine.Work{}, ctx.Err()
	}
	if err := f.enter("work", id); err != nil {
		return engine.Work{}, err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if there, ok := f.instances[id]; !ok || there.Status != engine.StatusRunning && there.Status != engine.StatusPaused {
		return engine.Work{}, engine.ErrNotRunning
	}
	return f.work, nil
}

func (f *fakeEngine) Close() error { return nil }

// add puts an instance there as another agent or an earlier start would have.
func (f *fakeEngine) add(node, workspaceID string, token uint64, status engine.Status) string {
	name := "holdfast-" + workspace.InstanceName(workspaceID, token)
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.instances[name] = &engine.Instance{ID: name, Name: name, Status: status, Labels: map[string]string{
		engine.LabelWorkspace: workspaceID, engine.LabelToken: fmt.Sprint(token), engine.LabelNode: node,
	}}
	return name
}

func (f *fakeEngine) status(name string) engine.Status {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if there, ok := f.instances[name]; ok {
		return there.Status
	}
	return ""
}

func (f *fakeEngine) names() []string {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return slices.Sorted(maps.Keys(f.instances))
}

// quietBeater acknowledges every heartbeat.
type quietBeater struct{}

func (quietBeater) RecordActivityHeartbeat(context.Context, []byte, ...any) error { return nil }

// rig is a node with two stores that can be made to fail, and the control side that made its keys.
type rig struct {
	t       *testing.T
	node    *Node
	engine  *fakeEngine
	stores  [2]*faulty.Provider
	inner   [2]*storagetest.Memory
	catalog *catalog.Catalog
	control *Control
	policy  storage.Policy
	root    string
	logs    *logBuffer
	secrets []string
	now     moment
	sealed  workspace.SealResult
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

var cheap = snapshot.Options{KDF: snapshot.KDFParameters{N: 1024, R: 8, P: 1}, PackSize: 4 << 20}

// impatient leaves trying again to the activity's next attempt. It waits long for a store in memory, which is late only when
// the machine is.
var impatient = storage.MirrorOptions{RetryFor: -1, LagTimeout: 30 * time.Second, StallTimeout: time.Minute}

func newRig(t *testing.T, policy storage.Policy) *rig {
	t.Helper()
	r := &rig{t: t, engine: newFakeEngine(), policy: policy, root: t.TempDir(), logs: &logBuffer{}, secrets: []string{secretValue, secretToken}}
	var providers []storage.Provider
	for i := range r.stores {
		r.inner[i] = storagetest.NewMemory()
		r.stores[i] = faulty.New(r.inner[i])
		providers = append(providers, r.stores[i])
	}
	r.catalog = catalog.New(providers, policy)
	logger := slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	volumes, err := OpenVolumes(r.root)
	require.NoError(t, err)
	identity, err := keys.LoadOrCreateNodeIdentity(filepath.Join(t.TempDir(), "node.key"))
	require.NoError(t, err)
	r.node = &Node{
		Name: "node-1", Engine: r.engine, Volumes: volumes, Catalog: r.catalog, Identity: identity, Beater: quietBeater{},
		Lease: r.lease(), Logger: logger, Reserve: 1, Snapshots: cheap, Stores: impatient,
	}
	r.control = newControl(t, r.catalog, logger)
	t.Cleanup(func() { r.clean("the log", r.logs.String()) })
	return r
}

func newControl(t *testing.T, c *catalog.Catalog, logger *slog.Logger) *Control {
	t.Helper()
	control, err := keys.NewControl()
	require.NoError(t, err)
	return &Control{Catalog: c, Master: openMaster(t), Keys: control, Logger: logger, Snapshots: cheap, Stores: impatient}
}

func openMaster(t *testing.T) *keys.Master {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	_, err := keys.CreateLocalKey(path)
	require.NoError(t, err)
	url, err := keys.LocalKeyURL(path)
	require.NoError(t, err)
	master, err := keys.OpenMaster(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, master.Close()) })
	return master
}

// lease is live until a test moves the clock.
func (r *rig) lease() *Lease {
	lease := &Lease{clock: func() moment { return r.now }}
	lease.begin(workspace.LeaseInput{Epoch: 1, Timeout: 10 * time.Second})
	lease.renew(1, r.now)
	return lease
}

func (r *rig) pass(d time.Duration) { r.now.wall, r.now.steady = r.now.wall.Add(d), r.now.steady+d }

// clean fails when a planted secret is in a text.
func (r *rig) clean(where, text string) {
	r.t.Helper()
	for _, secret := range r.secrets {
		if strings.Contains(text, secret) {
			r.t.Errorf("%s holds a planted secret (%.12s…): %s", where, secret, text)
		}
	}
}

// run runs an activity as a worker does, error conversion included.
func run[I, R any](r *rig, function func(context.Context, I) (R, error), input I) (R, error) {
	r.t.Helper()
	var result R
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetTestTimeout(3 * time.Minute)
	environment.RegisterActivity(function)
	value, err := environment.ExecuteActivity(function, input)
	if err != nil {
		r.clean("an error", err.Error())
		return result, err
	}
	require.NoError(r.t, value.Get(&result))
	return result, nil
}

// runPlain is run for an activity without a result.
func runPlain[I any](r *rig, function func(context.Context, I) error, input I) error {
	r.t.Helper()
	_, err := run(r, func(ctx context.Context, input I) (bool, error) { return true, function(ctx, input) }, input)
	return err
}

// halt runs StopInstance.
func (r *rig) halt(input workspace.StopInstanceInput) error {
	r.t.Helper()
	_, err := run(r, r.node.StopInstance, input)
	return err
}

// typed asserts that an activity failed for good with a type of the closed list.
func typed(t *testing.T, err error, kind workspace.ErrorType) {
	t.Helper()
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.Equal(t, string(kind), application.Type(), "%v", err)
	require.True(t, application.NonRetryable(), "%v", err)
}

// transient asserts that an activity failed and is tried again.
func transient(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var application *temporal.ApplicationError
	if errors.As(err, &application) {
		require.False(t, application.NonRetryable(), "%v", err)
	}
}

func (r *rig) target(token uint64) workspace.Target {
	r.t.Helper()
	if r.sealed.Password == nil {
		secrets, err := json.Marshal(workspace.Secrets{
			Environment: map[string]string{"SECRET": secretValue}, GitURL: "https://ada:" + secretToken + "@git.invalid/repo.git",
		})
		require.NoError(r.t, err)
		sealed, err := keys.SealTo(r.control.Keys.Recipient(), secrets, keys.PurposeWorkspaceSecrets)
		require.NoError(r.t, err)
		r.sealed, err = r.control.Seal(r.t.Context(), workspace.SealInput{
			WorkspaceID: id, Name: "atlas", Owner: "ada", Node: "node-1", Recipient: r.node.Identity.Recipient(), Secrets: sealed,
		})
		require.NoError(r.t, err)
		password, err := r.node.Identity.Open(r.sealed.Password, keys.PurposeRepositoryPassword)
		require.NoError(r.t, err)
		r.secrets = append(r.secrets, string(password))
	}
	return workspace.Target{WorkspaceID: id, Name: "atlas", Token: token, Node: "node-1", Sealed: r.sealed.Password}
}

func (r *rig) record(token uint64, base string) {
	r.t.Helper()
	_, err := r.control.RecordInstance(r.t.Context(), workspace.InstanceRecord{
		WorkspaceID: id, Name: "atlas", Owner: "ada", Token: token, Node: "node-1", Base: base, Time: time.Unix(int64(token), 0).UTC(),
	})
	require.NoError(r.t, err)
}

// prepare makes an empty workspace with an instance record.
func (r *rig) prepare(token uint64) workspace.Target {
	r.t.Helper()
	target := r.target(token)
	r.record(token, "")
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target})
	require.NoError(r.t, err)
	return target
}

// started makes a running instance with a few files in its content.
func (r *rig) started(token uint64) workspace.Target {
	r.t.Helper()
	target := r.prepare(token)
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: r.sealed.Secrets})
	require.NoError(r.t, err)
	r.write(token, "src/main.go", "package main\n")
	r.write(token, "notes.txt", "what a person wrote\n")
	return target
}

func (r *rig) content(token uint64) string { return r.node.Volumes.content(id, token) }

func (r *rig) write(token uint64, name, text string) {
	r.t.Helper()
	path := filepath.Join(r.content(token), name)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(r.t, os.WriteFile(path, []byte(text), 0o644))
}

// stopped makes an instance that is stopped, snapshotted, verified and committed: what a removal is asked for.
func (r *rig) stopped(token uint64) workspace.RemoveInstanceInput {
	r.t.Helper()
	return r.finished(r.started(token))
}

// finished stops, snapshots, verifies and commits an instance.
func (r *rig) finished(target workspace.Target) workspace.RemoveInstanceInput {
	r.t.Helper()
	require.NoError(r.t, r.halt(workspace.StopInstanceInput{Target: target, GraceSeconds: 1}))
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(r.t, err)
	_, err = run(r, r.node.Verify, workspace.VerifyInput{Target: target, Snapshot: made.Backup.Snapshot})
	require.NoError(r.t, err)
	require.NoError(r.t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: commitOf(target, made)}))
	return workspace.RemoveInstanceInput{Target: target, Snapshot: made.Backup.Snapshot, StatDigest: made.StatDigest}
}

func commitOf(target workspace.Target, made workspace.BackupResult) workspace.Commit {
	return workspace.Commit{
		WorkspaceID: target.WorkspaceID, Token: target.Token, Sequence: 1, Snapshot: made.Backup.Snapshot, Kind: "final", Time: made.Time.UTC(),
		Files: made.Backup.Files, Bytes: made.Backup.Bytes, Omitted: made.Backup.Omitted, Omissions: made.Omissions, Excluded: made.Excluded, StatDigest: made.StatDigest, Node: target.Node,
	}
}

func away(p *faulty.Provider) {
	p.Inject(faulty.Rule{Kind: faulty.Error, Err: errors.New("lookup: i/o timeout")})
}

func newCatalogOf(provider storage.Provider) *catalog.Catalog {
	return catalog.New([]storage.Provider{provider}, storage.PolicyAll)
}
