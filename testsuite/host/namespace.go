//go:build linux

package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is held open by a descriptor, and gone when that is closed and nothing runs in it.
type namespace struct {
	kind int // CLONE_NEWNET …
	file *os.File
}

// inThread runs something in a thread of its own, which ends with it: whatever the thread entered, nobody else is there.
func inThread(run func() error) error {
	done := make(chan error, 1)
	apart(func() { done <- run() })
	return <-done
}

// apart runs something in a new thread that ends with it. It is never the first one of the process: that does not end, and its
// namespaces are what /proc/self shows.
func apart(run func()) {
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread is of no use to others
		if unix.Gettid() != os.Getpid() {
			run()
			return
		}
		ended := make(chan struct{})
		apart(func() {
			defer close(ended)
			run()
		})
		<-ended // so long nobody else gets the first thread
		runtime.UnlockOSThread()
	}()
}

// newNetwork makes a network namespace with its loopback interface up.
func newNetwork() (*namespace, error) {
	var made *namespace
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("holding a network namespace: %w", err)
		}
		made = &namespace{kind: unix.CLONE_NEWNET, file: file}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := made.run("", "ip", "link", "set", "lo", "up"); err != nil {
		return nil, errors.Join(err, made.close())
	}
	return made, nil
}

// ofProcess holds a namespace of a child of ours that has not been waited for.
func ofProcess(process *os.Process, kind int, name string) (*namespace, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", process.Pid, name))
	if err != nil {
		return nil, fmt.Errorf("holding the %s namespace of a host: %w", name, err)
	}
	return &namespace{kind: kind, file: file}, nil
}

func (n *namespace) enter() error {
	if n.kind == unix.CLONE_NEWNS {
		// A thread shares its root and working directory with the others until it says otherwise.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leaving the shared directories: %w", err)
		}
	}
	if err := unix.Setns(int(n.file.Fd()), n.kind); err != nil {
		return fmt.Errorf("entering a namespace: %w", err)
	}
	return nil
}

// within runs something in the namespace, in a thread of its own. What it opens there stays there.
func (n *namespace) within(run func() error) error {
	return inThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return run()
	})
}

// run runs a program in the namespace to its end.
func (n *namespace) run(input, program string, args ...string) error {
	path, err := find(program)
	if err != nil {
		return err
	}
	return n.within(func() error {
		command := exec.Command(path, args...)
		command.Stdin = strings.NewReader(input)
		var said bytes.Buffer
		command.Stdout, command.Stderr = &said, &said
		if err := command.Run(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
		}
		return nil
	})
}

func (n *namespace) close() error { return n.file.Close() }

// Process is a program that runs in a host, a child of this process.
type Process struct {
	command *exec.Cmd
	done    chan struct{}
	err     error // set before done is closed
}

// start starts a command in namespaces. It is killed when this process ends, however it does: with its parent, or with the init of the
// host that it is on.
func start(command *exec.Cmd, flags uintptr, into ...*namespace) (*Process, error) {
	p := &Process{command: command, done: make(chan struct{})}
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Cloneflags: flags}
	for _, n := range into {
		if n.kind == unix.CLONE_NEWPID {
			// Before it runs the program, Go asks whether the parent has died already, and in there no parent is seen.
			command.SysProcAttr.Pdeathsig = 0
		}
	}
	started := make(chan error, 1)
	apart(func() {
		// The kernel kills the child when the thread that started it ends: this one waits for the child, and then ends.
		for _, n := range into {
			if err := n.enter(); err != nil {
				started <- err
				return
			}
		}
		err := command.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = command.Wait()
		close(p.done)
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", command.Path, err)
	}
	return p, nil
}

// Signal sends a signal to the process and to nothing else.
func (p *Process) Signal(signal os.Signal) error {
	if p.Ended() {
		return os.ErrProcessDone
	}
	return p.command.Process.Signal(signal)
}

// Kill ends the process with SIGKILL and waits for its end. It is no error when it has ended.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", p.command.Path, err)
	}
	<-p.done
	return nil
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Wait waits for the end of the process, and says how it ended as exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}
