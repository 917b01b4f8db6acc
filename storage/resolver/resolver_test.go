package resolver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/storage/resolver/dnsserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const host = "storage.example.com"

var address = netip.MustParseAddr("127.0.0.77")

// startServers starts one DNS server per mode, each with host in its zone.
func startServers(t *testing.T, modes ...dnsserver.Mode) []*dnsserver.Server {
	t.Helper()
	var servers []*dnsserver.Server
	for _, mode := range modes {
		s, err := dnsserver.New("127.0.0.1:0", map[string]netip.Addr{host: address})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		s.SetMode(mode)
		s.SetTTL(time.Second)
		servers = append(servers, s)
	}
	return servers
}

func newResolver(t *testing.T, servers []*dnsserver.Server, change func(*Options)) *Resolver {
	t.Helper()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options := Options{HostsFile: empty, ResolvConf: empty, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, s := range servers {
		options.Servers = append(options.Servers, s.Addr())
	}
	if change != nil {
		change(&options)
	}
	r := New(options)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestOutagesOnTheWire has the outages that TestOutageTimes times with real servers and packets, without looking at a
// clock: who answers, over what, and what comes of it.
func TestOutagesOnTheWire(t *testing.T) {
	const (
		ok, drop, servfail, refused = dnsserver.Answer, dnsserver.Drop, dnsserver.ServFail, dnsserver.Refused
		nxdomain, truncate, dropUDP = dnsserver.NXDomain, dnsserver.TruncateUDP, dnsserver.DropUDP
	)
	tests := []struct {
		name     string
		modes    []dnsserver.Mode
		fails    bool
		notFound bool
		tcp      bool // nothing but TCP gives an answer
	}{
		{name: "all answer", modes: []dnsserver.Mode{ok, ok, ok}},
		{name: "first two drop", modes: []dnsserver.Mode{drop, drop, ok}},
		{name: "first two say SERVFAIL", modes: []dnsserver.Mode{servfail, servfail, ok}},
		{name: "first refuses", modes: []dnsserver.Mode{refused, ok, ok}},
		{name: "drop and split horizon", modes: []dnsserver.Mode{drop, nxdomain, ok}},
		{name: "truncated, all of them", modes: []dnsserver.Mode{truncate, truncate, truncate}, tcp: true},
		{name: "UDP dropped everywhere", modes: []dnsserver.Mode{dropUDP, dropUDP, dropUDP}, tcp: true},
		{name: "two drop, third only TCP", modes: []dnsserver.Mode{drop, drop, dropUDP}, tcp: true},
		{name: "all drop", modes: []dnsserver.Mode{drop, drop, drop}, fails: true},
		{name: "all say SERVFAIL", modes: []dnsserver.Mode{servfail, servfail, servfail}, fails: true},
		{name: "all say NXDOMAIN", modes: []dnsserver.Mode{nxdomain, nxdomain, nxdomain}, fails: true, notFound: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newResolver(t, startServers(t, test.modes...), func(o *Options) {
				if !test.fails {
					o.PerTry = time.Minute // a busy machine's delays are no outage
				}
				if !test.tcp {
					o.UDPWait = time.Minute
				}
			})
			addrs, err := r.LookupHost(t.Context(), host)
			if test.fails {
				var dnsErr *net.DNSError
				if !errors.As(err, &dnsErr) || dnsErr.IsNotFound != test.notFound || dnsErr.Temporary() == test.notFound {
					t.Fatalf("got %v, %v; want a DNS error with IsNotFound %v", addrs, err, test.notFound)
				}
				return
			}
			if err != nil || len(addrs) != 1 || addrs[0] != address {
				t.Fatalf("got %v, %v; want %v", addrs, err, address)
			}
			var overTCP int64
			for _, s := range r.Stats().Servers {
				overTCP += s.TCP
			}
			if test.tcp != (overTCP > 0) {
				t.Errorf("%d answers came over TCP alone", overTCP)
			}
		})
	}
}

// TestNXDomainBeatsStale: a name that was taken away is not kept alive from memory.
func TestNXDomainBeatsStale(t *testing.T) {
	servers := startServers(t, dnsserver.Answer)
	r := newResolver(t, servers, nil)
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	servers[0].Remove(host)
	r.expire(host)
	if addrs, err := r.LookupHost(t.Context(), host); err == nil {
		t.Fatalf("got %v for a name that is gone", addrs)
	}
}

func TestCacheAndSingleFlight(t *testing.T) {
	servers := startServers(t, dnsserver.Answer)
	servers[0].SetDelay(100 * time.Millisecond)
	r := newResolver(t, servers, func(o *Options) { o.MinTTL = time.Minute })
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if _, err := r.LookupHost(t.Context(), host+"."); err != nil {
				t.Error(err)
			}
			if _, err := r.LookupHost(t.Context(), "Storage.EXAMPLE.com"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := servers[0].Queries(); got.UDP != 2 { // A and AAAA
		t.Errorf("the server was asked %d times by 100 lookups, want 2", got.UDP)
	}
}

func TestCacheIsBounded(t *testing.T) {
	servers := startServers(t, dnsserver.Answer)
	r := newResolver(t, servers, func(o *Options) { o.MaxNames = 3 })
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com"} {
		if _, err := r.LookupHost(t.Context(), name); err == nil {
			t.Fatalf("%s was found", name)
		}
	}
	if names := r.Stats().Names; names != 3 {
		t.Errorf("%d names in a cache of 3", names)
	}
	servers[0].SetMode(dnsserver.ServFail)
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Errorf("wrong names pushed the good answer out: %v", err)
	}
}

// TestPrivateZones: names of private zones are asked of private servers only, also after NXDOMAIN and as a hedge.
func TestPrivateZones(t *testing.T) {
	for _, mode := range []dnsserver.Mode{dnsserver.NXDomain, dnsserver.Drop, dnsserver.ServFail} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			servers := startServers(t, mode, dnsserver.Answer)
			public := servers[1]
			public.Set("db.corp.example.com", address)
			public.Set("nas", address)
			public.Set("metadata.google.internal", address)
			r := newResolver(t, servers, func(o *Options) {
				o.Public, o.Private, o.PerTry = []string{public.Addr()}, []string{"corp.example.com"}, 300*time.Millisecond
			})
			for _, name := range []string{"db.corp.example.com", "nas", "metadata.google.internal"} {
				if addrs, err := r.LookupHost(t.Context(), name); err == nil {
					t.Errorf("%s: got %v from a public server", name, addrs)
				}
			}
			if got := public.Queries(); got.UDP+got.TCP != 0 {
				t.Errorf("the public server was asked %+v times", got)
			}
			if _, err := r.LookupHost(t.Context(), host); err != nil {
				t.Errorf("a public name: %v", err)
			}
		})
	}
}

func TestContextIsHonoured(t *testing.T) {
	r := newResolver(t, startServers(t, dnsserver.Drop), func(o *Options) { o.PerTry = time.Minute })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := r.LookupHost(ctx, host)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v after a deadline of 50 ms", took)
	}
}

func TestHostsFileAndLiterals(t *testing.T) {
	r := newResolver(t, nil, func(o *Options) {
		o.Servers = []string{"127.0.0.1:1"} // nothing may be asked
		if err := os.WriteFile(o.HostsFile, []byte("10.1.2.3 Store.Example # comment\nbroken line\n::7 store.example\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	for name, want := range map[string]string{
		"store.example.": "10.1.2.3", "localhost": "127.0.0.1", "a.localhost": "127.0.0.1", "192.0.2.9": "192.0.2.9", "[::1]": "::1",
	} {
		if addrs, err := r.LookupHost(t.Context(), name); err != nil || addrs[0].String() != want {
			t.Errorf("%s: %v, %v; want %s first", name, addrs, err, want)
		}
	}
	for _, bad := range []string{"", "a b", "a/b", "x@y", "a..b"} {
		if addrs, err := r.LookupHost(t.Context(), bad); err == nil {
			t.Errorf("%q: got %v", bad, addrs)
		}
	}
}

func TestSystemServers(t *testing.T) {
	servers := startServers(t, dnsserver.Answer)
	servers[0].Set("nas.office.example.com", address)
	r := newResolver(t, servers, func(o *Options) {
		o.Servers = append([]string{System}, o.Servers...)
		if err := os.WriteFile(o.ResolvConf, []byte("nameserver 127.0.0.253\nsearch office.example.com\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := r.LookupHost(t.Context(), "nas"); err != nil {
		t.Errorf("search list: %v", err)
	}
	if stats := r.Stats(); len(stats.Servers) != 2 || stats.Servers[0].Address != "127.0.0.253:53" || stats.Servers[0].Queries == 0 {
		t.Errorf("the system's server was not asked first: %+v", stats.Servers)
	}
}

func TestDial(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.79:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	servers := startServers(t, dnsserver.Answer)
	// The first address refuses, the second one listens.
	servers[0].Set(host, netip.MustParseAddr("127.0.0.80"), netip.MustParseAddr("127.0.0.79"))
	r := newResolver(t, servers, func(o *Options) { o.MinTTL = time.Hour; o.MaxTTL = time.Hour })
	dial := func() error {
		conn, err := r.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	// Moved within the TTL: the old address refuses, and the servers are asked again at once.
	servers[0].Set(host, netip.MustParseAddr("127.0.0.80"))
	r.expire(host)
	if err := dial(); err == nil {
		t.Fatal("connected to an address where nobody listens")
	}
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	servers[0].Set(host, netip.MustParseAddr("127.0.0.79"))
	if err := dial(); err != nil {
		t.Errorf("after a move within the TTL: %v", err)
	}
	for _, address := range []string{net.JoinHostPort("127.0.0.79", port), net.JoinHostPort(host, "no-such-service"), "no port"} {
		conn, err := r.DialContext(t.Context(), "tcp", address)
		if (err == nil) != (address == net.JoinHostPort("127.0.0.79", port)) {
			t.Errorf("%s: %v", address, err)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
	servers[0].SetMode(dnsserver.ServFail)
	var dnsErr *net.DNSError
	if _, err := r.DialContext(t.Context(), "tcp", "other.example.com:443"); !errors.As(err, &dnsErr) || !dnsErr.IsTemporary {
		t.Errorf("got %v, want a temporary DNS error below it", err)
	}
}

func TestCloseEndsLookups(t *testing.T) {
	r := newResolver(t, startServers(t, dnsserver.Drop), func(o *Options) { o.PerTry = time.Hour })
	done := make(chan error, 1)
	go func() { _, err := r.LookupHost(context.Background(), host); done <- err }()
	for r.Stats().Lookups == 0 {
		time.Sleep(time.Millisecond) // a poll
	}
	_ = r.Close()
	if err := <-done; err == nil {
		t.Error("a lookup succeeded in a closed resolver")
	}
	if _, err := r.LookupHost(context.Background(), host); err == nil {
		t.Error("a closed resolver answered")
	}
}
