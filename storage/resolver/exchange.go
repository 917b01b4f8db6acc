package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// udpSize is the largest UDP answer asked for: what passes every sane path without fragments (DNS flag day 2020).
const udpSize = 1232

// errNotFound is a server's statement that a name does not exist or has no address.
var errNotFound = errors.New("no such host")

// answer is what one server said.
type answer struct {
	addrs []netip.Addr // IPv4 first
	ttl   time.Duration
}

// aaaaGrace is how long a lookup that has its IPv4 addresses still waits for the IPv6 ones (RFC 8305 section 3 has the
// same idea the other way round).
const aaaaGrace = 50 * time.Millisecond

// ask asks one server for the IPv4 and the IPv6 addresses of a fully qualified name.
func (r *Resolver) ask(ctx context.Context, s *server, name string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.PerTry)
	defer cancel()
	type result struct {
		qtype uint16
		answer
		err error
	}
	results := make(chan result, 2)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		r.running.Go(func() {
			reply, err := r.query(ctx, s, name, qtype)
			if err != nil {
				results <- result{qtype: qtype, err: err}
				return
			}
			a, err := addresses(reply, name, qtype)
			results <- result{qtype: qtype, answer: a, err: err}
		})
	}
	first := <-results
	if first.err == nil && first.qtype == dns.TypeA {
		timer := time.NewTimer(aaaaGrace)
		defer timer.Stop()
		select {
		case second := <-results:
			if second.err == nil {
				return merge(first.answer, second.answer), nil
			}
		case <-timer.C:
		}
		return first.answer, nil
	}
	if errors.Is(first.err, errNameError) {
		return answer{}, fmt.Errorf("%w (%w)", errNotFound, first.err) // of the name, whatever the type
	}
	second := <-results
	switch {
	case first.err == nil && second.err == nil:
		return merge(second.answer, first.answer), nil
	case first.err == nil:
		return first.answer, nil
	case second.err == nil:
		return second.answer, nil
	case !errors.Is(first.err, errNotFound):
		return answer{}, first.err
	default:
		return answer{}, second.err
	}
}

func merge(v4, v6 answer) answer {
	return answer{addrs: append(append([]netip.Addr(nil), v4.addrs...), v6.addrs...), ttl: min(v4.ttl, v6.ttl)}
}

// query asks one question of one server: over UDP, over TCP as well when UDP stays silent, fails or is truncated.
// Networks that drop UDP port 53 but pass TCP exist, and in an outage they are the ones that still work.
func (r *Resolver) query(ctx context.Context, s *server, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		network string
		reply   *dns.Msg
		err     error
	}
	results := make(chan result, 3)
	pending := 0
	start := func(network string) {
		pending++
		r.running.Go(func() {
			reply, err := r.exchange(ctx, network, s.address, name, qtype)
			results <- result{network, reply, err}
		})
	}
	tcpStarted := false
	startTCP := func() {
		if !tcpStarted {
			tcpStarted = true
			start("tcp")
		}
	}
	start("udp")
	if s.tcpFirst(time.Now()) {
		startTCP()
	}
	timer := time.NewTimer(r.options.UDPWait)
	defer timer.Stop()
	var truncated *dns.Msg
	var errs []error
	for pending > 0 {
		select {
		case <-timer.C:
			if !tcpStarted {
				startTCP()
				start("udp") // a single lost packet is more common than a closed port
			}
		case got := <-results:
			pending--
			switch {
			case got.err != nil:
				errs = append(errs, fmt.Errorf("over %s: %w", got.network, got.err))
				startTCP()
			case got.reply.Truncated && got.network == "udp":
				truncated = got.reply
				startTCP()
			default:
				if got.network == "tcp" {
					s.answeredOverTCP(time.Now(), r.options.Demote, truncated == nil)
				}
				return got.reply, nil
			}
		}
	}
	if truncated != nil && len(truncated.Answer) > 0 {
		return truncated, nil // a part of the addresses is better than none
	}
	return nil, errors.Join(errs...)
}

// exchange sends one question over one connection and waits for its answer or for the end of ctx.
func exchange(ctx context.Context, network, address, name string, qtype uint16) (*dns.Msg, error) {
	question := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(udpSize, false)
	reply, err := exchangeOnce(ctx, network, address, question)
	if err == nil && reply.Rcode == dns.RcodeFormatError { // servers from before EDNS0 exist
		question = new(dns.Msg).SetQuestion(name, qtype)
		return exchangeOnce(ctx, network, address, question)
	}
	return reply, err
}

func exchangeOnce(ctx context.Context, network, address string, question *dns.Msg) (*dns.Msg, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	defer raw.Close()
	// A deadline alone would not end the wait when another server has answered already.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: raw, UDPSize: udpSize}
	if err := conn.WriteMsg(question); err != nil {
		return nil, causeOf(ctx, err)
	}
	for {
		reply, err := conn.ReadMsg()
		if err != nil {
			var parse *dns.Error
			if network == "udp" && errors.As(err, &parse) && ctx.Err() == nil {
				continue // not an answer to us; the real one may still come
			}
			return nil, causeOf(ctx, err)
		}
		if reply.Id == question.Id && reply.Response && sameQuestion(reply, question) {
			return reply, nil
		}
		if network == "tcp" {
			return nil, errors.New("answer to another question")
		}
	}
}

// causeOf says "timeout" where the system says that a deadline of 1970 has passed.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
	return err
}

func sameQuestion(reply, question *dns.Msg) bool {
	if len(reply.Question) == 0 { // some servers leave it out of errors
		return reply.Rcode != dns.RcodeSuccess
	}
	return len(reply.Question) == 1 && reply.Question[0].Qtype == question.Question[0].Qtype &&
		strings.EqualFold(reply.Question[0].Name, question.Question[0].Name)
}

// errNameError is NXDOMAIN: it speaks of the name, not only of one record type.
var errNameError = errors.New("NXDOMAIN")

// addresses takes the addresses of name out of a reply, following its aliases.
func addresses(reply *dns.Msg, name string, qtype uint16) (answer, error) {
	switch reply.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		return answer{}, errNameError
	default:
		return answer{}, fmt.Errorf("server answered %s", rcodeName(reply.Rcode))
	}
	names := map[string]bool{strings.ToLower(name): true}
	for range len(reply.Answer) { // aliases may come in any order; each round follows at least one
		for _, rr := range reply.Answer {
			if alias, ok := rr.(*dns.CNAME); ok && names[strings.ToLower(alias.Hdr.Name)] {
				names[strings.ToLower(alias.Target)] = true
			}
		}
	}
	result := answer{ttl: time.Duration(1<<31-1) * time.Second}
	for _, rr := range reply.Answer {
		if !names[strings.ToLower(rr.Header().Name)] {
			continue
		}
		result.ttl = min(result.ttl, time.Duration(rr.Header().Ttl)*time.Second)
		var ip net.IP
		switch record := rr.(type) {
		case *dns.A:
			ip = record.A
		case *dns.AAAA:
			ip = record.AAAA
		default:
			continue
		}
		if addr, ok := netip.AddrFromSlice(ip); ok && rr.Header().Rrtype == qtype {
			result.addrs = append(result.addrs, addr.Unmap())
		}
	}
	if len(result.addrs) == 0 {
		return answer{}, errNotFound
	}
	return result, nil
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("response code %d", rcode)
}
