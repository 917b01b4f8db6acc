package devstack_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/keys"
	"holdfast/storage/resolver"
)

// events collects a stack's.
type events struct {
	mu  sync.Mutex
	all []devstack.Event
}

func (e *events) add(event devstack.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

func (e *events) of(kind devstack.EventKind) (components []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if event.Kind == kind {
			components = append(components, event.Component)
		}
	}
	return components
}

func startStack(t *testing.T, options devstack.StackOptions) (*devstack.Stack, *events) {
	t.Helper()
	seen := &events{}
	options.Progress = seen.add
	if options.External == nil {
		options.Temporal.Binary = devtest.Binary(t)
	}
	stack, err := devstack.StartStack(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, stack.Stop(context.Background()))
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(stack.LogDir(), "*.log"))
			for _, path := range logs {
				text, _ := os.ReadFile(path)
				t.Logf("%s:\n%s", path, text)
			}
		}
	})
	return stack, seen
}

func lookUp(t *testing.T, stack *devstack.Stack) string {
	t.Helper()
	r := resolver.New(resolver.Options{Servers: stack.File().DNS, StaleFor: -1})
	defer r.Close()
	addrs, err := r.LookupHost(t.Context(), "storage.holdfast.test")
	require.NoError(t, err)
	require.Len(t, addrs, 1)
	return addrs[0].String()
}

// The whole stack: up, killed part by part, moved, and down; everything goes on where it was.
func TestStack(t *testing.T) {
	// Whatever the person's environment says, the children are this stack's.
	t.Setenv("TEMPORAL_ADDRESS", "temporal.example.com:7233")
	t.Setenv("TEMPORAL_API_KEY", "a real one")
	t.Setenv("HOLDFAST_STORE", "gs://a-real-one")
	dir := filepath.Join(t.TempDir(), "data")
	stack, seen := startStack(t, stackOptions(dir))
	ctx := t.Context()
	require.Equal(t, []string{"temporal", "dns", "storage", "control"}, seen.of(devstack.EventReady)[:4])
	require.Contains(t, seen.of(devstack.EventNote), "keys", "the new master key is announced")

	file, err := devstack.LoadStack(dir)
	require.NoError(t, err)
	require.Equal(t, stack.File(), file)
	addresses := map[string]bool{}
	for _, role := range append([]string{"control"}, file.Nodes...) {
		host, _, err := net.SplitHostPort(file.Metrics[role])
		require.NoError(t, err, role)
		require.Equal(t, "127.0.0.1", host)
		addresses[file.Metrics[role]] = true
	}
	require.Len(t, addresses, 1+len(file.Nodes), "one address for each role")
	require.Equal(t, stack.Temporal().Address(), file.TemporalAddress)
	require.Equal(t, []string{"gs://holdfast", "file://" + dir + "/store"}, file.Stores)
	require.Equal(t, "any", file.Policy)
	require.Len(t, file.DNS, 3)
	require.Equal(t, []string{"node-1", "node-2"}, file.Nodes)
	for path, mode := range map[string]fs.FileMode{".": 0o700, "stack.json": 0o600, "keys/master.key": 0o600, "keys/codec.key": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}
	master, err := keys.OpenMaster(ctx, file.MasterKey)
	require.NoError(t, err)
	require.NoError(t, master.Close())
	require.FileExists(t, filepath.Join(stack.NodeDir("node-2"), "was-here"))
	require.NoError(t, stack.SetControlRecipient("age1x"))
	file, err = devstack.LoadStack(dir)
	require.NoError(t, err)
	require.Equal(t, "age1x", file.ControlRecipient)

	// The Web UI's codec endpoint wants its token.
	decode := func(token string) int {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, file.CodecEndpoint+"/decode", strings.NewReader(`{"payloads":[]}`))
		require.NoError(t, err)
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	require.Equal(t, http.StatusOK, decode(file.CodecToken))
	require.Equal(t, http.StatusUnauthorized, decode("guessed"))
	requireWebUIDecodes(t, file)

	// A second stack on the directory is refused, and disturbs nothing.
	second := stackOptions(dir)
	second.Temporal.Binary = devtest.Binary(t)
	_, err = devstack.StartStack(ctx, second)
	require.ErrorIs(t, err, devstack.ErrInUse)
	require.ErrorContains(t, err, dir)
	_, err = devstack.LoadStack(dir)
	require.NoError(t, err)

	// An agent that is killed stays dead until it is started, and is a new incarnation then.
	node := stack.Node("node-1")
	pid := node.PID()
	require.NoError(t, node.Kill())
	require.False(t, node.Running())
	require.NoError(t, node.Start(ctx))
	require.NotEqual(t, pid, node.PID())
	require.NotContains(t, seen.of(devstack.EventDied), "node-1")

	// One that dies by itself is noticed and started again.
	require.NoError(t, signalPID(node.PID(), syscall.SIGSEGV))
	eventually(t, "the agent's return", func() error {
		if len(seen.of(devstack.EventDied)) == 0 || !node.Running() {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, []string{"node-1"}, seen.of(devstack.EventDied))

	// The storage moves: its objects and its port stay, its address and the DNS servers' answers do not.
	require.Equal(t, "127.0.0.2", lookUp(t, stack))
	require.NoError(t, stack.MoveStorage(ctx, "127.0.0.3"))
	require.Equal(t, "127.0.0.3", lookUp(t, stack))
	_, port, err := net.SplitHostPort(strings.TrimPrefix(file.GCSEndpoint, "http://"))
	require.NoError(t, err)
	_, err = net.DialTimeout("tcp", "127.0.0.2:"+port, time.Minute)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	response, err := http.Get("http://127.0.0.3:" + port + "/storage/v1/b/holdfast")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Error(t, stack.MoveStorage(ctx, "192.0.2.1"), "only loopback")

	// Temporal dies: it is back by itself at the same address.
	require.NoError(t, signalPID(stack.Temporal().PID(), syscall.SIGKILL))
	eventually(t, "Temporal's return", func() error {
		_, err := stack.Client().DescribeWorkflowExecution(ctx, "node/node-1", "")
		return errors.Join(err, stack.Temporal().Err())
	})

	require.NoError(t, stack.Stop(context.Background()))
	stopped := seen.of(devstack.EventStopped)
	require.ElementsMatch(t, []string{"node-1", "node-2"}, stopped[:2], "agents first")
	require.Equal(t, []string{"control", "storage", "temporal", ""}, stopped[2:])
	_, err = devstack.LoadStack(dir)
	require.ErrorIs(t, err, devstack.ErrNoStack)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "holdfast dev")
	require.Error(t, node.Start(ctx), "nothing starts on a stack that has stopped")
}

// signalPID is for the death that nobody ordered: only of a process that the stack says is its own and alive.
func signalPID(pid int, signal syscall.Signal) error {
	if pid <= 1 {
		return errors.New("no such process")
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return process.Signal(signal)
}

// A stack whose process is killed leaves nothing behind that runs, is found dead, and starts again on its data.
func TestStackKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	devtest.Binary(t) // so that the child need not build it
	child, out := testChild(t, "dev", dir)
	require.NoError(t, child.Start())
	out.awaits(t, "dev | up", 1)
	file, err := devstack.LoadStack(dir)
	require.NoError(t, err)
	require.Equal(t, child.PID(), file.PID)
	require.NoError(t, child.Kill())
	_, err = devstack.LoadStack(dir)
	require.ErrorIs(t, err, devstack.ErrNoStack)
	require.ErrorContains(t, err, "has ended without cleaning up")
	eventually(t, "the end of Temporal", func() error {
		conn, err := net.DialTimeout("tcp", file.TemporalAddress, time.Second)
		if err == nil {
			return errors.Join(errors.New("it listens"), conn.Close())
		}
		return nil
	})
	// The emulator's directory is locked for as long as that child of the first lives.
	eventually(t, "the end of the storage", func() error { return isFree(filepath.Join(dir, "storage", "lock")) })

	again, seen := startStack(t, stackOptions(dir))
	require.NotContains(t, seen.of(devstack.EventNote), "keys", "the keys are the old ones")
	require.Equal(t, file.CodecKey, again.File().CodecKey)
}

// `dev` uses a Temporal server that runs already, as it is.
func TestStackOnAnotherTemporal(t *testing.T) {
	server := devtest.Temporal(t)
	options := stackOptions(filepath.Join(t.TempDir(), "data"))
	options.External = &client.Options{HostPort: server.Address(), Namespace: server.Namespace()}
	options.Nodes = []string{"only"}
	t.Setenv("TEMPORAL_ADDRESS", server.Address())
	stack, _ := startStack(t, options)
	require.Nil(t, stack.Temporal())
	require.Equal(t, server.Address(), stack.File().TemporalAddress)
	require.Empty(t, stack.File().UIURL)
	require.Nil(t, stack.Node("node-1"))
	require.NoError(t, stack.Stop(context.Background()))
	_, err := server.Client().DescribeWorkflowExecution(t.Context(), "node/only", "")
	require.NoError(t, err, "it is left running")
}

// What fails at the start leaves nothing running, and says why.
func TestStackStartFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	options := stackOptions(dir)
	options.Temporal.Binary = devtest.Binary(t)
	options.Roles.Control = func(devstack.StackFile) devstack.Command {
		return devstack.Command{Env: []string{"DEVSTACK_TEST_PART=crash"}}
	}
	_, err := devstack.StartStack(t.Context(), options)
	require.ErrorContains(t, err, "control")
	require.ErrorContains(t, err, "the cause")
	_, err = devstack.LoadStack(dir)
	require.ErrorIs(t, err, devstack.ErrNoStack)

	for name, change := range map[string]func(*devstack.StackOptions){
		"node":         func(o *devstack.StackOptions) { o.Nodes = []string{"Node 1"} },
		"twice":        func(o *devstack.StackOptions) { o.Nodes = []string{"a", "a"} },
		"another part": func(o *devstack.StackOptions) { o.Nodes = []string{"control"} },
		"policy":       func(o *devstack.StackOptions) { o.Policy = "some" },
		"loopback":     func(o *devstack.StackOptions) { o.Storage.Address = "192.0.2.1" },
	} {
		options := stackOptions(filepath.Join(t.TempDir(), "data"))
		options.Temporal.Binary = devtest.Binary(t)
		change(&options)
		_, err := devstack.StartStack(t.Context(), options)
		require.ErrorContains(t, err, name)
	}
}

func TestLoadStackOfAnotherKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "stack.json")
	_, err := devstack.LoadStack(dir)
	require.ErrorIs(t, err, devstack.ErrNoStack)
	require.ErrorContains(t, err, "TEMPORAL_ADDRESS")

	require.NoError(t, os.WriteFile(path, []byte(`{"version": 1,`), 0o600))
	_, err = devstack.LoadStack(dir)
	require.NotErrorIs(t, err, devstack.ErrNoStack)
	require.ErrorContains(t, err, "damaged")

	content, err := json.Marshal(devstack.StackFile{Version: 99})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	_, err = devstack.LoadStack(dir)
	require.NotErrorIs(t, err, devstack.ErrNoStack)
	require.ErrorContains(t, err, "version 99")
}
