package devstack_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/workspace"
)

// counting waits for three signals and returns how many came; it is what must survive.
func counting(ctx workflow.Context) (int, error) {
	n := 0
	if err := workflow.SetQueryHandler(ctx, "n", func() (int, error) { return n, nil }); err != nil {
		return 0, err
	}
	for ; n < 3; n++ {
		workflow.GetSignalChannel(ctx, "go").Receive(ctx, nil)
	}
	return n, nil
}

func startWorker(t *testing.T, c client.Client, queue string) {
	t.Helper()
	w := worker.New(c, queue, worker.Options{StickyScheduleToStartTimeout: time.Second})
	w.RegisterWorkflowWithOptions(counting, workflow.RegisterOptions{Name: "counting"})
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
}

func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = condition(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func countIs(ctx context.Context, run client.WorkflowRun, c client.Client, want int) func() error {
	return func() error {
		value, err := c.QueryWorkflow(ctx, run.GetID(), run.GetRunID(), "n")
		if err != nil {
			return err
		}
		var n int
		if err := value.Get(&n); err != nil {
			return err
		}
		if n != want {
			return errors.New("it is " + strconv.Itoa(n))
		}
		return nil
	}
}

// A workflow survives SIGKILL, a stop and a pause of the server (the part of A3 that is Temporal's own, as we start it).
func TestTemporalKillRestartResume(t *testing.T) {
	t.Parallel()
	server := devtest.Start(t, devstack.TemporalOptions{Dir: t.TempDir()})
	ctx := t.Context()
	c := server.Client()
	startWorker(t, c, "q")
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: "one", TaskQueue: "q",
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind).ValueSet("workspace"),
			temporal.NewSearchAttributeKeyTime(workspace.AttributeLastSnapshot).ValueSet(time.Now()),
		),
	}, "counting")
	require.NoError(t, err)
	address := server.Address()

	require.NoError(t, c.SignalWorkflow(ctx, "one", "", "go", nil))
	eventually(t, "the first signal", countIs(ctx, run, c, 1))
	done := server.Done()
	require.NoError(t, server.Kill())
	<-done
	require.NoError(t, server.Err(), "a kill on purpose is no failure")
	require.NoError(t, server.Restart(ctx))
	require.Equal(t, address, server.Address())
	eventually(t, "the workflow after a kill", countIs(ctx, run, c, 1))

	require.NoError(t, c.SignalWorkflow(ctx, "one", "", "go", nil))
	require.NoError(t, server.Restart(ctx)) // through SIGTERM
	eventually(t, "the workflow after a restart", countIs(ctx, run, c, 2))

	require.NoError(t, server.Pause())
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	_, err = c.WorkflowService().GetSystemInfo(short, &workflowservice.GetSystemInfoRequest{})
	cancel()
	require.Error(t, err, "a paused server answers nobody")
	require.NoError(t, server.Resume())
	require.NoError(t, c.SignalWorkflow(ctx, "one", "", "go", nil))
	var n int
	require.NoError(t, run.Get(ctx, &n))
	require.Equal(t, 3, n)

	eventually(t, "finding it by its search attribute", func() error {
		found, err := c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: "HoldfastKind = 'workspace'"})
		if err == nil && found.GetCount() != 1 {
			err = errors.New("it is not there")
		}
		return err
	})
}

// The death of the server is noticed, with its last words; a restart on the same file goes on.
func TestTemporalDeathIsNoticed(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartTemporal(t.Context(), devstack.TemporalOptions{Binary: devtest.Binary(t), Headless: true, Fast: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close(context.Background())) })
	require.FileExists(t, server.DatabaseFile())
	process, err := os.FindProcess(server.PID())
	require.NoError(t, err)
	require.NoError(t, process.Signal(syscall.SIGABRT)) // as a crash would: Go prints its goroutines
	select {
	case <-server.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("not noticed")
	}
	var ended *devstack.ExitError
	require.ErrorAs(t, server.Err(), &ended)
	require.NotEmpty(t, ended.Tail)
	require.NoError(t, server.Restart(t.Context()))
	require.NoError(t, server.Err())

	require.NoError(t, server.Close(t.Context()))
	require.NoFileExists(t, server.DatabaseFile(), "a temporary database is removed")
}

func TestTemporalPortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	for name, options := range map[string]devstack.TemporalOptions{
		"server": {Port: port, Headless: true},
		"ui":     {UIPort: port},
	} {
		options.Binary = devtest.Binary(t)
		_, err = devstack.StartTemporal(t.Context(), options)
		var inUse *devstack.PortError
		require.ErrorAs(t, err, &inUse, name)
		require.ErrorIs(t, err, syscall.EADDRINUSE, name)
		require.Contains(t, err.Error(), strconv.Itoa(port), name)
		require.Contains(t, err.Error(), "choose another port", name)
	}
}

// Everything that the server listens on is loopback: it lets in everybody who reaches it.
func TestTemporalListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	_, err := devstack.StartTemporal(t.Context(), devstack.TemporalOptions{Binary: devtest.Binary(t), Host: "0.0.0.0"})
	require.ErrorContains(t, err, "loopback")

	server, err := devstack.StartTemporal(t.Context(), devstack.TemporalOptions{Binary: devtest.Binary(t), Fast: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close(context.Background())) })
	require.Contains(t, server.UIURL(), "http://127.0.0.1:")
	mine := map[string]bool{}
	links, err := filepath.Glob("/proc/" + strconv.Itoa(server.PID()) + "/fd/*")
	require.NoError(t, err)
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "socket:[") {
			mine[strings.Trim(to, "socket:[]")] = true
		}
	}
	listening := 0
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			const listen = "0A"
			if len(fields) < 10 || fields[3] != listen || !mine[fields[9]] {
				continue
			}
			listening++
			require.True(t, strings.HasPrefix(fields[1], "0100007F:"), "it listens on %s", fields[1])
		}
	}
	if _, err := os.Stat("/proc/net/tcp"); err == nil {
		require.GreaterOrEqual(t, listening, 3)
	}
}

// A later release may bring another search attribute: it is added to a database that is there.
func TestTemporalAddsSearchAttributesToAnOldDatabase(t *testing.T) {
	t.Parallel()
	options := devstack.TemporalOptions{Binary: devtest.Binary(t), Dir: t.TempDir(), Headless: true, Fast: true}
	options.SearchAttributes = map[string]enumspb.IndexedValueType{workspace.AttributeKind: enumspb.INDEXED_VALUE_TYPE_KEYWORD}
	old, err := devstack.StartTemporal(t.Context(), options)
	require.NoError(t, err)
	require.NoError(t, old.Kill())

	options.SearchAttributes = nil
	server := devtest.Start(t, options)
	_, err = server.Client().CountWorkflow(t.Context(), &workflowservice.CountWorkflowExecutionsRequest{
		Query: "HoldfastLastSnapshot > '2026-01-01T00:00:00Z' AND HoldfastOwner = 'x'",
	})
	require.NoError(t, err)

	require.NoError(t, server.Kill())
	options.SearchAttributes = map[string]enumspb.IndexedValueType{workspace.AttributeKind: enumspb.INDEXED_VALUE_TYPE_INT}
	_, err = devstack.StartTemporal(t.Context(), options)
	require.ErrorContains(t, err, "HoldfastKind")
}

// A database that the server was making when it was killed, and one of another version, are not used.
func TestTemporalDatabaseOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var said []string
	options := devstack.TemporalOptions{
		Binary: devtest.Binary(t), Dir: dir, Headless: true, Fast: true,
		Progress: func(line string) { said = append(said, line) },
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "temporal-0.0.1.db"), []byte("old"), 0o600))
	server, err := devstack.StartTemporal(t.Context(), options)
	require.NoError(t, err)
	require.NoError(t, server.Kill())
	require.Len(t, said, 1)
	require.Contains(t, said[0], "No workspace is lost")
	kept, err := os.ReadFile(filepath.Join(dir, "temporal-0.0.1.db"))
	require.NoError(t, err)
	require.Equal(t, "old", string(kept))

	said = nil
	require.NoError(t, os.WriteFile(server.DatabaseFile(), []byte("half of a schema"), 0o600))
	require.NoError(t, os.Remove(server.DatabaseFile()+".json"))
	require.NoError(t, os.RemoveAll(server.DatabaseFile()+"-wal")) // which would mend it
	server, err = devstack.StartTemporal(t.Context(), options)
	require.NoError(t, err)
	require.NoError(t, server.Kill())
	require.Len(t, said, 1)
	require.Contains(t, said[0], "not finished")
	require.FileExists(t, server.DatabaseFile()+".unfinished")
}
