package resolver

import (
	"bufio"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// watchedFile keeps what a file says and reads it again when it has changed, looking at most every few seconds.
type watchedFile[T any] struct {
	parse func(path string) (T, error)

	mu      sync.Mutex
	looked  time.Time
	changed time.Time
	size    int64
	value   T
	err     error
}

const lookAgain = 2 * time.Second

// read gives the content of the file; a file that cannot be read keeps the content it had, with the error.
func (f *watchedFile[T]) read(path string) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if !f.looked.IsZero() && now.Sub(f.looked) < lookAgain {
		return f.value, f.err
	}
	f.looked = now
	info, err := os.Stat(path)
	if err != nil {
		f.err = err
		return f.value, f.err
	}
	if f.err == nil && info.ModTime().Equal(f.changed) && info.Size() == f.size {
		return f.value, nil
	}
	value, err := f.parse(path)
	if f.err = err; err == nil {
		f.value, f.changed, f.size = value, info.ModTime(), info.Size()
	}
	return f.value, f.err
}

// parseHosts reads a hosts file: address, name, aliases.
func parseHosts(path string) (map[string][]netip.Addr, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	hosts := map[string][]netip.Addr{}
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue // as every reader of hosts files does
		}
		for _, name := range fields[1:] {
			key := hostKey(name)
			hosts[key] = append(hosts[key], addr)
		}
	}
	return hosts, scanner.Err()
}

// fromHosts looks host up in the hosts file. localhost and names below it never leave the machine, whatever that file
// says (RFC 6761 section 6.3).
func (r *Resolver) fromHosts(host string) []netip.Addr {
	hosts, _ := r.hosts.read(r.options.HostsFile)
	if addrs := hosts[host]; len(addrs) > 0 {
		return append([]netip.Addr(nil), addrs...)
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	return nil
}

// hostKey is the form in which names are compared: lower case, without the final dot.
func hostKey(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
