package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// DialContext connects to address ("host:port") like net.Dialer.DialContext, with names looked up by this Resolver. The
// addresses are tried in turn, each for DialTimeout at most. When none answers and they came from the cache, the
// servers are asked again and addresses that are new are tried: what moved during an outage is found at once after it.
func (r *Resolver) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		number, err := net.DefaultResolver.LookupPort(ctx, network, service) // reads a file, asks nobody
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		port = uint64(number)
	}
	addrs, cached, err := r.lookup(ctx, host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	conn, err := r.dialEach(ctx, network, addrs, uint16(port))
	if err == nil {
		return conn, nil
	}
	r.expire(host)
	if cached && ctx.Err() == nil {
		fresh, again, lookupErr := r.lookup(ctx, host)
		if lookupErr != nil {
			return nil, fmt.Errorf("%w (asked for its address again: %w)", err, lookupErr)
		}
		fresh = slices.DeleteFunc(fresh, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
		if !again && len(fresh) > 0 {
			conn, freshErr := r.dialEach(ctx, network, fresh, uint16(port))
			if freshErr == nil {
				return conn, nil
			}
			r.expire(host)
			err = errors.Join(err, freshErr)
		}
	}
	return nil, err
}

func (r *Resolver) dialEach(ctx context.Context, network string, addrs []netip.Addr, port uint16) (net.Conn, error) {
	var errs []error
	dialer := net.Dialer{Timeout: r.options.DialTimeout}
	for _, addr := range addrs {
		if network == "tcp4" && !addr.Is4() || network == "tcp6" && !addr.Is6() {
			continue
		}
		conn, err := dialer.DialContext(ctx, network, netip.AddrPortFrom(addr, port).String())
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	switch len(errs) {
	case 0:
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no address of a suitable family")}
	case 1:
		return nil, errs[0]
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.Join(errs...)}
	}
}
