package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initReport is what the init says: first whether it is set up, at the end how the main process ended.
type initReport struct {
	Started bool   `json:"started,omitempty"`
	Setup   string `json:"setup,omitempty"` // the surroundings could not be made
	Error   string `json:"error,omitempty"` // the command could not be started
	Exited  bool   `json:"exited,omitempty"`
	Code    int    `json:"code,omitempty"`
}

func (s *supervisedRun) startInit(namespaced bool) error {
	config, err := s.initConfig(namespaced)
	if err != nil {
		return err
	}
	defer config.Close()
	listener, err := s.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making the link to the init: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "link"), os.NewFile(uintptr(pair[1]), "link")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return fmt.Errorf("making the link to the init: %w", err)
	}
	s.link = conn.(*net.UnixConn)
	s.decoder = json.NewDecoder(s.link)
	output, write, err := os.Pipe()
	if err != nil {
		s.link.Close()
		return fmt.Errorf("making the output pipe: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return errors.Join(err, s.link.Close(), output.Close(), write.Close())
	}
	role := "init"
	attributes := &syscall.SysProcAttr{Setsid: true}
	if namespaced {
		attributes.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		if os.Geteuid() != 0 {
			// A user namespace with only ourselves in it gives the right to make the others.
			role = "init-unprivileged"
			attributes.Cloneflags |= unix.CLONE_NEWUSER
			attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
			attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
			attributes.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
		}
	}
	// /proc/self/exe and not the path: an upgrade may have replaced or removed the file meanwhile.
	process, err := os.StartProcess("/proc/self/exe", append(append([]string{}, s.prefix...), role), &os.ProcAttr{
		Dir: "/", Env: baseEnvironment(), Sys: attributes,
		Files: []*os.File{null, write, write, theirs, listener, config},
	})
	null.Close()
	write.Close()
	if err != nil {
		s.link.Close()
		output.Close()
		if namespaced {
			return &setupError{"making namespaces: " + err.Error()}
		}
		return fmt.Errorf("starting the init: %w", err)
	}
	theirs.Close()
	s.init = process
	s.pumped = make(chan struct{})
	go func() {
		defer close(s.pumped)
		defer output.Close()
		// An end by error means that the log cannot be written; the instance's output must still be drained.
		if _, err := io.Copy(s.log, output); err != nil {
			fmt.Fprintln(os.Stderr, "writing the output log:", err)
			_, _ = io.Copy(io.Discard, output)
		}
	}()
	if err := s.handshake(namespaced); err != nil {
		_ = process.Kill()
		_, _ = process.Wait()
		s.link.Close()
		<-s.pumped
		return err
	}
	s.exitCode = make(chan int, 1)
	go s.listenToInit()
	return nil
}

// handshake puts the init, which waits, into its cgroups, records it, lets it go, and waits until the command runs.
func (s *supervisedRun) handshake(namespaced bool) error {
	if err := cgroupSet(s.run.Cgroups).add(s.init.Pid); err != nil {
		// Without its cgroups the run would escape its limits; go on without and say so.
		cgroupSet(s.run.Cgroups).remove()
		s.run.Cgroups = nil
		s.run.Notes = append(s.run.Notes, "limits are not enforced: "+err.Error())
	}
	var err error
	if s.run.Init, err = identify(s.init.Pid); err != nil {
		return err
	}
	s.run.Namespaced, s.run.Workspace = namespaced, s.workspacePath(namespaced)
	if err := writeJSON(filepath.Join(s.dir, runFile), s.run); err != nil {
		return err
	}
	if _, err := s.link.Write([]byte("go\n")); err != nil {
		return fmt.Errorf("letting the init go: %w", err)
	}
	if err := s.link.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("waiting for the init: %w", err)
	}
	var answer initReport
	if err := s.decoder.Decode(&answer); err != nil {
		if namespaced {
			return &setupError{"the init ended early: " + err.Error()}
		}
		return fmt.Errorf("waiting for the init: %w", err)
	}
	if err := s.link.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("waiting for the init: %w", err)
	}
	switch {
	case answer.Setup != "":
		return &setupError{answer.Setup}
	case answer.Error != "":
		return errors.New(answer.Error)
	case !answer.Started:
		return errors.New("the init gave an answer that is not understood")
	}
	return nil
}

func (s *supervisedRun) workspacePath(namespaced bool) string {
	if namespaced {
		return "/workspace"
	}
	return s.record.Spec.ContentDir
}

// initConfig writes the init's configuration to a memory file.
func (s *supervisedRun) initConfig(namespaced bool) (*os.File, error) {
	workspace := s.workspacePath(namespaced)
	config := initConfig{
		Command: s.record.Spec.Command, Content: s.record.Spec.ContentDir, Workspace: workspace, Hostname: s.record.Spec.Hostname,
		Namespaced: namespaced, RootMount: filepath.Join(s.dir, rootMount), Hide: s.record.Options.Hide,
		Environment: instanceEnvironment(s.record, workspace),
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encoding the init's configuration: %w", err)
	}
	fd, err := unix.MemfdCreate("holdfast", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "config")
	if _, err := file.Write(data); err != nil {
		file.Close()
		return nil, fmt.Errorf("writing the init's configuration: %w", err)
	}
	return file, nil
}

// listen makes the control socket. Its path goes through a descriptor: a socket's path is limited to 107 bytes.
func (s *supervisedRun) listen() (*os.File, error) {
	path := filepath.Join(s.dir, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old control socket: %w", err)
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the instance's directory: %w", err)
	}
	defer dir.Close()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socketPath(dir)})
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	return file, nil
}

func socketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + controlSocket
}
