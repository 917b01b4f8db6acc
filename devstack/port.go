package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// PortError says that a port that was asked for cannot be had.
type PortError struct {
	Purpose string // what wanted it, such as "the Temporal server"
	Address string // host:port
	Err     error
}

// Error implements error. It says what to do.
func (e *PortError) Error() string {
	_, port, _ := net.SplitHostPort(e.Address)
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("port %s (%s), wanted for %s, is in use by another program: stop that program (perhaps another "+
			"`holdfast dev`, or a `temporal server start-dev`), or choose another port; 0 picks a free one", port, e.Address, e.Purpose)
	}
	return fmt.Sprintf("cannot listen on port %s (%s) for %s: %v", port, e.Address, e.Purpose, e.Err)
}

// Unwrap gives the cause, such as syscall.EADDRINUSE.
func (e *PortError) Unwrap() error { return e.Err }

// checkPort reports whether a server could listen there now.
func checkPort(purpose, host string, port int) error {
	address := net.JoinHostPort(host, strconv.Itoa(port))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return &PortError{Purpose: purpose, Address: address, Err: err}
	}
	return listener.Close()
}

// freePort finds a port that a server can be given, and can be given again after it was restarted.
//
// It takes none of those that the kernel hands out by itself: while the server is down, a client that dials such a port
// can be given the same number for its own end, is then connected to itself, and keeps the server from coming back.
func freePort(host string) (int, error) {
	const lowest = 10000
	below := ephemeralLow()
	if below <= lowest+1000 {
		below = 1 << 16 // an unusual configuration: no room below it
	}
	var err error
	for range 200 {
		port := lowest + rand.IntN(below-lowest)
		if err = checkPort("", host, port); err == nil {
			return port, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break // such as an address that this machine does not have
		}
	}
	return 0, fmt.Errorf("finding a free port on %s: %w", host, errors.Unwrap(err))
}

// ephemeralLow is the lowest port that the kernel hands out by itself.
func ephemeralLow() int {
	const usual = 32768
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return usual
	}
	low, err := strconv.Atoi(fields[0])
	if err != nil {
		return usual
	}
	return low
}
