package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// Descriptors that a supervisor and an init are started with.
const (
	reportFD   = 3 // supervisor: where it says that the run began, or why not. init: the link to the supervisor
	listenerFD = 4 // init: the control socket
	configFD   = 5 // init: its configuration, a memory file, so that no secret is in an argument or an environment
)

const keepAliveCode = 0

// Supervise is the entry of the supervisor and of the init, for main to call when the program was started with the
// Options.Supervisor prefix: args is what follows the prefix. It returns the exit status for os.Exit.
func Supervise(args []string) int {
	prefix := os.Args[:max(1, len(os.Args)-len(args))]
	var err error
	switch {
	case len(args) == 2 && args[0] == "run":
		err = supervise(args[1], prefix)
	case len(args) == 1 && (args[0] == "init" || args[0] == "init-unprivileged"):
		err = runInit(args[0] == "init-unprivileged", prefix)
	default:
		err = errors.New("this command is for holdfast itself: it holds a workspace's processes")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s %v\n", time.Now().UTC().Format(time.RFC3339), err)
		return 1
	}
	return 0
}

// startReport is what the supervisor tells the agent that started it.
type startReport struct {
	Error string `json:"error,omitempty"`
}

// supervise holds one run of an instance: it outlives the agent, pumps the output, records how the run ended, and makes
// sure that nothing of it is left.
func supervise(dir string, prefix []string) error {
	syscall.CloseOnExec(reportFD)
	report := os.NewFile(reportFD, "report")
	if report == nil {
		return errors.New("started without a report descriptor")
	}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	// From the very start: a Stop may come as soon as the run is on record, and a supervisor that dies of it loses the exit.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	fail := func(err error) error {
		// The agent may be gone: then nobody waits for this.
		_ = json.NewEncoder(report).Encode(startReport{Error: err.Error()})
		report.Close()
		return err
	}
	held, err := os.OpenFile(filepath.Join(dir, supervisorLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(fmt.Errorf("opening the supervisor's lock: %w", err))
	}
	defer held.Close()
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(fmt.Errorf("another supervisor holds this instance: %w", err))
	}
	known, err := readJSON[record](filepath.Join(dir, specFile))
	if err != nil {
		return fail(err)
	}
	if known == nil {
		return fail(errors.New("the instance has no description"))
	}
	// What the instance's processes leave behind comes to us and not to the machine's pid 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fail(fmt.Errorf("becoming the reaper of the instance: %w", err))
	}
	log, err := newRotatingLog(filepath.Join(dir, outputFile), filepath.Join(dir, oldOutputFile), known.Options.LogBytes)
	if err != nil {
		return fail(err)
	}
	defer log.Close()

	started := &supervisedRun{dir: dir, record: *known, prefix: prefix, log: log}
	if err := started.start(); err != nil {
		started.sweep()
		return fail(err)
	}
	if err := json.NewEncoder(report).Encode(startReport{}); err != nil {
		fmt.Fprintln(os.Stderr, "the agent went away while the instance was started:", err)
	}
	report.Close()
	return started.wait(signals)
}

// supervisedRun is the supervisor's view of one run.
type supervisedRun struct {
	dir    string
	record record
	prefix []string
	log    *rotatingLog

	run      run
	link     *net.UnixConn // to the init
	decoder  *json.Decoder
	init     *os.Process
	pumped   chan struct{}
	exitCode chan int // what the init reported before it ended
}

// start runs the init, with namespaces when this machine allows them, else without.
func (s *supervisedRun) start() error {
	id, err := randomID()
	if err != nil {
		return err
	}
	own, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	s.run = run{ID: id, Supervisor: own, StartedAt: time.Now().UTC()}
	want := limits{memory: s.record.Spec.MemoryBytes, cpus: s.record.Spec.CPUs, pids: s.record.Spec.PIDs}
	if want.pids == 0 {
		want.pids = engine.DefaultPIDs
	}
	if s.record.Options.NoCgroups {
		s.run.Notes = append(s.run.Notes, "no cgroups by configuration: limits are not enforced")
	} else {
		var notes []string
		s.run.Cgroups, notes = makeCgroups(cgroupOf(s.record.ID), s.record.Options.CgroupParent, want)
		s.run.Notes = append(s.run.Notes, notes...)
	}
	// Recorded before anything runs: an agent that comes later must be able to find it all.
	if err := writeJSON(filepath.Join(s.dir, runFile), s.run); err != nil {
		return err
	}
	if !s.record.Options.NoNamespaces {
		err := s.startInit(true)
		if err == nil {
			return nil
		}
		var setup *setupError
		if !errors.As(err, &setup) {
			return err
		}
		s.run.Notes = append(s.run.Notes, "no namespaces: "+setup.Error())
	}
	return s.startInit(false)
}

// setupError is an init that could not make its surroundings; without namespaces it may still work.
type setupError struct{ text string }

func (e *setupError) Error() string { return e.text }

func (s *supervisedRun) listenToInit() {
	var answer initReport
	if err := s.decoder.Decode(&answer); err == nil && answer.Exited {
		s.exitCode <- answer.Code
	}
	close(s.exitCode)
}

// wait forwards SIGTERM to the init, and when that ended kills what is left and records the exit.
func (s *supervisedRun) wait(signals <-chan os.Signal) error {
	ended := make(chan error, 1)
	var state *os.ProcessState
	go func() {
		var err error
		state, err = s.init.Wait()
		ended <- err
	}()
	for running := true; running; {
		select {
		case <-signals:
			// An init that is gone is seen below.
			_, _ = s.link.Write([]byte("term\n"))
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("waiting for the init: %w", err)
			}
			running = false
		}
	}
	code, reported := <-s.exitCode
	if !reported {
		code = exitCode(state.Sys().(syscall.WaitStatus))
	}
	s.link.Close()
	oom := cgroupSet(s.run.Cgroups).oomKilled()
	s.sweep()
	// All writers are gone, so that the rest of the output is in the pipe and the pump ends by itself.
	select {
	case <-s.pumped:
	case <-time.After(5 * time.Second):
		fmt.Fprintln(os.Stderr, "somebody outside the instance keeps its output open")
	}
	if err := s.log.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "closing the output log:", err)
	}
	return writeJSON(filepath.Join(s.dir, exitFile), exit{RunID: s.run.ID, Code: code, OOMKilled: oom, FinishedAt: time.Now().UTC()})
}

// sweep kills what is left of the run and waits for it, reaping what became our child.
func (s *supervisedRun) sweep() {
	found := &instance{dir: s.dir, record: s.record, run: &s.run}
	for attempt := 0; attempt < 500; attempt++ {
		cgroupSet(s.run.Cgroups).kill()
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
		}
		left, err := found.members()
		if err == nil && len(left) == 0 {
			break
		}
		signalAll(left, unix.SIGKILL)
		time.Sleep(2 * time.Millisecond)
	}
	cgroupSet(s.run.Cgroups).remove()
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// baseEnvironment is all that an instance gets from the machine. The agent's own environment holds credentials.
func baseEnvironment() []string {
	return []string{"PATH=" + defaultPath, "LANG=C.UTF-8"}
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func instanceEnvironment(known record, workspace string) map[string]string {
	// HOME is the workspace: the home of the user that runs the agent holds that person's keys and settings.
	environment := map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8", "HOME": workspace, "PWD": workspace}
	for name, value := range known.Spec.Environment {
		environment[name] = value
	}
	environment[engine.WorkspaceVariable] = workspace
	environment[marker] = known.ID
	return environment
}
