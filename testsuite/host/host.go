//go:build linux

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a machine with a disk, which is a directory, and an engine. Use its methods from one goroutine at a time.
type Host struct {
	Name    string
	Address string // in the network

	network *Network
	cgroup  string // every container of it is below
	dir     string
	runtime string // what a machine has in /run; short, because names of sockets have to be
	veth    string // its end at the bridge
	net     *namespace
	log     *os.File

	mu      sync.Mutex // guards what follows
	init    *Process
	pid     *namespace
	mount   *namespace
	running []*Process
}

// NewHost makes a host that is switched off, with an empty directory as its disk.
func (n *Network) NewHost(name, dir string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	number := len(n.hosts) + 1
	ns, err := newNetwork()
	if err != nil {
		return nil, err
	}
	h := &Host{
		Name: name, Address: fmt.Sprintf("10.99.0.%d", number+1), network: n, cgroup: fmt.Sprintf("%s-%d", n.prefix, number), dir: dir,
		veth: fmt.Sprintf("port%d", number), net: ns,
	}
	n.hosts = append(n.hosts, h)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("making the disk of %s: %w", name, err)
	}
	if h.runtime, err = os.MkdirTemp("", h.cgroup+"-"); err != nil {
		return nil, fmt.Errorf("making the sockets of %s: %w", name, err)
	}
	if h.log, err = os.OpenFile(filepath.Join(dir, "host.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	// The far end is made in the bridge's namespace and given to the host's by its descriptor, which is the same file for ip.
	if err := n.ns.run("", "ip", "link", "add", h.veth, "type", "veth", "peer", "name", "eth0", "netns",
		fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())); err != nil {
		return nil, fmt.Errorf("connecting %s: %w", name, err)
	}
	for _, step := range []struct {
		in   *namespace
		args []string
	}{
		{n.ns, []string{"link", "set", h.veth, "master", "sw", "up"}},
		{ns, []string{"addr", "add", h.Address + "/24", "dev", "eth0"}},
		{ns, []string{"link", "set", "eth0", "up"}},
		{ns, []string{"route", "add", "default", "via", gateway}},
	} {
		if err := step.in.run("", "ip", step.args...); err != nil {
			return nil, fmt.Errorf("connecting %s: %w", name, err)
		}
	}
	return h, nil
}

// Disk is the directory that survives a loss of power.
func (h *Host) Disk() string { return filepath.Join(h.dir, "disk") }

// Log is the path of what the engine prints.
func (h *Host) Log() string { return h.log.Name() }

// Socket is the address of the engine, as in DOCKER_HOST.
func (h *Host) Socket() string { return "unix://" + filepath.Join(h.runtime, "docker.sock") }

// Boot switches the host on and waits until its engine answers. It is an error when it is on.
func (h *Host) Boot(ctx context.Context) error {
	h.mu.Lock()
	on := h.init != nil
	h.mu.Unlock()
	if on {
		return fmt.Errorf("booting %s: it is on", h.Name)
	}
	if err := h.boot(ctx); err != nil {
		return errors.Join(fmt.Errorf("booting %s: %w", h.Name, err), h.PowerLoss())
	}
	return nil
}

func (h *Host) boot(ctx context.Context) error {
	// A machine's /run is empty when it starts.
	for _, name := range []string{"docker.pid", "docker.sock", "exec"} {
		if err := os.RemoveAll(filepath.Join(h.runtime, name)); err != nil {
			return fmt.Errorf("clearing what the run before left: %w", err)
		}
	}
	if err := os.MkdirAll(h.Disk(), 0o711); err != nil {
		return fmt.Errorf("making the disk: %w", err)
	}
	tini, err := find("tini")
	if err != nil {
		return err
	}
	// Its init reaps what the engine leaves behind. /proc has to be that of its processes.
	command := exec.Command("/bin/sh", "-c", `mount --make-rprivate / && mount -t proc proc /proc && echo && exec "$0" -s -- sleep infinity`, tini)
	command.Stderr = h.log
	mounted, err := command.StdoutPipe()
	if err != nil {
		return fmt.Errorf("starting its init: %w", err)
	}
	init, err := start(command, unix.CLONE_NEWPID|unix.CLONE_NEWNS, h.net)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.init = init
	h.mu.Unlock()
	if _, err := io.ReadFull(mounted, make([]byte, 1)); err != nil {
		return fmt.Errorf("starting its init: %w", err)
	}
	pid, err := ofProcess(init.command.Process, unix.CLONE_NEWPID, "pid")
	if err != nil {
		return err
	}
	mount, err := ofProcess(init.command.Process, unix.CLONE_NEWNS, "mnt")
	if err != nil {
		return errors.Join(err, pid.close())
	}
	h.mu.Lock()
	h.pid, h.mount = pid, mount
	h.mu.Unlock()
	return h.startEngine(ctx)
}

func (h *Host) startEngine(ctx context.Context) error {
	settings := filepath.Join(h.dir, "daemon.json") // not the machine's
	if err := os.WriteFile(settings, []byte("{}\n"), 0o600); err != nil {
		return fmt.Errorf("writing the engine's settings: %w", err)
	}
	dockerd, err := find("dockerd")
	if err != nil {
		return err
	}
	command := exec.Command(dockerd, "--config-file", settings, "--data-root", filepath.Join(h.Disk(), "docker"), "--exec-root", filepath.Join(h.runtime, "exec"),
		"--pidfile", filepath.Join(h.runtime, "docker.pid"), "-H", h.Socket(), "--cgroup-parent", "/"+h.cgroup, "--exec-opt", "native.cgroupdriver=cgroupfs")
	command.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + h.dir}
	command.Stdout, command.Stderr = h.log, h.log
	engine, err := h.Start(command)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(h.runtime, "docker.sock"))
	}}
	client := &http.Client{Transport: transport}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			closed := response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return closed
			}
			err = fmt.Errorf("it answers %s", response.Status)
		}
		select {
		case <-engine.done:
			return fmt.Errorf("the engine ended: %w; see %s", engine.err, h.log.Name())
		case <-ctx.Done():
			return fmt.Errorf("the engine does not answer: %w: %w; see %s", ctx.Err(), err, h.log.Name())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Start starts a command on the host, with the machine's files and the host's network and processes.
func (h *Host) Start(command *exec.Cmd) (*Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil || h.pid == nil || h.mount == nil || h.init.Ended() {
		return nil, fmt.Errorf("starting %s on %s: it is off", command.Path, h.Name)
	}
	p, err := start(command, 0, h.net, h.pid, h.mount)
	if err != nil {
		return nil, err
	}
	h.running = append(h.running, p)
	return p, nil
}

// PowerLoss ends everything on the host at once, and returns when nothing of it is left. Its disk stays as it is. It is no error when
// the host is off.
func (h *Host) PowerLoss() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil {
		return nil
	}
	// With its init the kernel kills every process of the namespace, and ends the init last.
	if err := h.init.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("switching %s off: %w", h.Name, err)
	}
	for _, p := range append(h.running, h.init) {
		<-p.done
	}
	var errs []error
	for _, n := range []*namespace{h.pid, h.mount} {
		if n != nil {
			errs = append(errs, n.close())
		}
	}
	h.init, h.pid, h.mount, h.running = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Wipe is the loss of power and of everything on the disk.
func (h *Host) Wipe() error {
	if err := h.PowerLoss(); err != nil {
		return err
	}
	if err := os.RemoveAll(h.Disk()); err != nil {
		return fmt.Errorf("wiping %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) close() error {
	err := h.PowerLoss()
	if h.log != nil {
		err = errors.Join(err, h.log.Close())
	}
	if h.runtime != "" {
		err = errors.Join(err, os.RemoveAll(h.runtime))
	}
	return errors.Join(err, h.net.close(), h.removeCgroups())
}

// removeCgroups removes what the engine made of cgroups: empty directories, of this host's name and no other's.
func (h *Host) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + h.cgroup)
		errs = append(errs, err)
		for _, root := range found {
			var below []string
			errs = append(errs, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					below = append(below, path)
				}
				return err
			}))
			for i := len(below) - 1; i >= 0; i-- {
				errs = append(errs, os.Remove(below[i]))
			}
		}
	}
	return errors.Join(errs...)
}

// Cgroup is the name below which all containers of the host are, in every hierarchy.
func (h *Host) Cgroup() string { return h.cgroup }
