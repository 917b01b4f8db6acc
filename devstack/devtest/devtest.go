// Package devtest gives tests a Temporal server of their own.
package devtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"

	"holdfast/devstack"
)

// Required reports whether HOLDFAST_REQUIRE, a comma-separated list of tools, names this one: then a test that needs it
// fails where it would otherwise be skipped.
func Required(tool string) bool {
	return slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), tool)
}

// Missing ends a test that cannot run for want of a tool: it fails when HOLDFAST_REQUIRE names the tool, else it is
// skipped and says why.
func Missing(t testing.TB, tool string, why error) {
	t.Helper()
	if Required(tool) {
		t.Fatalf("%s is required (HOLDFAST_REQUIRE) and cannot be had: %v", tool, why)
	}
	t.Skipf("%s cannot be had here: %v", tool, why)
}

// binary is what Binary has found: to look at a program again costs as much as a short test.
var binary struct {
	mu   sync.Mutex
	path string
}

// Binary returns the path of the dev server's program, or ends the test as Missing says. On a machine that has none it is
// built, which takes minutes once; other test processes wait for that one build.
func Binary(t testing.TB) string {
	t.Helper()
	binary.mu.Lock()
	defer binary.mu.Unlock()
	if binary.path != "" {
		return binary.path
	}
	path, err := devstack.FindTemporal(t.Context(), devstack.FindOptions{
		// Not t.Log: it shows nothing before the test has ended, and the first build takes minutes.
		Progress: func(line string) { fmt.Fprintln(os.Stderr, "devtest:", line) },
	})
	if err != nil {
		Missing(t, "temporal", err)
	}
	binary.path = path
	return path
}

// Server is a running dev server that ends with its test.
type Server struct {
	*devstack.Temporal
	t testing.TB
}

// Temporal starts a dev server for this test and its subtests: headless, on free ports, with a database in a temporary
// directory, Holdfast's search attributes and the measured settings. It takes less than a second, and is removed with
// everything in it when the test ends. Where there is no server and none can be built the test ends as Missing says.
//
// TEMPORAL_ADDRESS is ignored: a test can never touch a real cluster.
func Temporal(t testing.TB) *Server {
	t.Helper()
	return Start(t, devstack.TemporalOptions{})
}

// Start is Temporal with options: those that are empty are set as Temporal sets them.
func Start(t testing.TB, options devstack.TemporalOptions) *Server {
	t.Helper()
	if options.Binary == "" {
		options.Binary = Binary(t)
	}
	if options.UIPort == 0 {
		options.Headless = true
	}
	options.Fast = true
	// The time that the build took is not the test's to spend on the start, and t.Context ends before Cleanup.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	server, err := devstack.StartTemporal(ctx, options)
	if err != nil {
		t.Fatalf("starting the Temporal dev server: %v", err)
	}
	t.Cleanup(func() {
		err := server.Err() // it died by itself: whatever the test says, this is why
		if closeErr := server.Close(context.Background()); closeErr != nil {
			t.Errorf("ending the Temporal dev server: %v", closeErr)
		}
		if err != nil {
			t.Errorf("the Temporal dev server died during the test: %v", err)
		}
	})
	return &Server{Temporal: server, t: t}
}

// Options are what a client of the server needs.
func (s *Server) Options() client.Options {
	return client.Options{HostPort: s.Address(), Namespace: s.Namespace(), Logger: testLogger{s.t}}
}

// Client returns a connected client that is closed when the test ends.
func (s *Server) Client() client.Client {
	s.t.Helper()
	c, err := client.DialContext(s.t.Context(), s.Options())
	if err != nil {
		s.t.Fatalf("connecting to the Temporal dev server: %v", err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// testLogger writes the SDK's warnings and errors where they are seen together with the failure that they belong to. It
// does not use t.Log: the SDK's goroutines may still log when the test has ended, which would be a panic.
type testLogger struct{ t testing.TB }

var _ sdklog.Logger = testLogger{}

func (l testLogger) line(level, message string, keyvals []any) {
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "%s: %s: %s %v\n", l.t.Name(), level, message, keyvals)
	}
}

func (l testLogger) Debug(string, ...any)                 {}
func (l testLogger) Info(string, ...any)                  {}
func (l testLogger) Warn(message string, keyvals ...any)  { l.line("warn", message, keyvals) }
func (l testLogger) Error(message string, keyvals ...any) { l.line("error", message, keyvals) }
