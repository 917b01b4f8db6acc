// Package dnsserver is a small authoritative DNS server for tests and for the demonstration. It answers A and AAAA
// questions from a zone that can be changed while it runs, over UDP and TCP on one loopback port, and it can be told
// to misbehave in the ways that real servers do in an outage.
package dnsserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Mode is how the server behaves. It can be changed at any time with SetMode.
type Mode int32

// The modes.
const (
	Answer       Mode = iota // answers from the zone; NXDOMAIN for names that are not in it
	Drop                     // receives and never answers, over UDP and TCP
	ServFail                 // answers SERVFAIL to everything
	Refused                  // answers REFUSED to everything
	NXDomain                 // answers that no name exists
	TruncateUDP              // answers over UDP with the TC bit and no records; answers fully over TCP
	DropUDP                  // never answers over UDP; answers over TCP
	TruncateOnly             // like TruncateUDP, but drops TCP
)

var modeNames = map[Mode]string{
	Answer: "answer", Drop: "drop", ServFail: "servfail", Refused: "refused", NXDomain: "nxdomain",
	TruncateUDP: "truncate-udp", DropUDP: "drop-udp", TruncateOnly: "truncate-only",
}

// String gives the name that ParseMode reads.
func (m Mode) String() string {
	if name, ok := modeNames[m]; ok {
		return name
	}
	return fmt.Sprintf("mode(%d)", int32(m))
}

// ParseMode reads a mode's name, such as "drop" or "drop-udp".
func ParseMode(text string) (Mode, error) {
	for mode, name := range modeNames {
		if strings.EqualFold(name, text) {
			return mode, nil
		}
	}
	return Answer, fmt.Errorf("unknown DNS server mode %q", text)
}

// Counts says how many questions the server has received, whatever it did with them.
type Counts struct {
	UDP int64
	TCP int64
}

// Server is a running DNS server. All its methods are safe for concurrent use.
type Server struct {
	udp, tcp *dns.Server
	address  string
	mode     atomic.Int32
	delay    atomic.Int64 // nanoseconds
	ttl      atomic.Uint32
	countUDP atomic.Int64
	countTCP atomic.Int64
	quit     chan struct{}
	close    sync.Once
	running  sync.WaitGroup

	mu   sync.RWMutex
	zone map[string][]netip.Addr // keys in lower case, with the final dot
}

// DefaultTTL is the time to live of answers until SetTTL changes it.
const DefaultTTL = 5 * time.Second

// New starts a server on address ("127.0.0.1:0" picks a free port; UDP and TCP get the same one) that answers from a
// copy of zone.
func New(address string, zone map[string]netip.Addr) (*Server, error) {
	s := &Server{zone: map[string][]netip.Addr{}, quit: make(chan struct{})}
	for name, addr := range zone {
		s.zone[key(name)] = []netip.Addr{addr}
	}
	s.SetTTL(DefaultTTL)
	listener, packets, err := listenBoth(address)
	if err != nil {
		return nil, fmt.Errorf("listening for DNS on %s: %w", address, err)
	}
	s.address = listener.Addr().String()
	var ready sync.WaitGroup
	ready.Add(2)
	s.tcp = &dns.Server{Listener: listener, Handler: s.handler(false), NotifyStartedFunc: ready.Done}
	s.udp = &dns.Server{PacketConn: packets, Handler: s.handler(true), NotifyStartedFunc: ready.Done}
	for _, server := range []*dns.Server{s.tcp, s.udp} {
		s.running.Go(func() { _ = server.ActivateAndServe() })
	}
	ready.Wait()
	return s, nil
}

// listenBoth finds a port that is free for both protocols: the kernel picks one for TCP that may be taken for UDP.
func listenBoth(address string) (net.Listener, net.PacketConn, error) {
	var errs []error
	for range 20 {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return nil, nil, err
		}
		packets, err := net.ListenPacket("udp", listener.Addr().String())
		if err == nil {
			return listener, packets, nil
		}
		errs = append(errs, err, listener.Close())
	}
	return nil, nil, errors.Join(errs...)
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return s.address }

// SetMode changes the behaviour from the next question on.
func (s *Server) SetMode(m Mode) { s.mode.Store(int32(m)) }

// Mode is the present behaviour.
func (s *Server) Mode() Mode { return Mode(s.mode.Load()) }

// SetDelay makes every answer wait for d.
func (s *Server) SetDelay(d time.Duration) { s.delay.Store(int64(d)) }

// SetTTL sets the time to live of later answers; it is rounded down to whole seconds.
func (s *Server) SetTTL(d time.Duration) { s.ttl.Store(uint32(d / time.Second)) }

// Set gives name these addresses in place of any that it had.
func (s *Server) Set(name string, addrs ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone[key(name)] = append([]netip.Addr(nil), addrs...)
}

// Remove takes name out of the zone.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.zone, key(name))
}

// Queries says how many questions have come in so far.
func (s *Server) Queries() Counts {
	return Counts{UDP: s.countUDP.Load(), TCP: s.countTCP.Load()}
}

// Close stops the server and waits for its goroutines. It can be called more than once.
func (s *Server) Close() error {
	var err error
	s.close.Do(func() {
		close(s.quit)
		err = errors.Join(s.udp.Shutdown(), s.tcp.Shutdown())
		s.running.Wait()
	})
	return err
}

func key(name string) string { return strings.ToLower(dns.Fqdn(name)) }

func (s *Server) handler(udp bool) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if udp {
			s.countUDP.Add(1)
		} else {
			s.countTCP.Add(1)
		}
		if delay := time.Duration(s.delay.Load()); delay > 0 {
			timer := time.NewTimer(delay)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-s.quit:
				return
			}
		}
		if reply := s.reply(q, udp); reply != nil {
			_ = w.WriteMsg(reply) // who asked may be gone; that is their choice
		}
	})
}

// reply is the answer to q, or nil when the mode says to keep silent.
func (s *Server) reply(q *dns.Msg, udp bool) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	switch mode := s.Mode(); {
	case mode == Drop, mode == DropUDP && udp, mode == TruncateOnly && !udp:
		return nil
	case mode == ServFail:
		m.Rcode = dns.RcodeServerFailure
		return m
	case mode == Refused:
		m.Rcode = dns.RcodeRefused
		return m
	case mode == NXDomain:
		m.Rcode = dns.RcodeNameError
		return m
	case (mode == TruncateUDP || mode == TruncateOnly) && udp:
		m.Truncated = true
		return m
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	s.mu.RLock()
	addrs, known := s.zone[key(question.Name)]
	s.mu.RUnlock()
	if !known {
		m.Rcode = dns.RcodeNameError
		return m
	}
	for _, addr := range addrs {
		header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: s.ttl.Load()}
		switch {
		case question.Qtype == dns.TypeA && addr.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: net.IP(addr.AsSlice())})
		case question.Qtype == dns.TypeAAAA && addr.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: net.IP(addr.AsSlice())})
		}
	}
	return m
}
