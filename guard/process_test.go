package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/engine"
	"holdfast/engine/docker"
	"holdfast/engine/process"
)

// These tests use real processes: this program is also the supervisor, the guard and a pretended agent.
const (
	superviseRole = "engine-supervise"
	guardRole     = "guard-process" // DIR VERSION [--replace]
	agentRole     = "agent-process" // DIR VERSION KIND PAUSE-AFTER: beats until it ends
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case superviseRole:
			os.Exit(process.Supervise(os.Args[2:]))
		case guardRole, agentRole:
			if err := role(context.Background(), os.Args[1], os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func openEngine(kind, dir string) (engine.Engine, error) {
	if kind == "docker" {
		return docker.New(docker.Options{})
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return process.New(process.Options{Root: filepath.Join(dir, "engine"), Supervisor: []string{program, superviseRole}})
}

func role(ctx context.Context, name string, args []string) error {
	dir, version := args[0], args[1]
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if name == guardRole {
		pausers := map[string]Pauser{}
		for _, kind := range []string{"docker", "process"} {
			opened, err := openEngine(kind, dir)
			if err != nil {
				return err
			}
			pausers[kind] = opened.(Pauser)
		}
		return Run(ctx, Options{Dir: filepath.Join(dir, "guard"), Version: version, Replace: args[len(args)-1] == "--replace", Pausers: pausers, Logger: logger})
	}
	pauseAfter, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	opened, err := openEngine(args[2], dir)
	if err != nil {
		return err
	}
	client := newClient(dir, version, pauseAfter, opened, logger)
	go client.Run(ctx)
	for ticker := time.NewTicker(100 * time.Millisecond); ; <-ticker.C {
		client.Beat(Now())
	}
}

func newClient(dir, version string, pauseAfter time.Duration, e engine.Engine, logger *slog.Logger) *Client {
	program, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return &Client{
		Dir: filepath.Join(dir, "guard"), Command: []string{program, guardRole, dir, version, "--replace"}, Version: version,
		PauseAfter: pauseAfter, Engine: e, Node: "node-1", Logger: logger,
	}
}

// scene is a node with two instances, one of them exclusive.
type scene struct {
	t                *testing.T
	dir, kind        string
	engine           engine.Engine
	exclusive, other string
}

const shortly = 3 * time.Second

func newScene(t *testing.T, kind string) *scene {
	if kind == "docker" && exec.Command("docker", "version").Run() != nil {
		// As devtest.Missing, which is above this package.
		if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), "docker") {
			t.Fatal("HOLDFAST_REQUIRE names docker, and the engine does not answer")
		}
		t.Skip("docker does not answer")
	}
	s := &scene{t: t, dir: t.TempDir(), kind: kind}
	var err error
	s.engine, err = openEngine(kind, s.dir)
	require.NoError(t, err)
	t.Cleanup(func() { s.engine.Close() })
	t.Cleanup(func() {
		require.NoError(t, Stop(context.Background(), filepath.Join(s.dir, "guard")))
		for _, id := range []string{s.exclusive, s.other} {
			if id != "" {
				require.NoError(t, errors.Join(s.engine.Stop(context.Background(), id, 0), s.engine.Remove(context.Background(), id)))
			}
		}
	})
	s.exclusive = s.start("exclusive", map[string]string{engine.LabelNode: "node-1", engine.LabelExclusive: engine.Exclusive})
	s.other = s.start("other", map[string]string{engine.LabelNode: "node-1"})
	return s
}

func (s *scene) start(name string, labels map[string]string) string {
	image, err := s.engine.PrepareImage(s.t.Context(), "", func(string) {})
	require.NoError(s.t, err)
	content := filepath.Join(s.dir, name)
	require.NoError(s.t, os.Mkdir(content, 0o777))
	id, err := s.engine.Create(s.t.Context(), engine.Spec{
		Name: fmt.Sprintf("guarded-%s-%d", name, time.Now().UnixNano()), Image: image.Reference, Labels: labels, ContentDir: content,
		Command: []string{"/bin/sh", "-c", `cd "$HOLDFAST_WORKSPACE"; while :; do echo . >>count; sleep 0.05; done`},
	})
	require.NoError(s.t, err)
	require.NoError(s.t, s.engine.Start(s.t.Context(), id))
	return id
}

func (s *scene) size(name string) int64 {
	info, err := os.Stat(filepath.Join(s.dir, name, "count"))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (s *scene) grows(name string) {
	s.t.Helper()
	was := s.size(name)
	require.Eventually(s.t, func() bool { return s.size(name) > was }, 20*time.Second, 50*time.Millisecond, "%s does not write", name)
}

func (s *scene) paused() {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		found, err := s.engine.Inspect(s.t.Context(), s.exclusive)
		return err == nil && found.Status == engine.StatusPaused
	}, 30*time.Second, 50*time.Millisecond, "it is not paused")
	was := s.size("exclusive")
	s.grows("other")
	s.grows("other")
	require.Equal(s.t, was, s.size("exclusive"), "something of it still writes")
}

// agent starts a pretended agent, which has what is exclusive paused shortly, and waits until its guard is there.
func (s *scene) agent(version string) *exec.Cmd {
	s.t.Helper()
	return s.agentWith(version, shortly)
}

func (s *scene) agentWith(version string, pauseAfter time.Duration) *exec.Cmd {
	s.t.Helper()
	program, err := os.Executable()
	require.NoError(s.t, err)
	command := exec.Command(program, agentRole, s.dir, version, s.kind, pauseAfter.String())
	command.Stderr = os.Stderr
	require.NoError(s.t, command.Start())
	s.t.Cleanup(func() { command.Process.Kill(); command.Process.Wait() })
	s.holds(version)
	return command
}

// holds waits until a guard of a version holds the exclusive instance.
func (s *scene) holds(version string) (pid int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		l, err := dial(filepath.Join(s.dir, "guard"))
		if err != nil {
			return false
		}
		defer l.close()
		a, err := l.ask(s.t.Context(), time.Second, request{Op: opList})
		if err != nil || a.Version != version || len(a.Record.Instances) != 1 || a.Record.Instances[0].ID != s.exclusive {
			return false
		}
		pid = s.holder().PID
		return true
	}, 30*time.Second, 20*time.Millisecond, "no guard of %s", version)
	return pid
}

func (s *scene) holder() identity { return holderOf(s.t, s.dir) }

// holderOf is who holds the lock of a node's guard.
func holderOf(t *testing.T, dir string) identity {
	t.Helper()
	var found identity
	require.Eventually(t, func() bool { // it is written when the lock is held
		data, err := os.ReadFile(filepath.Join(dir, "guard", lockFile))
		return err == nil && json.Unmarshal(data, &found) == nil
	}, 10*time.Second, time.Millisecond)
	return found
}

func kinds(t *testing.T, run func(t *testing.T, kind string)) {
	for _, kind := range []string{"process", "docker"} {
		t.Run(kind, func(t *testing.T) { t.Parallel(); run(t, kind) })
	}
}

func TestTheAgentIsKilled(t *testing.T) {
	kinds(t, func(t *testing.T, kind string) {
		s := newScene(t, kind)
		agent := s.agent("v1")
		s.grows("exclusive")
		began := time.Now()
		require.NoError(t, agent.Process.Kill())
		s.paused()
		require.GreaterOrEqual(t, time.Since(began), shortly-time.Second, "not before its time")
		// Another agent finds the guard that is there, and decides itself what goes on.
		before := s.holder()
		s.agent("v1")
		require.Equal(t, before, s.holder())
		require.NoError(t, s.engine.Unpause(t.Context(), s.exclusive))
		s.grows("exclusive")
	})
}

func TestTheAgentIsFrozen(t *testing.T) {
	kinds(t, func(t *testing.T, kind string) {
		s := newScene(t, kind)
		agent := s.agent("v1")
		s.grows("exclusive")
		require.NoError(t, agent.Process.Signal(syscall.SIGSTOP))
		s.paused()
		// A resumption that the agent was in the middle of comes too late.
		require.NoError(t, s.engine.Unpause(t.Context(), s.exclusive))
		s.paused()
		require.NoError(t, agent.Process.Signal(syscall.SIGCONT))
		require.Eventually(t, func() bool {
			l, err := dial(filepath.Join(s.dir, "guard"))
			require.NoError(t, err)
			defer l.close()
			a, err := l.ask(t.Context(), time.Second, request{Op: opPing})
			return err == nil && !a.Due
		}, 20*time.Second, 50*time.Millisecond)
		require.NoError(t, s.engine.Unpause(t.Context(), s.exclusive))
		s.grows("exclusive")
	})
}

// The engine does not answer, or an agent that is frozen holds the instance's lock: the kernel is enough, and what stands counts
// as paused, goes on when it is let go on, and can be stopped.
func TestTheEngineDoesNotAnswer(t *testing.T) {
	kinds(t, func(t *testing.T, kind string) {
		s := newScene(t, kind)
		pauser, release := s.engine.(Pauser), func() error { return nil }
		switch kind {
		case "docker":
			silent, err := docker.New(docker.Options{Host: "unix://" + silentSocket(t)})
			require.NoError(t, err)
			t.Cleanup(func() { silent.Close() })
			pauser = silent
		default:
			name, _, _ := strings.Cut(s.exclusive, ".")
			lock, err := os.OpenFile(filepath.Join(s.dir, "engine", name, "lock"), os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
			t.Cleanup(func() { lock.Close() })
			release = lock.Close
		}
		s.grows("exclusive")
		k := &keeper{pausers: map[string]Pauser{kind: pauser}, logger: slog.Default(), now: Now, boot: "this"}
		require.NoError(t, k.hold(Instance{Kind: kind, ID: s.exclusive}))
		sent := Now()
		require.NoError(t, k.beaten(Moment{Boot: sent.Boot - time.Minute, Wall: sent.Wall.Add(-time.Minute)}, time.Minute))
		began := time.Now()
		k.tick(t.Context())
		k.calls.Wait()
		require.Less(t, time.Since(began), engineWithin+freezeWithin+lookWithin)
		s.paused()
		require.NoError(t, release())
		_, err := s.engine.Exec(t.Context(), s.exclusive, engine.ExecSpec{Command: []string{"/bin/true"}})
		require.ErrorIs(t, err, engine.ErrPaused)
		require.ErrorIs(t, s.engine.Start(t.Context(), s.exclusive), engine.ErrPaused)
	})
}

func TestWhatTheKernelFrozeGoesOn(t *testing.T) {
	kinds(t, func(t *testing.T, kind string) {
		s := newScene(t, kind)
		s.grows("exclusive")
		require.NoError(t, s.engine.(Pauser).Freeze(t.Context(), s.exclusive))
		s.paused()
		require.NoError(t, s.engine.Pause(t.Context(), s.exclusive), "it is paused")
		require.NoError(t, s.engine.Unpause(t.Context(), s.exclusive))
		s.grows("exclusive")
		require.NoError(t, s.engine.(Pauser).Freeze(t.Context(), s.exclusive))
		require.NoError(t, s.engine.Stop(t.Context(), s.exclusive, 5*time.Second))
		found, err := s.engine.Inspect(t.Context(), s.exclusive)
		require.NoError(t, err)
		require.Equal(t, engine.StatusExited, found.Status)
	})
}

// silentSocket is one whose connections are never answered.
func silentSocket(t *testing.T) string {
	dir, err := os.MkdirTemp("", "silent")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	require.NoError(t, unix.Listen(fd, 16))
	return path
}
