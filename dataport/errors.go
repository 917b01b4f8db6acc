package dataport

import (
	"context"
	"errors"
	"net/http"

	"holdfast/engine"
)

// What a client can tell apart with errors.Is, and what a Host returns (wrapped) so that its client can.
var (
	ErrUnauthorized = errors.New("the data port refused the token")
	ErrExpired      = errors.New("the token has expired: ask for a new one")
	ErrReplayed     = errors.New("the token has been used already: ask for a new one")
	ErrForbidden    = errors.New("the token does not permit this")
	ErrNotHere      = errors.New("this workspace, instance or snapshot is not on this node")
	ErrNotRunning   = errors.New("the instance is not running")
	ErrPaused       = errors.New("the instance is paused by its node")
	ErrConflict     = errors.New("another operation is under way on this workspace")
	ErrInvalid      = errors.New("invalid request")
	ErrBusy         = errors.New("the node serves as many streams as it may: try again")
	ErrUnavailable  = errors.New("the node cannot do this now: try again")
	ErrShuttingDown = errors.New("the node's agent is shutting down")
	ErrInternal     = errors.New("the node failed to do this")

	// ErrCut means that the connection ended before the stream said that it was complete: what was received is not
	// all, what was sent was not put in place (unless the server had just finished and its answer was lost).
	ErrCut = errors.New("the stream was cut before its end")

	// ErrUnreachable means that no data port answered at the address; nothing was done.
	ErrUnreachable = errors.New("the node's data port cannot be reached")

	// ErrWrongFingerprint means that another certificate than the announced one answered at the address.
	ErrWrongFingerprint = errors.New("the server's certificate is not the one that the node announced")
)

// code is how a sentinel is spelled on the wire.
type code struct {
	name     string
	sentinel error
	status   int
}

// codes lists the wire codes; the first whose sentinel an error wraps names it.
func codes() []code {
	return []code{
		{"expired", ErrExpired, http.StatusUnauthorized},
		{"replayed", ErrReplayed, http.StatusUnauthorized},
		{"unauthorized", ErrUnauthorized, http.StatusUnauthorized},
		{"forbidden", ErrForbidden, http.StatusForbidden},
		{"cut", ErrCut, http.StatusBadRequest},
		{"not_here", ErrNotHere, http.StatusNotFound},
		{"not_running", ErrNotRunning, http.StatusConflict},
		{"paused", ErrPaused, http.StatusConflict},
		{"conflict", ErrConflict, http.StatusConflict},
		{"invalid", ErrInvalid, http.StatusBadRequest},
		{"busy", ErrBusy, http.StatusServiceUnavailable},
		{"shutting_down", ErrShuttingDown, http.StatusServiceUnavailable},
		{"unavailable", ErrUnavailable, http.StatusServiceUnavailable},
		{"internal", ErrInternal, http.StatusInternalServerError},
		// An engine's own words, when the host passed them on as they were.
		{"not_here", engine.ErrNotFound, http.StatusNotFound},
		{"not_running", engine.ErrNotRunning, http.StatusConflict},
		{"paused", engine.ErrPaused, http.StatusConflict},
		{"conflict", engine.ErrConflict, http.StatusConflict},
		{"invalid", engine.ErrInvalid, http.StatusBadRequest},
		{"unavailable", engine.ErrUnavailable, http.StatusServiceUnavailable},
		{"unavailable", context.Canceled, http.StatusServiceUnavailable},
		{"unavailable", context.DeadlineExceeded, http.StatusServiceUnavailable},
	}
}

func codeOf(err error) code {
	for _, c := range codes() {
		if errors.Is(err, c.sentinel) {
			return c
		}
	}
	return code{"internal", ErrInternal, http.StatusInternalServerError}
}

// RemoteError is an error that the server sent. errors.Is finds the sentinel of its code; an unknown code (from a newer
// server) is ErrInternal.
type RemoteError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *RemoteError) Error() string { return "node: " + e.Message }

// Unwrap returns the sentinel of the code.
func (e *RemoteError) Unwrap() error {
	for _, c := range codes() {
		if c.name == e.Code {
			return c.sentinel
		}
	}
	return ErrInternal
}
