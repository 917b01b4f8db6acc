package guard

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// unhurried is longer than a guard can take to have a successor, on a slow machine too: nothing has to be paused meanwhile.
const unhurried = 5 * time.Minute

func TestAGuardOfAnotherVersionTakesOver(t *testing.T) {
	t.Parallel()
	s := newScene(t, "process")
	first := s.agentWith("v1", unhurried)
	before := s.holder()
	fd, ok, err := before.open()
	require.NoError(t, err)
	require.True(t, ok)
	defer unix.Close(fd)
	require.NoError(t, first.Process.Kill())
	s.agentWith("v2", unhurried)
	require.NotEqual(t, before, s.holder())
	ended, err := gone(fd, 10*time.Second)
	require.NoError(t, err)
	require.True(t, ended, "the one before is still there")
	s.grows("exclusive")
}

// A guard that is frozen is replaced, and the next one has its list. It is known by more than its number.
func TestAGuardThatHangsIsReplaced(t *testing.T) {
	t.Parallel()
	s := newScene(t, "process")
	s.agentWith("v1", unhurried)
	before := s.holder()
	fd, ok, err := before.open()
	require.NoError(t, err)
	require.True(t, ok)
	defer unix.Close(fd)
	require.NoError(t, unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0))
	require.Eventually(t, func() bool { return s.holder() != before }, 30*time.Second, 50*time.Millisecond)
	s.holds("v1")
	ended, err := gone(fd, 10*time.Second)
	require.NoError(t, err)
	require.True(t, ended)
	s.grows("exclusive")
}

// A guard that was killed is started again, goes on with its list, and its agent says meanwhile that there is none.
func TestAGuardThatDiesIsStartedAgain(t *testing.T) {
	t.Parallel()
	s := newScene(t, "process")
	client := newClient(s.dir, "v1", time.Minute, s.engine, slog.New(slog.DiscardHandler))
	guarded := func() bool { is, _ := client.Guarded(); return is }
	require.False(t, guarded())
	require.Error(t, client.Hold(t.Context(), s.exclusive))
	client.Beat(Now())
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { defer close(ended); client.Run(ctx) }()
	require.Eventually(t, guarded, 30*time.Second, 20*time.Millisecond)
	before := s.holder()
	require.NoError(t, before.kill())
	require.Eventually(t, func() bool { return !guarded() }, 10*time.Second, time.Millisecond)
	require.Eventually(t, guarded, 30*time.Second, 20*time.Millisecond)
	require.NotEqual(t, before, s.holder())
	s.holds("v1")
	require.NoError(t, client.Hold(t.Context(), s.other))
	// The agent stops in order: what is held is guarded on.
	cancel()
	<-ended
	fd, ok, err := s.holder().open()
	require.NoError(t, err)
	require.True(t, ok, "it left although it holds something")
	unix.Close(fd)
}

// A guard with nothing to guard goes with its agent; one that waits for its turn takes nothing from another.
func TestAGuardWithoutInstances(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, err := openEngine("process", dir)
	require.NoError(t, err)
	client := newClient(dir, "v1", time.Minute, e, slog.New(slog.DiscardHandler))
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	t.Cleanup(func() { require.NoError(t, Stop(context.Background(), filepath.Join(dir, "guard"))) })
	go func() { defer close(ended); client.Run(ctx) }()
	require.Eventually(t, func() bool { is, _ := client.Guarded(); return is }, 30*time.Second, 20*time.Millisecond)
	info, err := os.Stat(filepath.Join(dir, "guard", socketFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	holder := holderOf(t, dir)
	fd, ok, err := holder.open()
	require.NoError(t, err)
	require.True(t, ok)
	defer unix.Close(fd)
	cancel()
	<-ended
	gone, err := gone(fd, 10*time.Second)
	require.NoError(t, err)
	require.True(t, gone)
}

// Nobody is signalled that is not the very process.
func TestIdentity(t *testing.T) {
	own, err := identify(os.Getpid())
	require.NoError(t, err)
	for _, wrong := range []identity{{}, {PID: 0, StartTime: 1, Boot: own.Boot}, {PID: 1, StartTime: 1, Boot: own.Boot}, {PID: -1, StartTime: 1, Boot: own.Boot}, {PID: own.PID}} {
		require.Error(t, wrong.kill(), "%+v", wrong)
	}
	for _, other := range []identity{{PID: own.PID, StartTime: own.StartTime + 1, Boot: own.Boot}, {PID: own.PID, StartTime: own.StartTime, Boot: "another"}} {
		require.NoError(t, other.kill(), "this process is another, and still here")
		_, ok, err := other.open()
		require.NoError(t, err)
		require.False(t, ok)
	}
	_, err = identify(1)
	require.Error(t, err)
}
