// Package resolver looks up host names for Holdfast's own HTTP clients so that an outage of DNS servers does not stop
// a backup: it asks several servers, starts the next one after a short wait or at once after a failure, falls back to
// TCP, and keeps the last good answer of every name for when no server answers at all (requirement A4).
//
// Go's net.Resolver cannot do this: it takes its servers, attempts and timeouts from resolv.conf, and with the first
// two of three servers silent it fails after ten seconds.
package resolver

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// System stands in Options.Servers for the name servers of resolv.conf, which is read again when it changes.
const System = "system"

// Options configures a Resolver. The zero value is useful.
type Options struct {
	// Servers are asked in this order. Each is "host:port", an IP address (port 53) or System. Default: System,
	// 8.8.8.8, 1.1.1.1.
	Servers []string
	// HedgeAfter is how long the first server may be silent before the next is asked as well. Default 100 ms.
	HedgeAfter time.Duration
	// Demote is how long a server that was silent, or failed, where another answered is asked last. Default 30 s.
	Demote time.Duration
	// PerTry bounds the question to one server, TCP included. Default 2 s.
	PerTry time.Duration
	// UDPWait is how long to wait for an answer over UDP before the same server is asked over TCP too. Default 250 ms.
	UDPWait time.Duration

	// StaleFor is how long the last good answer is kept after it expired. Default 1 h; negative keeps none.
	StaleFor time.Duration
	// StaleWait is how long a lookup waits for the servers before it takes a kept answer. Default 300 ms.
	StaleWait time.Duration
	// StaleHold is how long after that kept answer was taken lookups of the name take it without waiting. Default 2 s.
	StaleHold time.Duration

	// MinTTL and MaxTTL bound for how long an answer is used without asking again, whatever its record says.
	// Defaults 1 s and 5 min.
	MinTTL, MaxTTL time.Duration
	// MaxNames bounds the number of names in the cache. Default 1024.
	MaxNames int

	// DialTimeout bounds one attempt to connect to one address in DialContext. Default 3 s.
	DialTimeout time.Duration

	// Private are zones, such as "corp.example.com", that are never asked of public servers, neither as a hedge nor
	// after NXDOMAIN. Names without a dot, names made with resolv.conf's search list, and the zones internal, local,
	// home.arpa, lan, intranet and consul always count as private.
	Private []string
	// Public says which servers are public, by IP address. Default: the well-known addresses of Google, Cloudflare
	// and Quad9. A server that is not listed may be asked everything.
	Public []string

	// ResolvConf and HostsFile are the files to read. Defaults /etc/resolv.conf and /etc/hosts.
	ResolvConf string
	HostsFile  string

	// OnStale is told when a kept answer is used because the servers fail, at most once per StaleHold and name. It
	// must not block.
	OnStale func(Stale)
	// Logger takes warnings about servers that fail and kept answers that are used. Default: slog.Default().
	Logger *slog.Logger
	// Metrics, when set, is where the Resolver registers itself as a collector.
	Metrics prometheus.Registerer
}

// Stale describes the use of a last good answer.
type Stale struct {
	Host  string
	Addrs []netip.Addr
	Age   time.Duration // since a server gave this answer
	Cause error         // why the servers gave none; nil when they are still silent
}

var (
	defaultPublic = []string{
		"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844",
		"1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001",
		"9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9",
	}
	alwaysPrivate = []string{"internal", "local", "home.arpa", "lan", "intranet", "consul"}
)

func (o *Options) applyDefaults() {
	duration := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	if len(o.Servers) == 0 {
		o.Servers = []string{System, "8.8.8.8", "1.1.1.1"}
	}
	if len(o.Public) == 0 {
		o.Public = defaultPublic
	}
	duration(&o.HedgeAfter, 100*time.Millisecond)
	duration(&o.Demote, 30*time.Second)
	duration(&o.PerTry, 2*time.Second)
	duration(&o.UDPWait, 250*time.Millisecond)
	duration(&o.StaleFor, time.Hour)
	duration(&o.StaleWait, 300*time.Millisecond)
	duration(&o.StaleHold, 2*time.Second)
	duration(&o.MinTTL, time.Second)
	duration(&o.MaxTTL, 5*time.Minute)
	duration(&o.DialTimeout, 3*time.Second)
	if o.MaxNames <= 0 {
		o.MaxNames = 1024
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.HostsFile == "" {
		o.HostsFile = "/etc/hosts"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}
