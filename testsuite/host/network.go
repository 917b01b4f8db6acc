//go:build linux

package host

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"sync"

	"holdfast/storage/resolver/dnsserver"
	"holdfast/testsuite/link"
)

// Network is what hosts are connected by: a bridge in a network namespace of its own, where the services that they reach are, too.
type Network struct {
	prefix string // of every name that is seen outside, at random
	ns     *namespace

	mu    sync.Mutex // guards what follows
	links []*link.Link
	dns   *dnsserver.Server
	hosts []*Host

	closed bool
}

// gateway is where the services are reached by the hosts. The network is nobody else's: its addresses mean nothing elsewhere.
const gateway = "10.99.0.1"

// NewNetwork makes a network without hosts.
func NewNetwork() (*Network, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("choosing a name for the network: %w", err)
	}
	ns, err := newNetwork()
	if err != nil {
		return nil, err
	}
	n := &Network{prefix: "hf-" + hex.EncodeToString(random[:]), ns: ns}
	for _, args := range [][]string{
		{"link", "add", "sw", "type", "bridge"}, {"addr", "add", gateway + "/24", "dev", "sw"}, {"link", "set", "sw", "up"},
	} {
		if err := ns.run("", "ip", args...); err != nil {
			return nil, errors.Join(fmt.Errorf("making the hosts' network: %w", err), n.Close())
		}
	}
	return n, nil
}

// Forward has the hosts reach a TCP address of this machine, host:port, through a link on a port of the network's gateway; 0 picks
// one. It returns the link and the address that hosts use.
func (n *Network) Forward(port int, target string) (made *link.Link, address string, err error) {
	var listener net.Listener
	err = n.ns.within(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(gateway, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("forwarding from the hosts' network: %w", err)
	}
	made = link.On(listener, target)
	n.mu.Lock()
	n.links = append(n.links, made)
	n.mu.Unlock()
	return made, made.Address(), nil
}

// Name has the hosts resolve a name to the network's gateway, and returns the DNS server's address, host:port. It is for one name.
func (n *Network) Name(name string) (server string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dns != nil {
		return "", errors.New("the hosts' network has a DNS server already")
	}
	err = n.ns.within(func() (err error) {
		n.dns, err = dnsserver.New(net.JoinHostPort(gateway, "53"), map[string]netip.Addr{name: netip.MustParseAddr(gateway)})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("starting a DNS server for the hosts: %w", err)
	}
	n.dns.SetTTL(0)
	return n.dns.Addr(), nil
}

// Start starts a command in the network, where it reaches the hosts and is on none of them.
func (n *Network) Start(command *exec.Cmd) (*Process, error) { return start(command, 0, n.ns) }

// Close ends all hosts, with everything that runs in them, and the network. It is no error when it is closed.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.close())
	}
	for _, l := range n.links {
		errs = append(errs, l.Close())
	}
	if n.dns != nil {
		errs = append(errs, n.dns.Close())
	}
	n.hosts, n.links, n.dns = nil, nil, nil
	return errors.Join(append(errs, n.ns.close())...)
}
