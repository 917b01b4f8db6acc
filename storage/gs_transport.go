package storage

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// gsTransport is HTTP/1.1 on purpose: several connections carry more than one does, and one that hangs takes one
// request with it, not all of them.
func gsTransport(config gsConfig) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := config.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &stallConn{Conn: conn, stall: config.Stall}, nil
		},
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: config.Stall,
		IdleConnTimeout:       config.Stall,
		MaxIdleConns:          2 * gsUploads,
		MaxIdleConnsPerHost:   2 * gsUploads,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true, // objects are bytes as they were stored
	}
	if config.Endpoint == "" {
		t.Proxy = http.ProxyFromEnvironment
	}
	return t
}

// stallConn gives up a connection over which nothing has moved for a while. A request's own deadline could not tell a
// slow line from a dead one; TCP alone takes a quarter of an hour to notice that the other side is gone.
type stallConn struct {
	net.Conn
	stall time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(c.stall)) // fails on a closed connection only, and so does Read
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(c.stall))
	n, err := c.Conn.Write(p)
	// The transport always has a read pending: bytes going out are a sign of life for it too.
	_ = c.SetReadDeadline(time.Now().Add(c.stall))
	return n, err
}
