package devstack_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/devstack"
)

// output collects what a child prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) awaits(t *testing.T, line string, times int) {
	t.Helper()
	eventually(t, "waiting for "+line, func() error {
		if n := strings.Count(o.String(), line+"\n"); n < times {
			return errors.New("printed: " + o.String())
		}
		return nil
	})
}

func testChild(t *testing.T, name string, args ...string) (*devstack.Child, *output) {
	t.Helper()
	out := &output{}
	child := &devstack.Child{Name: name, Path: os.Args[0], Args: args, Env: part(name), Log: out}
	t.Cleanup(func() { require.NoError(t, child.Kill()) })
	return child, out
}

// isFree reports whether nobody holds the lock that the part "hold" takes: a process that is gone, also one that
// nobody has waited for, holds none.
func isFree(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
}

func TestChildStopKillRestart(t *testing.T) {
	t.Parallel()
	lock := filepath.Join(t.TempDir(), "lock")
	child, out := testChild(t, "hold", lock)
	<-child.Done() // it never ran
	require.NoError(t, child.Start())
	require.Error(t, child.Start(), "it runs already")
	out.awaits(t, "hold | holding", 1)
	require.True(t, child.Running())
	require.NotZero(t, child.PID())
	require.Error(t, isFree(lock))

	require.NoError(t, child.Stop(t.Context()))
	require.Contains(t, out.String(), "hold | released\n", "SIGTERM lets it end in order")
	require.NoError(t, child.Err(), "it was asked to end")
	require.NoError(t, isFree(lock))
	require.NoError(t, child.Stop(t.Context()), "stopping twice is no error")

	require.NoError(t, child.Start())
	out.awaits(t, "hold | holding", 2)
	require.NoError(t, child.Kill())
	require.Equal(t, 1, strings.Count(out.String(), "released"), "SIGKILL gives it no time")
	require.NoError(t, child.Err())
	var ended *devstack.ExitError
	require.ErrorAs(t, child.Exit(), &ended)
	require.ErrorContains(t, ended, "killed")

	require.NoError(t, child.Restart(t.Context()))
	out.awaits(t, "hold | holding", 3)
	require.NoError(t, child.Restart(t.Context()))
	out.awaits(t, "hold | holding", 4)

	require.NoError(t, child.Pause())
	require.NoError(t, child.Stop(t.Context()), "one that is paused can be stopped too")
	require.Equal(t, 3, strings.Count(out.String(), "released"))
}

func TestChildThatDoesNotStop(t *testing.T) {
	t.Parallel()
	child, out := testChild(t, "stubborn")
	child.Grace = 100 * time.Millisecond
	require.NoError(t, child.Start())
	out.awaits(t, "stubborn | holding", 1)
	require.NoError(t, child.Stop(t.Context()))
	require.Contains(t, out.String(), "did not stop within 100ms")
	require.False(t, child.Running())

	child.Grace = time.Hour
	require.NoError(t, child.Start())
	out.awaits(t, "stubborn | holding", 2)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.NoError(t, child.Stop(ctx), "the context's end is the end of patience")
	require.False(t, child.Running())
}

func TestChildDeathIsToldWithItsLastLines(t *testing.T) {
	t.Parallel()
	child, _ := testChild(t, "crash")
	require.NoError(t, child.Start())
	err := child.Wait(t.Context())
	var ended *devstack.ExitError
	require.ErrorAs(t, err, &ended)
	var status *exec.ExitError
	require.ErrorAs(t, err, &status)
	require.Equal(t, 1, status.ExitCode())
	require.Equal(t, []string{"all is well", "failed: the cause"}, ended.Tail)
	require.ErrorContains(t, err, "the cause")

	missing := &devstack.Child{Name: "nobody", Path: filepath.Join(t.TempDir(), "no-such-program")}
	require.ErrorIs(t, missing.Start(), os.ErrNotExist)
	require.NoError(t, missing.Kill())
}
