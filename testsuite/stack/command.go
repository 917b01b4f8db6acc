package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// Result is how a command ended.
type Result struct {
	Code   int
	Stdout string
	Stderr string
	Took   time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("exit code %d after %s\n%s%s", r.Code, r.Took.Round(time.Millisecond), r.Stdout, r.Stderr)
}

// Wants checks a command that ended: its code, and words for a person.
func (r Result) Wants(t *testing.T, code int, says ...string) Result {
	t.Helper()
	require.Equal(t, code, r.Code, "%s", r)
	text := strings.Join(strings.Fields(r.Stdout+" "+r.Stderr), " ")
	for _, word := range says {
		require.Contains(t, text, word, "%s", r)
	}
	require.NotContains(t, text, "goroutine ", "a panic is no answer")
	return r
}

// CLI runs the command against the stack, as a person in another terminal does.
func CLI(t *testing.T, s *Stack, args ...string) Result {
	t.Helper()
	var stdout bytes.Buffer
	r := CLITo(t, s, &stdout, args...)
	r.Stdout = stdout.String()
	return r
}

// CLITo is CLI with the standard output going elsewhere.
func CLITo(t *testing.T, s *Stack, stdout io.Writer, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	command := exec.CommandContext(ctx, Binary(t), args...)
	command.Dir = s.Dir
	// What a test does not ask for does not happen: no timer snapshots its workspaces unless it says so.
	command.Env = []string{"HOME=" + s.Dir, "PATH=" + os.Getenv("PATH"), "HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_OWNER=tester", "HOLDFAST_SNAPSHOT_EVERY=off"}
	var stderr bytes.Buffer
	command.Stdout, command.Stderr = stdout, &stderr
	began := time.Now()
	run := s.RunWith
	if run == nil {
		run = (*exec.Cmd).Run
	}
	err := run(command)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("holdfast %s: %v", strings.Join(args, " "), err)
	}
	if command.ProcessState.ExitCode() < 0 {
		t.Fatalf("holdfast %s did not end: %s", strings.Join(args, " "), stderr.String())
	}
	took := time.Since(began)
	if took > 10*time.Second {
		t.Logf("holdfast %s took %s", strings.Join(args, " "), took.Round(time.Second))
	}
	return Result{Code: command.ProcessState.ExitCode(), Stderr: stderr.String(), Took: took}
}

// Must runs a command that has to end with a code and to say some words on either output.
func Must(t *testing.T, s *Stack, code int, says []string, args ...string) Result {
	t.Helper()
	r := CLI(t, s, args...)
	if r.Code != code {
		t.Fatalf("holdfast %s: want exit code %d: %s", strings.Join(args, " "), code, r)
	}
	// Lines for people are wrapped where they happen to end.
	text := strings.Join(strings.Fields(r.Stdout+" "+r.Stderr), " ")
	for _, word := range says {
		if !strings.Contains(text, word) {
			t.Errorf("holdfast %s: %q is missing in %s", strings.Join(args, " "), word, r)
		}
	}
	return r
}

// Show is the workspace as `show -o json` gives it.
func Show(t *testing.T, s *Stack, name string) workspace.State {
	t.Helper()
	var state workspace.State
	r := Must(t, s, 0, nil, "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state), r.Stdout)
	return state
}

// untilNextLook is how long the next look at a condition waits after one that began at a time. A look is a process of the
// command, most often: tests that look all the time would leave the processors to nobody else.
func untilNextLook(began time.Time) time.Duration {
	return min(max(4*time.Since(began), 50*time.Millisecond), time.Second)
}

// WaitFor waits until a condition holds; it says what is missing when it never does.
func WaitFor(t *testing.T, what string, atMost time.Duration, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(atMost)
	for {
		began := time.Now()
		if condition() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not after %s: %s", atMost, what)
		}
		time.Sleep(untilNextLook(began))
	}
}

// WaitState waits until the workspace's state satisfies a condition.
func WaitState(t *testing.T, s *Stack, name, what string, atMost time.Duration, condition func(workspace.State) bool) workspace.State {
	t.Helper()
	var state workspace.State
	deadline := time.Now().Add(atMost)
	for {
		began := time.Now()
		if r := CLI(t, s, "show", name, "-o", "json"); r.Code == 0 {
			state = workspace.State{}
			require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state))
			if condition(state) {
				return state
			}
		}
		if time.Now().After(deadline) {
			text, _ := json.MarshalIndent(state, "", " ")
			t.Fatalf("%s still not after %s: %s: %s", name, atMost, what, text)
		}
		time.Sleep(untilNextLook(began))
	}
}

// WaitSays waits until a command says some words.
func WaitSays(t *testing.T, s *Stack, says []string, args ...string) Result {
	t.Helper()
	var r Result
	WaitFor(t, fmt.Sprintf("%v says %q", args, says), Patience, func() bool {
		r = CLI(t, s, args...)
		text := strings.Join(strings.Fields(r.Stdout+" "+r.Stderr), " ")
		return r.Code == 0 && !slices.ContainsFunc(says, func(word string) bool { return !strings.Contains(text, word) })
	})
	return r
}

// Detached begins an operation and returns its id.
func Detached(t *testing.T, s *Stack, args ...string) string {
	t.Helper()
	var accepted workspace.Accepted
	r := Must(t, s, 0, nil, append(args, "--detach", "-o", "json")...)
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &accepted), r.Stdout)
	require.NotEmpty(t, accepted.OperationID)
	return accepted.OperationID
}

// Ended is the operation, once it has.
func Ended(state workspace.State, operation string) (workspace.Operation, bool) {
	for _, one := range state.Recent {
		if one.ID == operation {
			return one, true
		}
	}
	return workspace.Operation{}, false
}
