package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Resolver looks up names. Make one per process with New and share it: its cache is what outlives an outage. All its
// methods are safe for concurrent use.
type Resolver struct {
	options Options
	system  *systemFile
	hosts   *watchedFile[map[string][]netip.Addr]
	// exchange sends one question to one server; tests replace it, so that time and servers are theirs.
	exchange func(ctx context.Context, network, address, name string, qtype uint16) (*dns.Msg, error)

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	servers     map[string]*server
	serverOrder []*server // in the order of first use, for Stats
	entries     map[string]*entry
	flights     map[string]*flight
	counts      Stats
}

// entry is what the cache knows of one name.
type entry struct {
	addrs     []netip.Addr // empty: every server said that there is none
	answered  time.Time
	expires   time.Time
	holdUntil time.Time // until then a kept answer is used without waiting
}

// flight is one lookup that any number of callers wait for.
type flight struct {
	done  chan struct{}
	addrs []netip.Addr
	err   error
}

// Stats says what a Resolver did since it was made.
type Stats struct {
	Servers  []ServerStats
	Lookups  int64 // names asked for, hosts file and literals not counted
	Hits     int64 // answered from the cache within the TTL
	Stale    int64 // answered with the last good answer, past its TTL
	Failed   int64 // lookups that ended in an error, NotFound included
	NotFound int64
	Names    int // names in the cache now
}

// New makes a Resolver. It asks nothing and starts nothing yet. Close it at the end.
func New(options Options) *Resolver {
	options.applyDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Resolver{
		options: options,
		system:  &systemFile{parse: parseResolvConf},
		hosts:   &watchedFile[map[string][]netip.Addr]{parse: parseHosts}, exchange: exchange,
		ctx: ctx, cancel: cancel,
		servers: map[string]*server{}, entries: map[string]*entry{}, flights: map[string]*flight{},
	}
	if options.Metrics != nil {
		if err := options.Metrics.Register(r); err != nil {
			options.Logger.Warn("resolver metrics are not exported", "error", err)
		}
	}
	return r
}

// Close ends all lookups and waits for them. The Resolver answers nothing afterwards.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	if r.options.Metrics != nil {
		r.options.Metrics.Unregister(r)
	}
	return nil
}

// LookupHost gives the addresses of host, IPv4 first. Its errors are *net.DNSError with the servers' answers as their
// cause; IsNotFound is set only when every server said so. It returns when ctx ends, while the servers may still be
// asked on behalf of others.
func (r *Resolver) LookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, _, err := r.lookup(ctx, host)
	return addrs, err
}

// lookup also says whether the addresses are from the cache.
func (r *Resolver) lookup(ctx context.Context, host string) (addrs []netip.Addr, cached bool, err error) {
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return []netip.Addr{addr}, false, nil
	}
	host = hostKey(host)
	if addrs := r.fromHosts(host); len(addrs) > 0 {
		return addrs, false, nil
	}
	if _, ok := dns.IsDomainName(host); !ok || host == "" || strings.ContainsAny(host, " \t/\\@:") {
		return nil, false, &net.DNSError{Err: "not a host name", Name: host, IsNotFound: true}
	}
	if err := ctx.Err(); err != nil {
		return nil, false, contextError(host, err)
	}

	now := time.Now()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, false, &net.DNSError{Err: "resolver is closed", Name: host}
	}
	r.counts.Lookups++
	known := r.entries[host]
	if known != nil && now.Before(known.expires) {
		addrs := known.addrs
		r.counts.Hits++
		if len(addrs) == 0 {
			r.counts.Failed++
			r.counts.NotFound++
		}
		r.mu.Unlock()
		if len(addrs) == 0 {
			return nil, true, &net.DNSError{Err: errNotFound.Error(), Name: host, IsNotFound: true}
		}
		return append([]netip.Addr(nil), addrs...), true, nil
	}
	f := r.flights[host]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		r.flights[host] = f
		r.running.Go(func() { r.fly(host, f) })
	}
	var stale <-chan time.Time
	if known != nil && len(known.addrs) > 0 && now.Before(known.expires.Add(r.options.StaleFor)) {
		wait := r.options.StaleWait
		if now.Before(known.holdUntil) {
			wait = 0 // the servers were silent a moment ago: do not make everyone find out anew
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		stale = timer.C
	}
	r.mu.Unlock()

	select {
	case <-f.done:
		if f.err == nil {
			return append([]netip.Addr(nil), f.addrs...), false, nil
		}
		var dnsErr *net.DNSError
		if stale != nil && !(errors.As(f.err, &dnsErr) && dnsErr.IsNotFound) {
			return r.useStale(host, known, f.err), true, nil
		}
		return nil, false, f.err
	case <-stale:
		select {
		case <-f.done: // both at once: take what is fresh
			if f.err == nil {
				return append([]netip.Addr(nil), f.addrs...), false, nil
			}
		default:
		}
		return r.useStale(host, known, nil), true, nil
	case <-ctx.Done():
		return nil, false, contextError(host, ctx.Err())
	}
}

func contextError(host string, err error) error {
	return &net.DNSError{
		UnwrapErr: err, Err: err.Error(), Name: host,
		IsTimeout: errors.Is(err, context.DeadlineExceeded), IsTemporary: true,
	}
}

// useStale counts and announces the use of a kept answer and starts its hold.
func (r *Resolver) useStale(host string, known *entry, cause error) []netip.Addr {
	now := time.Now()
	r.mu.Lock()
	r.counts.Stale++
	announce := !now.Before(known.holdUntil)
	if announce {
		known.holdUntil = now.Add(r.options.StaleHold)
	}
	addrs := append([]netip.Addr(nil), known.addrs...)
	r.mu.Unlock()
	if announce {
		age := now.Sub(known.answered)
		r.options.Logger.Warn("name servers do not answer; using the last good answer",
			"host", host, "addresses", addrs, "age", age.Round(time.Second), "error", cause)
		if r.options.OnStale != nil {
			r.options.OnStale(Stale{Host: host, Addrs: append([]netip.Addr(nil), addrs...), Age: age, Cause: cause})
		}
	}
	return addrs
}

// fly runs one lookup to its end and puts the outcome in the cache. It is bounded by PerTry and HedgeAfter, not by
// any caller: who gives up must not take the answer from the others, and a late answer still helps the next lookup.
func (r *Resolver) fly(host string, f *flight) {
	result, err := r.resolve(r.ctx, host)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(f.done)
	delete(r.flights, host)
	switch {
	case err == nil:
		ttl := min(max(result.ttl, r.options.MinTTL), r.options.MaxTTL)
		f.addrs = result.addrs
		r.remember(host, &entry{addrs: result.addrs, answered: now, expires: now.Add(ttl)})
		return
	case errors.Is(err, errNotFound):
		r.counts.NotFound++
		r.remember(host, &entry{answered: now, expires: now.Add(r.options.MinTTL)})
	}
	r.counts.Failed++
	f.err = &net.DNSError{
		UnwrapErr: err, Err: strings.ReplaceAll(err.Error(), "\n", "; "), Name: host,
		IsNotFound: errors.Is(err, errNotFound), IsTemporary: !errors.Is(err, errNotFound),
		IsTimeout: errors.Is(err, context.DeadlineExceeded),
	}
}

// remember is called with the lock held. A full cache loses a name that does not exist, else the one whose answer is
// oldest: asking for many wrong names must not cost the last good answers.
func (r *Resolver) remember(host string, e *entry) {
	if r.entries[host] == nil && len(r.entries) >= r.options.MaxNames {
		victim := ""
		for name, other := range r.entries {
			if victim == "" || worthLess(other, r.entries[victim]) {
				victim = name
			}
		}
		delete(r.entries, victim)
	}
	r.entries[host] = e
}

func worthLess(a, b *entry) bool {
	if none := len(a.addrs) == 0; none != (len(b.addrs) == 0) {
		return none
	}
	return a.answered.Before(b.answered)
}

// resolve asks for a name with a dot as it is; a name without one first with resolv.conf's search list. Names with a
// dot are never tried with the list: that would send them, misspelt, to other people's zones.
func (r *Resolver) resolve(ctx context.Context, host string) (answer, error) {
	system, _ := r.system.read(r.options.ResolvConf)
	type candidate struct {
		name    string
		private bool
	}
	dotted := strings.Contains(host, ".")
	candidates := []candidate{{dns.Fqdn(host), !dotted || r.isPrivate(host)}}
	if !dotted && r.usesSystem() {
		for _, zone := range system.search {
			candidates = append(candidates, candidate{dns.Fqdn(host + "." + zone), true})
		}
		candidates = append(candidates[1:], candidates[0])
	}
	var err error
	for _, c := range candidates {
		var result answer
		if result, err = r.hedge(ctx, c.name, c.private); err == nil {
			return result, nil
		}
		if !errors.Is(err, errNotFound) {
			return answer{}, fmt.Errorf("asking for %s: %w", c.name, err)
		}
	}
	return answer{}, err
}

func (r *Resolver) usesSystem() bool {
	for _, s := range r.options.Servers {
		if s == System {
			return true
		}
	}
	return false
}

// isPrivate reports whether public servers must not hear of host.
func (r *Resolver) isPrivate(host string) bool {
	for _, zones := range [][]string{alwaysPrivate, r.options.Private} {
		for _, zone := range zones {
			zone = hostKey(strings.TrimPrefix(zone, "."))
			if host == zone || strings.HasSuffix(host, "."+zone) {
				return true
			}
		}
	}
	return false
}

// expire makes the next lookup of host ask the servers. The answer stays for when they are silent.
func (r *Resolver) expire(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[hostKey(host)]; e != nil && len(e.addrs) > 0 {
		if now := time.Now(); e.expires.After(now) {
			e.expires = now
		}
	}
}

// Stats gives the counters so far.
func (r *Resolver) Stats() Stats {
	r.currentServers()
	now := time.Now()
	r.mu.Lock()
	stats := r.counts
	stats.Names = len(r.entries)
	servers := append([]*server(nil), r.serverOrder...)
	r.mu.Unlock()
	for _, s := range servers {
		stats.Servers = append(stats.Servers, s.snapshot(now))
	}
	return stats
}
