package link

import (
	"net"
	"sync"
)

// Trouble is what happens to one connection.
type Trouble struct {
	// Reset ends the connection, for both ends as if the other had crashed, once After bytes have gone through, counted in
	// both directions together.
	Reset bool
	After int64
}

// Disturb decides for each connection that is made from now on what happens to it; connections are counted from 0. Nil: nothing
// happens any more.
func (l *Link) Disturb(trouble func(connection int) Trouble) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble, l.number = trouble, 0
}

// Connections is how many were made since Disturb.
func (l *Link) Connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.number
}

// flow is what has gone through a connection, and what is to happen to it.
type flow struct {
	Trouble
	mu     sync.Mutex
	passed int64
}

func (l *Link) flow() *flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &flow{}
	if l.trouble != nil {
		f.Trouble = l.trouble(l.number)
	}
	l.number++
	return f
}

// pass says how many of n bytes still go through, and whether the connection is reset after them.
func (f *flow) pass(n int) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := f.After - f.passed
	if f.passed += int64(n); !f.Reset || f.passed < f.After {
		return n, false
	}
	return int(max(left, 0)), true
}

// abort makes the ends' closing a reset.
func abort(ends ...net.Conn) {
	for _, end := range ends {
		if tcp, ok := end.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it is closed next, and that says what there is to say
		}
	}
}
