//go:build linux

package host_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/devtest"
	"holdfast/engine"
	"holdfast/engine/docker"
	"holdfast/testsuite/host"
)

// patience is how long something may take that has to happen by itself.
const patience = 2 * time.Minute

// TestMain is also the client that tests run on the hosts: it asks for a URL, with a time-out, and says what it got.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "ask" {
		os.Exit(ask(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func ask(server, url string) int {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server)
	}}
	client := &http.Client{Timeout: 1500 * time.Millisecond, Transport: &http.Transport{DialContext: (&net.Dialer{Resolver: resolver}).DialContext}}
	response, err := client.Get(url)
	if err != nil {
		return 1
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return 1
	}
	return 0
}

// scene is two hosts that are on, and a service that they reach.
type scene struct {
	network *host.Network
	hosts   []*host.Host
	server  string // DNS
	byName  string // the service's URLs
	byIP    string
}

func newScene(t *testing.T, body string) *scene {
	t.Helper()
	if err := host.Available(); err != nil {
		devtest.Missing(t, "hosts", err)
	}
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	t.Cleanup(service.Close)
	network, err := host.NewNetwork()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, network.Close()) })
	_, address, err := network.Forward(0, strings.TrimPrefix(service.URL, "http://"))
	require.NoError(t, err)
	s := &scene{network: network, byIP: "http://" + address}
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	s.byName = "http://service.holdfast.test:" + port
	s.server, err = network.Name("service.holdfast.test")
	require.NoError(t, err)
	for _, name := range []string{"one", "two"} {
		h, err := network.NewHost(name, filepath.Join(t.TempDir(), name))
		require.NoError(t, err)
		s.hosts = append(s.hosts, h)
		s.boot(t, h)
	}
	return s
}

func (s *scene) boot(t *testing.T, h *host.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	if err := h.Boot(ctx); err != nil {
		log, _ := os.ReadFile(h.Log())
		t.Fatalf("%v\n%s", err, log)
	}
	t.Logf("%s is on after %s", h.Name, time.Since(began).Round(time.Millisecond))
}

// asks has a host ask the service; empty when it got no answer in a second and a half.
func (s *scene) asks(t *testing.T, h *host.Host, url string) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	command := exec.Command(self, "ask", s.server, url)
	var answer strings.Builder
	command.Stdout = &answer
	p, err := h.Start(command)
	require.NoError(t, err)
	if err := p.Wait(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		return ""
	}
	return answer.String()
}

// container starts a container on a host that counts in a file, and returns the file.
func container(t *testing.T, h *host.Host) (containers engine.Engine, id, file string) {
	t.Helper()
	containers, err := docker.New(docker.Options{Host: h.Socket(), DefaultImage: "-", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, containers.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	image, err := containers.PrepareImage(ctx, "", nil)
	require.NoError(t, err)
	dir := filepath.Join(h.Disk(), "content")
	require.NoError(t, os.MkdirAll(dir, 0o777))
	id, err = containers.Create(ctx, engine.Spec{
		Name: "counter", Image: image.Reference, ContentDir: dir, Labels: map[string]string{engine.LabelWorkspace: "counter", engine.LabelToken: "1"},
		Command: []string{"/bin/sh", "-c", "while :; do echo x >> /workspace/count; sleep 0.05; done"},
	})
	require.NoError(t, err)
	require.NoError(t, containers.Start(ctx, id))
	file = filepath.Join(dir, "count")
	grows(t, file)
	return containers, id, file
}

func size(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

func grows(t *testing.T, file string) {
	t.Helper()
	from := size(file)
	require.Eventually(t, func() bool { return size(file) > from }, patience, 20*time.Millisecond, "%s does not grow", file)
}

// The faults of a host's power, disk and network, as they are seen by what runs on it, by what it reaches, and by the other host.
func TestFaults(t *testing.T) {
	s := newScene(t, "hello")
	one, two := s.hosts[0], s.hosts[1]
	_, _, other := container(t, two)
	containers, id, file := container(t, one)
	require.Equal(t, "hello", s.asks(t, one, s.byIP))
	require.Equal(t, "hello", s.asks(t, one, s.byName))

	require.NoError(t, one.Partition())
	require.Empty(t, s.asks(t, one, s.byIP))
	require.Equal(t, "hello", s.asks(t, two, s.byName), "the other one has a network")
	grows(t, file)
	require.NoError(t, one.Heal())
	require.Equal(t, "hello", s.asks(t, one, s.byName))

	require.NoError(t, one.DropDNS())
	require.Empty(t, s.asks(t, one, s.byName))
	require.Equal(t, "hello", s.asks(t, one, s.byIP), "only names are lost")
	require.NoError(t, one.Heal())
	require.Equal(t, "hello", s.asks(t, one, s.byName))

	// What was started on it is in its processes, and is this process's child: it is signalled by its handle.
	p, err := one.Start(exec.Command("/bin/sh", "-c", `[ "$(cat /proc/1/comm)" = tini ] && exec sleep 1000`))
	require.NoError(t, err)
	require.NoError(t, p.Signal(syscall.SIGSTOP))
	require.NoError(t, p.Signal(syscall.SIGCONT))

	began := time.Now()
	require.NoError(t, one.PowerLoss())
	t.Logf("it is off after %s", time.Since(began).Round(time.Millisecond))
	require.True(t, p.Ended())
	stood := size(file)
	grows(t, other)
	require.Equal(t, stood, size(file), "nothing runs without power")
	_, err = one.Start(exec.Command("/bin/true"))
	require.ErrorContains(t, err, "it is off")

	s.boot(t, one)
	found, err := containers.Inspect(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusExited, found.Status, "no container is started by itself")
	require.NoError(t, containers.Start(t.Context(), id))
	grows(t, file)
	require.Equal(t, "hello", s.asks(t, one, s.byName))

	require.NoError(t, one.Wipe())
	require.NoFileExists(t, file)
	s.boot(t, one)
	_, err = containers.Inspect(t.Context(), id)
	require.ErrorIs(t, err, engine.ErrNotFound)
	grows(t, other)
}

// A lossy network still brings everything, and a slow one takes as long as its rate says.
func TestPoorNetworks(t *testing.T) {
	const large = 1 << 20
	s := newScene(t, strings.Repeat("x", large))
	one := s.hosts[0]
	require.Error(t, one.Lossy(0))
	require.Error(t, one.Lossy(100))
	require.NoError(t, one.Lossy(99))
	require.Empty(t, s.asks(t, one, s.byIP), "a hundredth of the packets is no network")
	require.NoError(t, one.Lossy(5))
	require.Eventually(t, func() bool { return len(s.asks(t, one, s.byIP)) == large }, patience, time.Millisecond)
	require.NoError(t, one.Heal())
	require.Len(t, s.asks(t, one, s.byIP), large)

	require.Error(t, one.Slow(10))
	require.NoError(t, one.Slow(8<<10)) // the megabyte takes a second of a second and a half
	began := time.Now()
	require.Len(t, s.asks(t, one, s.byIP), large)
	require.Greater(t, time.Since(began), 800*time.Millisecond)
	require.NoError(t, one.Slow(1<<10)) // and now 8
	require.Empty(t, s.asks(t, one, s.byIP))
	require.NoError(t, one.Heal())
	require.Len(t, s.asks(t, one, s.byIP), large)
}

// Nothing is left of a network that is closed while its hosts are on: no process, no mount, no cgroup. What is the machine's is as it was.
func TestNothingIsLeft(t *testing.T) {
	s := newScene(t, "hello")
	container(t, s.hosts[0])
	before, err := os.ReadFile("/proc/net/dev")
	require.NoError(t, err)
	require.NotContains(t, string(before), " sw:", "the bridge is not the machine's")
	one := s.hosts[0]
	p, err := one.Start(exec.Command("/bin/sleep", "1000"))
	require.NoError(t, err)
	require.NoError(t, s.network.Close())
	require.True(t, p.Ended())
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), one.Disk())
	require.NoError(t, os.RemoveAll(filepath.Dir(one.Disk())), "its disk is plain files again")
	_, err = net.DialTimeout("unix", strings.TrimPrefix(one.Socket(), "unix://"), time.Second)
	require.True(t, errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED), "%v", err)
	left, err := filepath.Glob("/sys/fs/cgroup/*/hf-*")
	require.NoError(t, err)
	for _, dir := range left { // those of other tests' hosts have other names
		require.NotContains(t, dir, one.Cgroup())
	}
}
