package process

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// newTestEngine makes an engine and removes whatever it still has at the end.
func newTestEngine(t *testing.T, options Options) *Engine {
	t.Helper()
	if options.Root == "" {
		options.Root = t.TempDir()
	}
	e, err := New(options)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		list, err := e.List(ctx, nil)
		require.NoError(t, err)
		for _, one := range list {
			require.NoError(t, e.Stop(ctx, one.ID, 0))
			require.NoError(t, e.Remove(ctx, one.ID))
		}
	})
	return e
}

func startTest(t *testing.T, e *Engine, spec engine.Spec) string {
	t.Helper()
	if spec.Name == "" {
		mark, err := randomID()
		require.NoError(t, err)
		spec.Name = "test-" + mark
	}
	if spec.ContentDir == "" {
		spec.ContentDir = t.TempDir()
	}
	id, err := e.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, e.Start(t.Context(), id))
	require.NoError(t, e.Ready(t.Context(), id))
	return id
}

func output(t *testing.T, e *Engine, id, script string) string {
	t.Helper()
	var out bytes.Buffer
	code, err := e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	require.Zero(t, code, out.String())
	return out.String()
}

// allModes runs a test with everything that the machine has, and without.
func allModes(t *testing.T, test func(t *testing.T, options Options)) {
	for name, options := range map[string]Options{
		"full": {}, "without namespaces": {NoNamespaces: true}, "without cgroups": {NoCgroups: true}, "bare": {NoNamespaces: true, NoCgroups: true},
	} {
		t.Run(name, func(t *testing.T) { test(t, options) })
	}
}

// TestAgentKilled kills an agent with SIGKILL: its workspace goes on, and the next agent finds it, uses it and stops it.
func TestAgentKilled(t *testing.T) {
	allModes(t, func(t *testing.T, options Options) {
		options.Root = t.TempDir()
		content := t.TempDir()
		request, err := json.Marshal(agentRequest{Root: options.Root, NoNamespaces: options.NoNamespaces, NoCgroups: options.NoCgroups, Content: content})
		require.NoError(t, err)
		agent := exec.Command("/proc/self/exe", "test-agent", string(request))
		agent.Env = append(os.Environ(), "AGENT_SECRET=planted-in-the-agent")
		var out bytes.Buffer
		agent.Stdout, agent.Stderr = &out, &out
		err = agent.Run()
		var killed *exec.ExitError
		require.ErrorAs(t, err, &killed, out.String())
		require.Equal(t, syscall.SIGKILL, killed.Sys().(syscall.WaitStatus).Signal(), out.String())

		e := newTestEngine(t, options)
		list, err := e.List(t.Context(), map[string]string{engine.LabelWorkspace: "w"})
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, engine.StatusRunning, list[0].Status)
		id := list[0].ID
		size := func() int64 {
			info, err := os.Stat(filepath.Join(content, "ticks"))
			if err != nil {
				return 0
			}
			return info.Size()
		}
		then := size()
		require.Eventually(t, func() bool { return size() > then }, time.Minute, 10*time.Millisecond, "it works on without an agent")
		require.NoError(t, e.Ready(t.Context(), id))
		require.Contains(t, output(t, e, id, "cat ticks"), "tick")
		require.NotContains(t, output(t, e, id, "env"), "planted")
		// What it says takes its way through the supervisor.
		require.Eventually(t, func() bool {
			var logged bytes.Buffer
			return e.Logs(t.Context(), id, engine.LogOptions{Tail: 1}, &logged) == nil && logged.String() == "said\n"
		}, time.Minute, 10*time.Millisecond)
		require.NoError(t, e.Start(t.Context(), id), "it runs already")
		require.NoError(t, e.Stop(t.Context(), id, time.Minute))
		seen, err := e.Inspect(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, engine.StatusExited, seen.Status)
		require.Zero(t, seen.ExitCode)
	})
}

type agentRequest struct {
	Root                    string
	NoNamespaces, NoCgroups bool
	Content                 string
}

// TestKilledSupervisor kills the supervisor or the init from outside, as the kernel does when memory is short.
func TestKilledSupervisor(t *testing.T) {
	allModes(t, func(t *testing.T, options Options) {
		for _, victim := range []string{"supervisor", "init", "both"} {
			e := newTestEngine(t, options)
			mark := strconv.FormatInt(time.Now().UnixNano(), 10)
			id := startTest(t, e, engine.Spec{Command: []string{"/bin/sh", "-c", "(setsid sleep " + mark + " &) ; exec sleep " + mark}})
			require.Eventually(t, func() bool { return countSleepers(mark) == 2 }, time.Minute, 10*time.Millisecond)
			found, err := e.load(id)
			require.NoError(t, err)
			if victim != "init" {
				require.NoError(t, found.run.Supervisor.signal(unix.SIGKILL))
			}
			if victim != "supervisor" {
				require.NoError(t, found.run.Init.signal(unix.SIGKILL))
			}
			require.Eventually(t, func() bool {
				seen, err := e.Inspect(t.Context(), id)
				return err == nil && seen.Status == engine.StatusExited && seen.ExitCode == 137
			}, time.Minute, 10*time.Millisecond, victim)
			require.ErrorIs(t, e.Ready(t.Context(), id), engine.ErrNotRunning)
			require.NoError(t, e.Stop(t.Context(), id, time.Second))
			require.Zero(t, countSleepers(mark), "%s: strays are gone after Stop", victim)
			require.NoError(t, e.Start(t.Context(), id), "it can be started again")
			require.NoError(t, e.Ready(t.Context(), id))
			require.NoError(t, e.Stop(t.Context(), id, 0))
			require.NoError(t, e.Remove(t.Context(), id))
			require.Zero(t, countSleepers(mark))
		}
	})
}

func countSleepers(mark string) int {
	return countProcesses(func(arguments string) bool {
		return strings.HasPrefix(arguments, "sleep\x00") && strings.Contains(arguments, mark)
	})
}

// countProcesses counts the processes of this machine whose arguments, a NUL after each, are as asked.
func countProcesses(wanted func(arguments string) bool) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return -1
	}
	count := 0
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && wanted(string(data)) {
			count++
		}
	}
	return count
}

// TestPidReuse is a record whose process number belongs to somebody else by now: that one is never touched.
func TestPidReuse(t *testing.T) {
	bystander := exec.Command("sleep", "600")
	require.NoError(t, bystander.Start())
	defer func() {
		require.NoError(t, bystander.Process.Kill())
		_ = bystander.Wait()
	}()
	pid := bystander.Process.Pid
	now, err := identify(pid)
	require.NoError(t, err)
	require.True(t, now.alive())
	for name, stranger := range map[string]identity{
		"another start time": {PID: pid, StartTime: now.StartTime - 1, BootID: now.BootID},
		"another boot":       {PID: pid, StartTime: now.StartTime, BootID: "another"},
	} {
		require.False(t, stranger.alive(), name)
		require.NoError(t, stranger.signal(unix.SIGKILL), name)
	}
	for _, pid := range []int{-1, 0, 1} {
		require.Error(t, identity{PID: pid, BootID: bootID()}.signal(unix.SIGTERM))
		require.False(t, identity{PID: pid, BootID: bootID()}.alive())
		require.Error(t, cgroupSet{}.add(pid))
	}
	require.True(t, now.alive(), "the bystander lives")

	// The same through Stop: the recorded supervisor and init are now somebody else.
	e := newTestEngine(t, Options{})
	id := startTest(t, e, engine.Spec{})
	require.NoError(t, e.Stop(t.Context(), id, time.Second))
	found, err := e.load(id)
	require.NoError(t, err)
	forged := *found.run
	forged.Supervisor = identity{PID: pid, StartTime: now.StartTime - 1, BootID: now.BootID}
	forged.Init = forged.Supervisor
	require.NoError(t, writeJSON(filepath.Join(found.dir, runFile), forged))
	require.NoError(t, e.Stop(t.Context(), id, 0))
	require.NoError(t, e.Start(t.Context(), id))
	require.True(t, now.alive())
}

// TestStartedOnce starts one instance from many places: there is one supervisor.
func TestStartedOnce(t *testing.T) {
	e := newTestEngine(t, Options{})
	content := t.TempDir()
	id, err := e.Create(t.Context(), engine.Spec{Name: "once", ContentDir: content, Command: []string{"/bin/sh", "-c", "echo x >> started; exec sleep 600"}})
	require.NoError(t, err)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			other, err := New(Options{Root: e.options.Root})
			if err == nil {
				err = other.Start(t.Context(), id)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.NoError(t, e.Ready(t.Context(), id))
	found, err := e.load(id)
	require.NoError(t, err)
	// Those that lost have reported by now and are about to exit; a second one that held the instance would stay.
	require.Eventually(t, func() bool {
		return countProcesses(func(arguments string) bool { return strings.HasSuffix(arguments, "\x00run\x00"+found.dir+"\x00") }) == 1
	}, time.Minute, 10*time.Millisecond)
	// Ready says that the command runs, not that its shell has come to its first line.
	var data []byte
	require.Eventually(t, func() bool {
		data, err = os.ReadFile(filepath.Join(content, "started"))
		return err == nil && len(data) > 0
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, "x\n", string(data))
}

func TestParseStat(t *testing.T) {
	data, err := os.ReadFile("/proc/self/stat")
	require.NoError(t, err)
	got, err := parseStat(data)
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), got.pid)
	require.Equal(t, os.Getppid(), got.parent)
	got, err = parseStat([]byte("12 (a) b) (c) S 7 12 9 0 -1 0 0 0 0 0 5 6 7 8 20 0 3 0 4242 0 99 0\n"))
	require.NoError(t, err)
	require.Equal(t, stat{pid: 12, parent: 7, session: 9, state: 'S', ticks: 26, startTime: 4242, residentPages: 99, threads: 3}, got)
}

// TestDead: a process whose first thread has ended is not dead before the others are.
func TestParseIO(t *testing.T) {
	got, err := parseIO([]byte("rchar: 1948\nwchar: 5\nsyscr: 7\nsyscw: 0\nread_bytes: 4096\nwrite_bytes: 0\ncancelled_write_bytes: 0\n"))
	require.NoError(t, err)
	require.EqualValues(t, 1953, got)
	for _, bad := range []string{"", "rchar: 1\n", "rchar: 1\nwchar: x\n", "rchar: 1\nwchar: -1\n", "rchar: 1\nwchar: 99999999999999999999\n"} {
		_, err := parseIO([]byte(bad))
		require.Error(t, err, "%q", bad)
	}
}

func TestDead(t *testing.T) {
	for text, want := range map[string]bool{"Z 1": true, "X 0": true, "Z 0": true, "Z 2": false, "S 1": false, "T 3": false, "D 1": false} {
		state, threads, _ := strings.Cut(text, " ")
		got, err := parseStat([]byte("12 (a) " + state + " 7 12 9 0 -1 0 0 0 0 0 5 6 7 8 20 0 " + threads + " 0 4242 0 99 0\n"))
		require.NoError(t, err)
		require.Equal(t, want, got.dead(), text)
	}
	// As the kernel shows it.
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3, which can end its first thread only, is not here")
	}
	program := exec.Command(python, "-c", `import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)`)
	require.NoError(t, program.Start())
	defer func() {
		_ = program.Process.Kill()
		_ = program.Wait()
	}()
	who, err := identify(program.Process.Pid)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		seen, err := readStat(who.PID)
		return err == nil && seen.state == 'Z'
	}, time.Minute, 10*time.Millisecond)
	require.True(t, who.alive())
	require.NoError(t, program.Process.Kill())
	require.Eventually(t, func() bool { return !who.alive() }, time.Minute, 10*time.Millisecond)
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) (c) S 7 12 9 0 -1 0 0 0 0 0 5 6 7 8 20 0 3 0 4242 0 99 0\n"))
	f.Add([]byte("(x) S"))
	f.Add([]byte(") ("))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parseStat(data) })
}

// AgentMain is the agent that TestAgentKilled kills: it starts an instance, and dies by its own SIGKILL at the worst time it
// can choose, right after it knows that the instance runs.
func AgentMain(argument string) int {
	var request agentRequest
	if err := json.Unmarshal([]byte(argument), &request); err != nil {
		fmt.Println(err)
		return 1
	}
	e, err := New(Options{Root: request.Root, NoNamespaces: request.NoNamespaces, NoCgroups: request.NoCgroups})
	if err == nil {
		var id string
		id, err = e.Create(context.Background(), engine.Spec{Name: "survivor", ContentDir: request.Content, Labels: map[string]string{engine.LabelWorkspace: "w"},
			Command: []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do echo tick >> ticks; echo said; sleep 0.02; done"}})
		if err == nil {
			err = e.Start(context.Background(), id)
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
