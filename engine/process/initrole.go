package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// initConfig is what the supervisor gives the init.
type initConfig struct {
	Command     []string          `json:"command"`
	Environment map[string]string `json:"environment"`
	Content     string            `json:"content"`
	Workspace   string            `json:"workspace"`
	Hostname    string            `json:"hostname,omitempty"`
	Namespaced  bool              `json:"namespaced"`
	RootMount   string            `json:"root_mount"`
	Hide        []string          `json:"hide,omitempty"`
}

// initProcess is the first process of an instance (pid 1 where it has a PID namespace): it starts the main process and
// the execs, reaps, and takes all with it when it ends.
type initProcess struct {
	config initConfig
	link   *os.File
	report *json.Encoder

	mu      sync.Mutex // held while a process is started and while one is reaped, so that no exit is missed
	waiting map[int]chan<- int
	nobody  chan struct{} // one token whenever there is no child left
}

// runInit is the init's role. The unprivileged one runs it twice: first with the rights in its user namespace to set
// up, then again without them.
func runInit(unprivileged bool, prefix []string) error {
	config, err := readInitConfig()
	if err != nil {
		return err
	}
	link := os.NewFile(reportFD, "link")
	in := &initProcess{config: config, link: link, report: json.NewEncoder(link), waiting: map[int]chan<- int{}, nobody: make(chan struct{}, 1)}
	lines := bufio.NewReaderSize(link, 16)
	if os.Getenv("HOLDFAST_INIT_READY") == "" {
		// The supervisor moves us into our cgroups and records us before it says "go".
		if _, err := lines.ReadString('\n'); err != nil {
			return fmt.Errorf("waiting for the supervisor: %w", err)
		}
		if err := in.setUp(); err != nil {
			return errors.Join(err, in.report.Encode(initReport{Setup: err.Error()}))
		}
		if unprivileged {
			return dropAndRunAgain(prefix)
		}
	}
	syscall.CloseOnExec(reportFD)
	syscall.CloseOnExec(listenerFD)
	unix.Close(configFD)
	listenerFile := os.NewFile(listenerFD, "control")
	listener, err := net.FileListener(listenerFile)
	if err != nil {
		return errors.Join(err, in.report.Encode(initReport{Setup: "opening the control socket: " + err.Error()}))
	}
	listenerFile.Close()
	return in.serve(listener.(*net.UnixListener), lines)
}

func readInitConfig() (initConfig, error) {
	// A copy, because the descriptor itself must stay open for the unprivileged init's second pass.
	fd, err := unix.FcntlInt(configFD, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return initConfig{}, fmt.Errorf("started without a configuration: %w", err)
	}
	file := os.NewFile(uintptr(fd), "config")
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return initConfig{}, fmt.Errorf("reading the configuration: %w", err)
	}
	var config initConfig
	if err := json.NewDecoder(io.NewSectionReader(file, 0, info.Size())).Decode(&config); err != nil {
		return initConfig{}, errors.New("the init's configuration is damaged")
	}
	return config, nil
}

func (in *initProcess) setUp() error {
	if !in.config.Namespaced {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("becoming the reaper: %w", err)
		}
		return nil
	}
	if in.config.Hostname != "" {
		if err := unix.Sethostname([]byte(in.config.Hostname)); err != nil {
			return fmt.Errorf("setting the host name: %w", err)
		}
	}
	return enterPrivateRoot(in.config)
}

// dropAndRunAgain gives up the rights in the user namespace. Rights belong to a thread and are inherited over execve only
// while they are ambient, so that clearing these and executing ourselves again drops them for good.
func dropAndRunAgain(prefix []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("dropping rights: %w", err)
	}
	err := syscall.Exec("/proc/self/exe", append(append([]string{}, prefix...), "init-unprivileged"), append(baseEnvironment(), "HOLDFAST_INIT_READY=1"))
	return fmt.Errorf("executing the init again: %w", err)
}

// serve starts the main process and goes on until it ended, or until the supervisor is gone.
func (in *initProcess) serve(listener *net.UnixListener, lines *bufio.Reader) error {
	// Caught and dropped, not ignored: what is ignored stays ignored over execve, and Ctrl-C in a shell of the workspace
	// would do nothing.
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, unix.SIGHUP, unix.SIGPIPE, unix.SIGINT, unix.SIGQUIT, unix.SIGTTOU, unix.SIGTTIN)
	defer signal.Stop(dropped)
	var mainExit <-chan int
	if len(in.config.Command) > 0 {
		_, exited, err := in.startProcess(in.config.Command, in.config.Environment, []*os.File{nil, os.Stdout, os.Stderr}, false)
		if err != nil {
			return in.report.Encode(initReport{Error: err.Error()})
		}
		mainExit = exited
	}
	go in.reap()
	go func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			go in.handle(conn)
		}
	}()
	if err := in.report.Encode(initReport{Started: true}); err != nil {
		return in.end(1, fmt.Errorf("telling the supervisor: %w", err))
	}
	orders := make(chan string)
	go func() {
		defer close(orders)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			orders <- strings.TrimSpace(line)
		}
	}()
	code, mainGone, stopping := keepAliveCode, mainExit == nil, false
	for {
		select {
		case order, ok := <-orders:
			if !ok {
				return in.end(1, errors.New("the supervisor is gone"))
			}
			if order == "term" && !stopping {
				stopping = true
				listener.Close()
				in.signalOthers(unix.SIGTERM)
			}
		case code = <-mainExit:
			mainExit, mainGone = nil, true
			if !stopping {
				return in.end(code, nil)
			}
		case <-in.nobody:
		}
		// On a stop, all that ever was started here gets until the supervisor's SIGKILL to end in order.
		if stopping && mainGone && in.childless() {
			return in.end(code, nil)
		}
	}
}

// end reports and takes everything with it: in a PID namespace the kernel kills the rest when pid 1 ends.
func (in *initProcess) end(code int, cause error) error {
	if !in.config.Namespaced {
		in.killOthers()
	}
	err := in.report.Encode(initReport{Exited: true, Code: code})
	if cause != nil {
		return cause
	}
	return err
}

// startProcess starts a process in its own session. The returned channel gets its exit code.
func (in *initProcess) startProcess(command []string, environment map[string]string, files []*os.File, tty bool) (int, <-chan int, error) {
	path, err := findProgram(command[0], environment["PATH"], in.config.Workspace)
	if err != nil {
		return 0, nil, err
	}
	if files[0] == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return 0, nil, err
		}
		defer null.Close()
		files[0] = null
	}
	exited := make(chan int, 1)
	in.mu.Lock()
	defer in.mu.Unlock()
	process, err := os.StartProcess(path, command, &os.ProcAttr{
		Dir: in.config.Workspace, Env: engine.EnvironmentList(environment), Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: tty, Ctty: 0},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", command[0], err)
	}
	pid := process.Pid
	in.waiting[pid] = exited
	// The reaper waits for every child, by number.
	_ = process.Release()
	return pid, exited, nil
}

var errNoProgram = errors.New("there is no such program")

// findProgram resolves a command as a shell would, with the instance's PATH and not ours.
func findProgram(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	for _, place := range filepath.SplitList(path) {
		candidate := filepath.Join(place, name)
		if !filepath.IsAbs(candidate) {
			candidate = filepath.Join(dir, candidate)
		}
		info, err := os.Stat(candidate)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, errNoProgram)
}

// reap waits for every child, also for those that others left behind.
func (in *initProcess) reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	// A SIGCHLD that came before Notify is made up for by the ticker.
	ticker := time.NewTicker(200 * time.Millisecond)
	for {
		for in.reapOne() {
		}
		select {
		case <-children:
		case <-ticker.C:
		}
	}
}

func (in *initProcess) reapOne() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if errors.Is(err, unix.ECHILD) {
		select {
		case in.nobody <- struct{}{}:
		default:
		}
	}
	if err != nil || pid <= 0 {
		return errors.Is(err, unix.EINTR)
	}
	if exited, ok := in.waiting[pid]; ok {
		delete(in.waiting, pid)
		exited <- exitCode(status)
	}
	return true
}

func (in *initProcess) childless() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	// Only a look: reaping here would lose an exit code.
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return errors.Is(err, unix.ECHILD)
}

// others finds every process of the instance but ourselves.
func (in *initProcess) others() map[int]stat {
	all, err := allProcesses()
	if err != nil {
		return nil
	}
	found := make(map[int]stat)
	if in.config.Namespaced {
		// Our /proc shows only our PID namespace.
		for pid, current := range all {
			found[pid] = current
		}
	} else {
		descendants(all, os.Getpid(), found)
		marked(all, marker, in.config.Environment[marker], found)
	}
	delete(found, os.Getpid())
	for pid, current := range found {
		if pid <= 1 || current.dead() {
			delete(found, pid)
		}
	}
	return found
}

func (in *initProcess) signalOthers(signal unix.Signal) {
	signalAll(in.others(), signal)
}

func (in *initProcess) killOthers() {
	for attempt := 0; attempt < 500; attempt++ {
		left := in.others()
		if len(left) == 0 {
			return
		}
		signalAll(left, unix.SIGKILL)
		for in.reapOne() {
		}
		time.Sleep(2 * time.Millisecond)
	}
}
