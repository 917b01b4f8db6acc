// Package link is a TCP connection between two parts of a stack that can be cut, as a network that is partitioned cuts it, and
// that can be slow and be reset, as a bad one is (trouble.go).
package link

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Link forwards connections to an address. While it is cut nothing goes through in either direction and nobody is told:
// what is sent waits, as packets that are sent again do, and new connections are made and stay silent.
type Link struct {
	target   string
	listener net.Listener
	relays   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	open    chan struct{}
	cut     bool
	delay   time.Duration
	ends    map[net.Conn]bool
	closing chan struct{}

	trouble func(connection int) Trouble
	number  int // of connections since Disturb
}

// New listens on a free port of the loopback interface and forwards to the target, host:port, until Close.
func New(target string) (*Link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("making a link to %s: %w", target, err)
	}
	return On(listener, target), nil
}

// On forwards what a listener accepts to the target, host:port, until Close, which closes the listener, too.
func On(listener net.Listener, target string) *Link {
	l := &Link{target: target, listener: listener, open: make(chan struct{}), ends: map[net.Conn]bool{}, closing: make(chan struct{})}
	close(l.open)
	l.relays.Go(l.accept)
	return l
}

// Address is where the link is reached, host:port.
func (l *Link) Address() string { return l.listener.Addr().String() }

// Cut stops everything from going through.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.cut, l.open = true, make(chan struct{})
	}
}

// Mend lets everything go through again, and first what has waited.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		l.cut = false
		close(l.open)
	}
}

// Delay has each piece that goes through wait for a time first, in each direction; 0 ends that. What comes meanwhile waits behind it.
func (l *Link) Delay(delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

// Close ends the link and all that goes through it.
func (l *Link) Close() error {
	l.mu.Lock()
	select {
	case <-l.closing:
		l.mu.Unlock()
		return nil
	default:
	}
	close(l.closing)
	err := l.listener.Close()
	for end := range l.ends {
		_ = end.Close() // whoever was there sees that it has ended
	}
	l.mu.Unlock()
	l.relays.Wait()
	if err != nil {
		return fmt.Errorf("closing the link to %s: %w", l.target, err)
	}
	return nil
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return // it is closed: nothing else ends a listener on loopback
		}
		if !l.keep(near) {
			return
		}
		l.relays.Go(func() { l.connect(near) })
	}
}

// keep remembers one end for Close; false when it is too late, and the end is closed.
func (l *Link) keep(end net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closing:
		_ = end.Close()
		return false
	default:
		l.ends[end] = true
		return true
	}
}

// passes waits until something may go through; false when nothing ever will.
func (l *Link) passes() bool {
	l.mu.Lock()
	delay := l.delay
	l.mu.Unlock()
	if delay > 0 {
		select {
		case <-l.closing:
			return false
		case <-time.After(delay):
		}
	}
	for {
		l.mu.Lock()
		open, cut := l.open, l.cut
		l.mu.Unlock()
		select {
		case <-l.closing:
			return false
		case <-open:
			if !cut {
				return true
			}
		}
	}
}

func (l *Link) connect(near net.Conn) {
	defer l.drop(near)
	if !l.passes() {
		return
	}
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		return // the near end sees a connection that ends, as behind any relay
	}
	if !l.keep(far) {
		return
	}
	defer l.drop(far)
	flow := l.flow()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.relay(far, near, flow)
	}()
	l.relay(near, far, flow)
	<-done
}

// relay copies until one side ends, and then ends both.
func (l *Link) relay(from, to net.Conn, flow *flow) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !l.passes() {
				break
			}
			passing, reset := flow.pass(n)
			if n = passing; reset {
				_, _ = to.Write(buffer[:n])
				abort(from, to)
				break
			}
			if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = errors.Join(from.Close(), to.Close()) // the end of one is the end of both
}

func (l *Link) drop(end net.Conn) {
	l.mu.Lock()
	delete(l.ends, end)
	l.mu.Unlock()
	_ = end.Close() // most often it is already
}
