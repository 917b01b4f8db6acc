package nodes_test

import (
	"fmt"
	"math/rand"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/storage/resolver/dnsserver"
	"holdfast/testsuite/link"
	"holdfast/testsuite/stack"
)

// copyTree copies all that a file can have, without what a pattern of rsync names.
func copyTree(t *testing.T, from, to, without string) {
	t.Helper()
	output, err := exec.Command("rsync", "-aHAXS", "--exclude", without, from+"/", to+"/").CombinedOutput()
	require.NoError(t, err, string(output))
}

// plain is a node of the process engine whose agent reaches everything through links, and asks a DNS server of its own.
type plain struct {
	s        *stack.Stack
	node     string
	engine   engine.Engine
	temporal *link.Link
	store    *link.Link
	dns      *dnsserver.Server
}

// linked has every agent of a stack behind links.
func linked(t *testing.T, nodes map[string]*plain) func(*devstack.StackOptions) {
	return func(options *devstack.StackOptions) {
		options.Storage.NoDirectory = true // a directory cannot be cut off
		node := options.Roles.Node
		options.Roles.Node = func(file devstack.StackFile, name, dir string) devstack.Command {
			command := node(file, name, dir)
			p := nodes[name]
			if p.temporal == nil {
				p.connect(t, file, len(name)+int(name[len(name)-1]))
			}
			command.Args = append(command.Args, "--pause-after", "10s")
			command.Env = append(command.Env, "TEMPORAL_ADDRESS="+p.temporal.Address(), "HOLDFAST_DNS="+p.dns.Addr())
			return command
		}
	}
}

// connect makes the links, once: they outlive the agent. The store's has an address of its own and the port that every agent knows.
func (p *plain) connect(t *testing.T, file devstack.StackFile, number int) {
	var err error
	p.temporal, err = link.New(file.TemporalAddress)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.temporal.Close()) })
	endpoint, err := url.Parse(file.GCSEndpoint)
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.%d", number)
	listener, err := net.Listen("tcp", net.JoinHostPort(address, endpoint.Port()))
	require.NoError(t, err)
	p.store = link.On(listener, net.JoinHostPort("127.0.0.2", endpoint.Port()))
	t.Cleanup(func() { require.NoError(t, p.store.Close()) })
	p.dns, err = dnsserver.New("127.0.0.1:0", map[string]netip.Addr{endpoint.Hostname(): netip.MustParseAddr(address)})
	require.NoError(t, err)
	p.dns.SetTTL(time.Second)
	t.Cleanup(func() { require.NoError(t, p.dns.Close()) })
}

func (p *plain) agent() *devstack.Component { return p.s.Node(p.node) }

func (p *plain) name() string           { return p.node }
func (p *plain) kill(t *testing.T)      { require.NoError(t, p.agent().Kill()) }
func (p *plain) freeze(t *testing.T)    { require.NoError(t, p.agent().Pause()) }
func (p *plain) thaw(t *testing.T)      { require.NoError(t, p.agent().Resume()) }
func (p *plain) begin(t *testing.T)     { require.NoError(t, p.agent().Start(t.Context())) }
func (p *plain) powerOn(t *testing.T)   { p.begin(t) }
func (p *plain) powerLoss(t *testing.T) { p.kill(t); stack.EndInstances(t, p.s.NodeDir(p.node)) }

func (p *plain) wipe(t *testing.T) {
	dir := p.s.NodeDir(p.node)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.Mkdir(dir, 0o700))
}

func (p *plain) cut(*testing.T) {
	p.temporal.Cut()
	p.store.Cut()
}

func (p *plain) names(*testing.T) { p.dns.SetMode(dnsserver.Drop) }

// A link loses no packets; it holds up each piece that goes through.
func (p *plain) poor(*testing.T) {
	p.temporal.Delay(150 * time.Millisecond)
	p.store.Delay(150 * time.Millisecond)
}

func (p *plain) mend(*testing.T) {
	for _, l := range []*link.Link{p.temporal, p.store} {
		l.Delay(0)
		l.Mend()
	}
	p.dns.SetMode(dnsserver.Answer)
}

func (p *plain) statuses(t *testing.T, id string) map[string]engine.Status {
	t.Helper()
	if p.engine == nil {
		p.engine = engineOf(t, p.s, p.node)
	}
	return statuses(t, p.engine, id)
}

func (p *plain) remains(t *testing.T) []string {
	t.Helper()
	return append(remainsOf(t, p.s.NodeDir(p.node)), instancesOf(t, p.s, p.node)...)
}

// remainsOf is what is left of workspaces in a node's directory.
func remainsOf(t *testing.T, dir string) (left []string) {
	t.Helper()
	for _, below := range []string{"workspaces", "trash"} {
		entries, err := os.ReadDir(filepath.Join(dir, below))
		if !os.IsNotExist(err) {
			require.NoError(t, err)
		}
		for _, entry := range entries {
			left = append(left, filepath.Join(below, entry.Name()))
		}
	}
	return left
}

// newLinked brings up a cluster of the process engine.
func newLinked(t *testing.T) *cluster {
	t.Helper()
	nodes := map[string]*plain{"node-1": {node: "node-1"}, "node-2": {node: "node-2"}}
	s := stack.New(t, "any", "process", linked(t, nodes))
	for _, p := range nodes {
		p.s = s
	}
	return &cluster{Stack: s, one: nodes["node-1"], two: nodes["node-2"]}
}

// TestCampaignOfProcesses makes every fault of a node without Docker and without privileges, and of Temporal, while workspaces run, are
// started, stopped, backed up and restored (B9, A12, A19); the invariants are held afterwards.
func TestCampaignOfProcesses(t *testing.T) {
	t.Parallel()
	everyFault(t, newLinked)
}

// everyFault is one row of the campaign for each fault, each on a cluster of its own. A row takes a minute or two, of which half is waiting.
func everyFault(t *testing.T, bringUp func(*testing.T) *cluster) {
	if !stack.Campaign() {
		t.Skip("this takes minutes: HOLDFAST_CAMPAIGN=1 has it")
	}
	seed := stack.Seed(t)
	for i, f := range faults() {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			cells(t, bringUp(t), f, rand.New(rand.NewSource(seed+int64(i))))
		})
	}
}
