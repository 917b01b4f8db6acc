package resolver

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzAnswer: whatever a server answers, only addresses that the answer gives to the name asked for, or to what that name
// is an alias of, are believed, and only as an answer to the question that was asked.
func FuzzAnswer(f *testing.F) {
	const name = "storage.test."
	record := func(text string) dns.RR {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		return rr
	}
	seed := func(rcode int, question string, records ...dns.RR) {
		message := new(dns.Msg).SetQuestion(question, dns.TypeA)
		message.Response, message.Rcode, message.Answer = true, rcode, records
		packed, err := message.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	seed(dns.RcodeSuccess, name, record("storage.test. 60 IN A 192.0.2.1"))
	seed(dns.RcodeSuccess, name, record("b.test. 60 IN A 192.0.2.2"), record("STORAGE.test. 5 IN CNAME a.test."), record("a.test. 5 IN CNAME b.test."))
	seed(dns.RcodeSuccess, name, record("storage.test. 60 IN CNAME storage.test."), record("other.test. 60 IN A 192.0.2.3"))
	seed(dns.RcodeSuccess, "other.test.", record("storage.test. 60 IN A 192.0.2.4"))
	seed(dns.RcodeNameError, name)
	seed(dns.RcodeServerFailure, name)
	f.Fuzz(func(t *testing.T, data []byte) {
		reply := new(dns.Msg)
		if reply.Unpack(data) != nil {
			return
		}
		question := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if sameQuestion(reply, question) && reply.Rcode == dns.RcodeSuccess &&
			(len(reply.Question) != 1 || !strings.EqualFold(reply.Question[0].Name, name) || reply.Question[0].Qtype != dns.TypeA) {
			t.Fatalf("taken for an answer to %s: %v", name, reply.Question)
		}
		found, err := addresses(reply, name, dns.TypeA)
		if err != nil {
			return
		}
		if reply.Rcode != dns.RcodeSuccess || len(found.addrs) == 0 || found.ttl < 0 {
			t.Fatalf("%+v out of %v", found, reply)
		}
		for _, addr := range found.addrs {
			if !given(reply, name, addr) {
				t.Fatalf("%s is believed of %s, out of\n%v", addr, name, reply)
			}
		}
	})
}

// given says, the slow way, whether a reply has an A record with an address for a name or for what it is an alias of.
func given(reply *dns.Msg, name string, addr netip.Addr) bool {
	todo, seen := []string{strings.ToLower(name)}, map[string]bool{}
	for len(todo) > 0 {
		current := todo[0]
		todo = todo[1:]
		if seen[current] {
			continue
		}
		seen[current] = true
		for _, rr := range reply.Answer {
			if !strings.EqualFold(rr.Header().Name, current) {
				continue
			}
			switch record := rr.(type) {
			case *dns.CNAME:
				todo = append(todo, strings.ToLower(record.Target))
			case *dns.A:
				if got, ok := netip.AddrFromSlice(record.A); ok && got.Unmap() == addr {
					return true
				}
			}
		}
	}
	return false
}

// FuzzResolvConf: every server that is taken out of a resolv.conf is a host and a port, and a search zone has no dots at its
// ends.
func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.53\nnameserver 2001:db8::53%eth0\nsearch corp.example .lan. .\noptions ndots:5\n")
	f.Add("nameserver\nnameserver \x00\n; x\ndomain .")
	path := filepath.Join(f.TempDir(), "resolv.conf")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		config, err := parseResolvConf(path)
		if err != nil {
			return
		}
		for _, server := range config.servers {
			if _, port, err := net.SplitHostPort(server); err != nil || port != "53" {
				t.Fatalf("server %q: %v", server, err)
			}
		}
		for _, zone := range config.search {
			if zone == "" || strings.Trim(zone, ".") != zone {
				t.Fatalf("zone %q", zone)
			}
		}
	})
}

// FuzzHosts: a name has exactly the addresses that lines of the hosts file give it.
func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost\n192.0.2.1\tStore.test. store # 192.0.2.2 hidden\n\n::1 six\n", "store.test")
	f.Add("nonsense name\n192.0.2.1", "name")
	path := filepath.Join(f.TempDir(), "hosts")
	f.Fuzz(func(t *testing.T, text, host string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		hosts, err := parseHosts(path)
		if err != nil {
			return
		}
		var want []netip.Addr
		for line := range strings.SplitSeq(text, "\n") {
			line, _, _ = strings.Cut(line, "#")
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			addr, err := netip.ParseAddr(fields[0])
			if err != nil {
				continue
			}
			for _, name := range fields[1:] {
				if hostKey(name) == hostKey(host) {
					want = append(want, addr)
				}
			}
		}
		got := hosts[hostKey(host)]
		if len(got) != len(want) {
			t.Fatalf("%q has %v, want %v", host, got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%q has %v, want %v", host, got, want)
			}
		}
	})
}
