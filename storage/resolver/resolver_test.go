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

	"github.com/prometheus/client_golang/prometheus"
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

// TestOutages proves A4: one or two of three servers failing in any way costs less than a second, not a failure. All
// waits and bounds are five times as long as usual, so that a busy machine's own delays are small beside them.
func TestOutages(t *testing.T) {
	const (
		ok, drop, servfail, refused = dnsserver.Answer, dnsserver.Drop, dnsserver.ServFail, dnsserver.Refused
		nxdomain, truncate, dropUDP = dnsserver.NXDomain, dnsserver.TruncateUDP, dnsserver.DropUDP
	)
	tests := []struct {
		name          string
		modes         []dnsserver.Mode
		first, second time.Duration // bounds of the first lookup and of one after the TTL
		fails         bool
		notFound      bool
	}{
		{"all answer", []dnsserver.Mode{ok, ok, ok}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"first drops", []dnsserver.Mode{drop, ok, ok}, 900 * time.Millisecond, 90 * time.Millisecond, false, false},
		{"first two drop", []dnsserver.Mode{drop, drop, ok}, 950 * time.Millisecond, 90 * time.Millisecond, false, false},
		{"last two drop", []dnsserver.Mode{ok, drop, drop}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"first says SERVFAIL", []dnsserver.Mode{servfail, ok, ok}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"first two say SERVFAIL", []dnsserver.Mode{servfail, servfail, ok}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"first refuses", []dnsserver.Mode{refused, ok, ok}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"drop and SERVFAIL", []dnsserver.Mode{drop, servfail, ok}, 900 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"split horizon", []dnsserver.Mode{nxdomain, ok, ok}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"drop and split horizon", []dnsserver.Mode{drop, nxdomain, ok}, 900 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"truncated, all of them", []dnsserver.Mode{truncate, truncate, truncate}, 500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"UDP dropped everywhere", []dnsserver.Mode{dropUDP, dropUDP, dropUDP}, 950 * time.Millisecond, 240 * time.Millisecond, false, false},
		{"two drop, third only TCP", []dnsserver.Mode{drop, drop, dropUDP}, 1500 * time.Millisecond, 500 * time.Millisecond, false, false},
		{"all drop", []dnsserver.Mode{drop, drop, drop}, 5 * time.Second, 0, true, false},
		{"all say SERVFAIL", []dnsserver.Mode{servfail, servfail, servfail}, 500 * time.Millisecond, 0, true, false},
		{"all say NXDOMAIN", []dnsserver.Mode{nxdomain, nxdomain, nxdomain}, 500 * time.Millisecond, 0, true, true},
		{"unknown to one, others fail", []dnsserver.Mode{nxdomain, servfail, drop}, 5 * time.Second, 0, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const slower = 5
			r := newResolver(t, startServers(t, test.modes...), func(o *Options) {
				o.HedgeAfter, o.UDPWait, o.PerTry = slower*100*time.Millisecond, slower*250*time.Millisecond, slower*2*time.Second
			})
			start := time.Now()
			addrs, err := r.LookupHost(t.Context(), host)
			if took := time.Since(start); took > slower*test.first {
				t.Errorf("the first lookup took %v, want at most %v", took, slower*test.first)
			}
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
			r.expire(host)
			if start = time.Now(); true {
				if addrs, err = r.LookupHost(t.Context(), host); err != nil || len(addrs) != 1 {
					t.Fatalf("second lookup: %v, %v", addrs, err)
				}
			}
			if took := time.Since(start); took > slower*test.second {
				t.Errorf("the second lookup took %v, want at most %v", took, slower*test.second)
			}
			if stale := r.Stats().Stale; stale != 0 {
				t.Errorf("%d answers were stale although a server answers", stale)
			}
		})
	}
}

// TestLastGoodAnswer proves A4: with all servers silent the last good answer is used, soon and then without waiting,
// and given up when it is too old.
func TestLastGoodAnswer(t *testing.T) {
	servers := startServers(t, dnsserver.Answer, dnsserver.Answer, dnsserver.Answer)
	var mu sync.Mutex
	var told []Stale
	r := newResolver(t, servers, func(o *Options) {
		o.StaleWait, o.StaleHold = 2*time.Second, 10*time.Minute
		o.OnStale = func(s Stale) { mu.Lock(); told = append(told, s); mu.Unlock() }
	})
	lookup := func(bound time.Duration) {
		t.Helper()
		start := time.Now()
		if addrs, err := r.LookupHost(t.Context(), host); err != nil || len(addrs) != 1 || addrs[0] != address {
			t.Fatalf("got %v, %v", addrs, err)
		}
		if took := time.Since(start); took > bound {
			t.Fatalf("took %v, want at most %v", took, bound)
		}
	}
	lookup(30 * time.Second)
	for _, s := range servers {
		s.SetMode(dnsserver.Drop)
	}
	r.expire(host)
	lookup(30 * time.Second) // StaleWait
	for range 20 {
		lookup(1900 * time.Millisecond) // held: no StaleWait
	}
	if stats := r.Stats(); stats.Stale != 21 {
		t.Errorf("%d stale answers counted, want 21", stats.Stale)
	}
	mu.Lock()
	if len(told) != 1 || told[0].Host != host || told[0].Age <= 0 {
		t.Errorf("OnStale was told %+v, want one", told)
	}
	mu.Unlock()

	for _, s := range servers {
		s.SetMode(dnsserver.Answer)
	}
	moved := netip.MustParseAddr("127.0.0.78")
	servers[0].Set(host, moved)
	servers[1].Set(host, moved)
	servers[2].Set(host, moved)
	for deadline := time.Now().Add(10 * time.Second); ; {
		addrs, err := r.LookupHost(t.Context(), host)
		if err == nil && addrs[0] == moved {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %v, %v after the servers are back", addrs, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll, not luck
	}
}

func TestStaleAnswerExpires(t *testing.T) {
	servers := startServers(t, dnsserver.Answer)
	r := newResolver(t, servers, func(o *Options) { o.StaleFor = 2 * time.Second })
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	servers[0].SetMode(dnsserver.ServFail)
	r.expire(host)
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatalf("within StaleFor: %v", err)
	}
	time.Sleep(2100 * time.Millisecond) // longer than StaleFor: the clock is what is tested
	if addrs, err := r.LookupHost(t.Context(), host); err == nil {
		t.Fatalf("got %v from an answer older than StaleFor", addrs)
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

func TestStatsAndMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	servers := startServers(t, dnsserver.Drop, dnsserver.ServFail, dnsserver.Answer)
	r := newResolver(t, servers, func(o *Options) { o.Metrics = registry })
	if _, err := r.LookupHost(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	stats := r.Stats().Servers
	if !stats[0].Demoted || stats[0].Beaten != 1 || stats[1].Failures != 1 || stats[1].Demoted || stats[2].Answers != 1 {
		t.Errorf("stats: %+v", stats)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 4 {
		t.Errorf("metrics: %d families, %v", len(families), err)
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
