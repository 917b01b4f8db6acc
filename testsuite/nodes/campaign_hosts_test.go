//go:build linux

package nodes_test

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/docker"
	"holdfast/testsuite/host"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// boxed is a node that is a host of its own, with its own Docker engine.
type boxed struct {
	*host.Host
	c      *cluster
	env    []string
	agent  *host.Process
	engine engine.Engine
	log    *os.File
}

// newHosts brings up a cluster of two hosts on a network of their own. The control plane is on the machine, behind links.
func newHosts(t *testing.T) *cluster {
	t.Helper()
	if err := host.Available(); err != nil {
		devtest.Missing(t, "hosts", err)
	}
	s := stack.New(t, "any", detect.Docker, func(o *devstack.StackOptions) {
		o.NoNodes, o.Storage.NoDirectory = true, true
	})
	network, err := host.NewNetwork()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, network.Close()) })
	file := s.File()
	_, temporal, err := network.Forward(0, file.TemporalAddress)
	require.NoError(t, err)
	endpoint, err := url.Parse(file.GCSEndpoint)
	require.NoError(t, err)
	port, err := strconv.Atoi(endpoint.Port())
	require.NoError(t, err)
	_, _, err = network.Forward(port, strings.TrimPrefix(s.StorageURL(), "http://"))
	require.NoError(t, err)
	dns, err := network.Name(endpoint.Hostname())
	require.NoError(t, err)
	env := []string{"TEMPORAL_ADDRESS=" + temporal, "TEMPORAL_NAMESPACE=" + file.Namespace, "HOLDFAST_DNS=" + dns, "HOLDFAST_STATE_DIR=" + s.Dir}
	// The command reaches the hosts' data ports where they are.
	s.RunWith = func(command *exec.Cmd) error {
		command.Env = append(command.Env, env...)
		p, err := network.Start(command)
		if err != nil {
			return err
		}
		return p.Wait()
	}
	c := &cluster{Stack: s}
	s.Dirs = map[string]string{}
	var made [2]*boxed
	for i, name := range []string{"node-1", "node-2"} {
		h, err := network.NewHost(name, filepath.Join(s.Dir, "hosts", name))
		require.NoError(t, err)
		b := &boxed{Host: h, c: c, env: append(env, "PATH="+os.Getenv("PATH"), "HOME="+s.Dir, "DOCKER_HOST="+h.Socket(), "HOLDFAST_CONFIG="+filepath.Join(s.Dir, "holdfast.yaml"))}
		s.Dirs[name] = filepath.Join(h.Disk(), "node")
		b.log, err = os.Create(filepath.Join(s.LogDir(), name+".log"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = b.log.Close() })
		made[i] = b
	}
	c.one, c.two = made[0], made[1]
	for _, b := range made {
		b.powerOn(t)
	}
	return c
}

func (b *boxed) name() string { return b.Name }

func (b *boxed) kill(t *testing.T)   { require.NoError(t, b.agent.Kill()) }
func (b *boxed) freeze(t *testing.T) { require.NoError(t, b.agent.Signal(syscall.SIGSTOP)) }
func (b *boxed) thaw(t *testing.T)   { require.NoError(t, b.agent.Signal(syscall.SIGCONT)) }

func (b *boxed) begin(t *testing.T) {
	t.Helper()
	before, _ := b.node(t)
	b.start(t)
	stack.WaitFor(t, b.Name+" has its lease", stack.Patience, func() bool {
		now, err := b.node(t)
		return err == nil && now.Phase == workspace.NodeReady && now.Info.Incarnation != before.Info.Incarnation
	})
}

func (b *boxed) start(t *testing.T) {
	t.Helper()
	dir := b.c.NodeDir(b.Name)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	command := exec.Command(stack.Binary(t), "worker", "--node", b.Name, "--data-dir", dir, "--engine", detect.Docker, "--listen", b.Address+":0", "--pause-after", "10s")
	command.Env, command.Dir = b.env, b.c.Dir
	command.Stdout, command.Stderr = b.log, b.log
	agent, err := b.Start(command)
	require.NoError(t, err)
	b.agent = agent
}

func (b *boxed) node(t *testing.T) (state workspace.NodeState, err error) {
	value, err := b.c.Client().QueryWorkflow(t.Context(), workspace.NodeWorkflowID(b.Name), "", workspace.QueryState)
	if err == nil {
		err = value.Get(&state)
	}
	return state, err
}

func (b *boxed) powerLoss(t *testing.T) { require.NoError(t, b.PowerLoss()) }

func (b *boxed) powerOn(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stack.Patience)
	defer cancel()
	if err := b.Boot(ctx); err != nil {
		t.Fatalf("%v\n%s", err, stack.Tail(b.Log(), 40))
	}
	b.begin(t)
}

func (b *boxed) wipe(t *testing.T)  { require.NoError(t, b.Wipe()) }
func (b *boxed) cut(t *testing.T)   { require.NoError(t, b.Partition()) }
func (b *boxed) names(t *testing.T) { require.NoError(t, b.DropDNS()) }
func (b *boxed) mend(t *testing.T)  { require.NoError(t, b.Heal()) }

func (b *boxed) poor(t *testing.T) {
	require.NoError(t, b.Lossy(5))
	require.NoError(t, b.Slow(4<<10))
}

func (b *boxed) statuses(t *testing.T, id string) map[string]engine.Status {
	t.Helper()
	if b.engine == nil {
		opened, err := docker.New(docker.Options{Host: b.Socket(), Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, opened.Close()) })
		b.engine = opened
	}
	return statuses(t, b.engine, id)
}

func (b *boxed) remains(t *testing.T) []string {
	t.Helper()
	left := remainsOf(t, b.c.NodeDir(b.Name))
	b.statuses(t, "")
	instances, err := b.engine.List(t.Context(), nil)
	require.NoError(t, err)
	for _, one := range instances {
		left = append(left, "container "+one.Name)
	}
	return left
}

// TestCampaignOfHosts makes every fault of a machine with Docker: each node is a host of its own, whose power, disk and network fail (B9,
// A12, A13, A19).
func TestCampaignOfHosts(t *testing.T) {
	t.Parallel()
	everyFault(t, newHosts)
}
