package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ServerStats counts what one server did since the Resolver was made.
type ServerStats struct {
	Address  string // host:port
	Public   bool
	Queries  int64 // lookups in which it was asked
	Answers  int64 // with addresses
	NotFound int64 // NXDOMAIN, or no address
	Failures int64 // SERVFAIL, REFUSED, unreachable; without time-outs
	Timeouts int64 // no answer within PerTry
	Beaten   int64 // still silent when another server, asked because of that, had answered
	TCP      int64 // answers that only TCP gave
	Demoted  bool  // asked last at present
	LastErr  string
}

// server is one name server and what is known about it.
type server struct {
	address string
	public  bool

	mu           sync.Mutex
	stats        ServerStats
	demotedUntil time.Time
	tcpUntil     time.Time
}

// tcpFirst reports whether UDP to this server was found to be dropped lately.
func (s *server) tcpFirst(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.tcpUntil)
}

// answeredOverTCP records an answer that came over TCP; silent says that UDP had given none at all, in which case TCP
// is tried without waiting for a while.
func (s *server) answeredOverTCP(now time.Time, hold time.Duration, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.TCP++
	if silent {
		s.tcpUntil = now.Add(hold)
	}
}

func (s *server) snapshot(now time.Time) ServerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Address, stats.Public, stats.Demoted = s.address, s.public, now.Before(s.demotedUntil)
	return stats
}

// record counts the outcome of one question and demotes a server that gave no answer. One that answered SERVFAIL or
// REFUSED is not demoted by that alone: the fault may be of that one name (see outdone).
func (s *server) record(r *Resolver, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.stats.Answers++
		return
	case errors.Is(err, errNotFound):
		s.stats.NotFound++
		return
	case errors.Is(err, context.Canceled): // another was faster; beaten counts that where it says something
		return
	case errors.Is(err, context.DeadlineExceeded):
		s.stats.Timeouts++
		s.stats.LastErr = err.Error()
		s.demote(r)
	default:
		s.stats.Failures++
		s.stats.LastErr = err.Error()
		if opErr := (*net.OpError)(nil); errors.As(err, &opErr) {
			s.demote(r)
		}
	}
}

// beaten records that another server had to answer in this one's place.
func (s *server) beaten(r *Resolver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Beaten++
	s.stats.LastErr = "silent while another server answered"
	s.demote(r)
}

// outdone records that another server had the addresses of a name for which this one answered SERVFAIL, REFUSED or the
// like: the fault is this server's, not the name's. One that does not know the name (split horizon) is not at fault.
func (s *server) outdone(r *Resolver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.demote(r)
}

// demote is called with the lock held.
func (s *server) demote(r *Resolver) {
	now := time.Now()
	if !now.Before(s.demotedUntil) {
		r.options.Logger.Warn("name server does not answer as others do; asking it last for a while",
			"server", s.address, "for", r.options.Demote, "error", s.stats.LastErr)
	}
	s.demotedUntil = now.Add(r.options.Demote)
}

// order gives the servers that may be asked about a name, those that answer first.
func (r *Resolver) order(private bool) []*server {
	now := time.Now()
	var first, last []*server
	for _, s := range r.currentServers() {
		if private && s.public {
			continue
		}
		s.mu.Lock()
		demoted := now.Before(s.demotedUntil)
		s.mu.Unlock()
		if demoted {
			last = append(last, s)
		} else {
			first = append(first, s)
		}
	}
	return append(first, last...)
}

// currentServers expands Options.Servers with what resolv.conf says now.
func (r *Resolver) currentServers() []*server {
	system, _ := r.system.read(r.options.ResolvConf)
	var addresses []string
	for _, name := range r.options.Servers {
		if name == System {
			addresses = append(addresses, system.servers...)
		} else {
			addresses = append(addresses, withPort(name, "53"))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var servers []*server
	for _, address := range addresses {
		s := r.servers[address]
		if s == nil {
			s = &server{address: address, public: r.isPublic(address)}
			r.servers[address] = s
			r.serverOrder = append(r.serverOrder, s)
		}
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	return servers
}

func (r *Resolver) isPublic(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	ip, ipErr := netip.ParseAddr(host)
	for _, public := range r.options.Public {
		if public == address || public == host {
			return true
		}
		if other, err := netip.ParseAddr(public); err == nil && ipErr == nil && other == ip {
			return true
		}
	}
	return false
}

// withPort adds the port to an address that has none; IPv6 addresses may come with or without brackets.
func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

// hedge asks the servers in turn, the next one as soon as one fails or after HedgeAfter, until one has addresses. It
// ends in errNotFound only when every server says that the name does not exist: with some of them failing, one that
// does not know the name (split horizon) proves nothing.
func (r *Resolver) hedge(ctx context.Context, name string, private bool) (answer, error) {
	servers := r.order(private)
	if len(servers) == 0 {
		if private {
			return answer{}, errors.New("no name server may be asked about a private name")
		}
		return answer{}, errors.New("no name servers are configured")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		index int
		answer
		err error
	}
	results := make(chan result, len(servers))
	asked := make([]time.Time, 0, len(servers))
	open := map[int]bool{}
	askNext := func() {
		if len(asked) == len(servers) {
			return
		}
		index := len(asked)
		s := servers[index]
		asked, open[index] = append(asked, time.Now()), true
		s.mu.Lock()
		s.stats.Queries++
		s.mu.Unlock()
		r.running.Go(func() {
			a, err := r.ask(ctx, s, name)
			s.record(r, err)
			results <- result{index, a, err}
		})
	}
	askNext()
	timer := time.NewTimer(r.options.HedgeAfter)
	defer timer.Stop()
	var failures, unknown []error
	var failed []*server
	for len(open) > 0 {
		select {
		case <-timer.C:
			askNext()
			timer.Reset(r.options.HedgeAfter)
		case got := <-results:
			delete(open, got.index)
			if got.err == nil {
				for index := range open {
					if time.Since(asked[index]) >= r.options.HedgeAfter {
						servers[index].beaten(r)
					}
				}
				for _, s := range failed {
					s.outdone(r)
				}
				return got.answer, nil
			}
			err := fmt.Errorf("%s: %w", servers[got.index].address, got.err)
			if errors.Is(got.err, errNotFound) {
				unknown = append(unknown, err)
			} else {
				failures, failed = append(failures, err), append(failed, servers[got.index])
			}
			askNext()
			timer.Reset(r.options.HedgeAfter)
		}
	}
	if len(failures) > 0 {
		return answer{}, errors.Join(failures...)
	}
	return answer{}, errors.Join(unknown...)
}

// systemConfig is the part of resolv.conf that matters here.
type systemConfig struct {
	servers []string
	search  []string
}

// systemFile caches resolv.conf until it changes.
type systemFile = watchedFile[systemConfig]

func parseResolvConf(path string) (systemConfig, error) {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return systemConfig{}, fmt.Errorf("reading name servers: %w", err)
	}
	var result systemConfig
	for _, address := range config.Servers {
		result.servers = append(result.servers, net.JoinHostPort(address, config.Port))
	}
	for _, zone := range config.Search {
		if zone = strings.Trim(zone, "."); zone != "" {
			result.search = append(result.search, zone)
		}
	}
	return result, nil
}
