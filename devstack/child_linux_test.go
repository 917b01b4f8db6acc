package devstack_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A child dies with its parent, even when that is killed with SIGKILL and can do nothing about it. Only Linux can do that.
func TestChildDiesWithItsParent(t *testing.T) {
	t.Parallel()
	lock := filepath.Join(t.TempDir(), "lock")
	parent, out := testChild(t, "parent", lock)
	require.NoError(t, parent.Start())
	out.awaits(t, "parent | holder | holding", 1)
	require.Error(t, isFree(lock))
	require.NoError(t, parent.Kill())
	eventually(t, "the grandchild's death", func() error { return isFree(lock) })
}

// The thread that a child is started from may end; the child must not.
func TestChildOutlivesTheThreadThatStartedIt(t *testing.T) {
	t.Parallel()
	child, out := testChild(t, "hold", filepath.Join(t.TempDir(), "lock"))
	started := make(chan error)
	tid := make(chan int, 1)
	var start func()
	start = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if syscall.Gettid() == os.Getpid() {
			done := make(chan struct{}) // the main thread never ends: keep it away from another attempt
			go func() { defer close(done); start() }()
			<-done
			return
		}
		tid <- syscall.Gettid()
		started <- child.Start()
	}
	go start()
	require.NoError(t, <-started)
	out.awaits(t, "hold | holding", 1)
	thread := filepath.Join("/proc/self/task", strconv.Itoa(<-tid))
	eventually(t, "the thread's end", func() error {
		if _, err := os.Stat(thread); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	require.NoError(t, child.Signal(syscall.SIGHUP))
	out.awaits(t, "hold | alive", 1)
}
