package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// The files in a guard's directory.
const (
	lockFile   = "lock"      // held by the guard for its life; who holds it is in it
	socketFile = "socket"    // mode 0600
	recordFile = "list.json" // Record
	logFile    = "log"
)

// protocol is raised when a guard and an agent, or two guards, would misunderstand each other.
const protocol = 1

// The requests: one JSON object in a line each, and one in answer.
const (
	opHello    = "hello" // with Version, PauseAfter
	opPing     = "ping"
	opBeat     = "beat" // with Beat, PauseAfter
	opHold     = "hold" // with Instance
	opRelease  = "release"
	opList     = "list"     // answered with Record
	opHandover = "handover" // another guard asks for all that this one knows; nothing is changed from then on
	opGo       = "go"       // it holds everything: this one ends
	opStop     = "stop"     // end, when nothing is held; with Force in any case
)

type request struct {
	Op         string        `json:"op"`
	Protocol   int           `json:"protocol"`
	Version    string        `json:"version,omitempty"`
	Instance   Instance      `json:"instance,omitzero"`
	Beat       Moment        `json:"beat,omitzero"`
	PauseAfter time.Duration `json:"pause_after,omitempty"`
	Force      bool          `json:"force,omitempty"`
}

type answer struct {
	Error    string  `json:"error,omitempty"`
	Holds    bool    `json:"holds,omitempty"`   // ErrHolds
	Leaving  bool    `json:"leaving,omitempty"` // ErrLeaving
	Protocol int     `json:"protocol"`
	Version  string  `json:"version"`
	Record   *Record `json:"record,omitempty"`
	// Due says that everything is to stand, Failing that something does not, although it was tried.
	Due     bool `json:"due,omitempty"`
	Failing bool `json:"failing,omitempty"`
}

func (a answer) err() error {
	switch {
	case a.Holds:
		return ErrHolds
	case a.Leaving:
		return ErrLeaving
	case a.Error != "":
		return errors.New(a.Error)
	}
	return nil
}

// link is a connection to a guard.
type link struct {
	conn    *net.UnixConn
	decoder *json.Decoder
}

// viaDescriptor calls with a path to a file in dir that is short: a socket's path is limited to 107 bytes.
func viaDescriptor(dir, file string, call func(path string) error) error {
	opened, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening the guard's directory: %w", err)
	}
	defer opened.Close()
	return call(filepath.Join("/proc/self/fd", strconv.Itoa(int(opened.Fd())), file))
}

func dial(dir string) (*link, error) {
	var l *link
	err := viaDescriptor(dir, socketFile, func(path string) error {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			return fmt.Errorf("reaching the guard: %w", err)
		}
		l = &link{conn: conn, decoder: json.NewDecoder(conn)}
		return nil
	})
	return l, err
}

func (l *link) close() { l.conn.Close() }

// ask asks and waits for the answer until the context ends, or a time has passed; after an error the link is of no use.
func (l *link) ask(ctx context.Context, within time.Duration, r request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Now()) })()
	r.Protocol = protocol
	if err := json.NewEncoder(l.conn).Encode(r); err != nil {
		return answer{}, fmt.Errorf("telling the guard (%s): %w", r.Op, errors.Join(err, ctx.Err()))
	}
	var a answer
	if err := l.decoder.Decode(&a); err != nil {
		return answer{}, fmt.Errorf("hearing the guard (%s): %w", r.Op, errors.Join(err, ctx.Err()))
	}
	return a, nil
}
