package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

// The exit codes, for scripts (DESIGN 11).
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitRefused  = 4 // quota, conflict: nothing was changed
	exitTimedOut = 5 // it goes on; only the waiting ended
	exitOwed     = 6 // done, but something is owed or was left out (named)
)

// failure is an error as a person gets it: what happened, what is safe, and what to do.
type failure struct {
	code int
	what error
	safe string
	mend string
}

func (f *failure) Error() string { return f.what.Error() }
func (f *failure) Unwrap() error { return f.what }

// fail builds a failure; the format may wrap a cause.
func fail(code int, format string, args ...any) *failure {
	return &failure{code: code, what: fmt.Errorf(format, args...)}
}

func (f *failure) withSafe(format string, args ...any) *failure {
	f.safe = fmt.Sprintf(format, args...)
	return f
}

func (f *failure) withMend(format string, args ...any) *failure {
	f.mend = fmt.Sprintf(format, args...)
	return f
}

// usage is a mistake on the command line: nothing was done.
func usage(format string, args ...any) *failure { return fail(exitUsage, format, args...) }

// exitStatus is the status of a command that was run inside a workspace: it becomes ours and is no error to print.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(s)) }

// asFailure turns every error into one that a person can act on.
func asFailure(err error) *failure {
	var known *failure
	if errors.As(err, &known) {
		return known
	}
	var invalid *workspace.InvalidError
	if errors.As(err, &invalid) {
		return usage("%w", err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(exitTimedOut, "%w", err)
	}
	return fail(exitFailed, "%w", err)
}

// exitCode prints what has to be said about err and returns the process's exit code.
func exitCode(err error, w io.Writer) int {
	if err == nil {
		return exitDone
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	f := asFailure(err)
	text := strings.TrimRight(f.what.Error(), "\n")
	fmt.Fprintln(w, wrapText("holdfast: "+text, 0))
	if f.safe != "" {
		fmt.Fprintln(w, wrapText("  safe: "+f.safe, 8))
	}
	if f.mend != "" {
		fmt.Fprintln(w, wrapText("  mend: "+f.mend, 8))
	}
	return f.code
}

// explainRemote turns what Temporal answers about a workspace into a failure.
func explainRemote(name string, err error) error {
	if err == nil {
		return nil
	}
	var known *failure
	if errors.As(err, &known) {
		return err
	}
	var notFound *serviceerror.NotFound
	if errors.As(err, &notFound) || errors.Is(err, workspace.ErrNotFound) {
		return fail(exitNotFound, "there is no workspace %q", name).
			withMend("`holdfast list` shows the workspaces there are; `holdfast start %s` makes one", name)
	}
	var application *temporal.ApplicationError
	if errors.As(err, &application) {
		message := errors.New(application.Message())
		switch workspace.ErrorType(application.Type()) {
		case workspace.ErrorInvalid:
			return &failure{code: exitUsage, what: message, safe: "nothing was changed"}
		case workspace.ErrorNotFound:
			return &failure{code: exitNotFound, what: message, safe: "nothing was changed",
				mend: "`holdfast list` shows the workspaces there are"}
		default:
			return &failure{code: exitRefused, what: message, safe: "nothing was changed",
				mend: fmt.Sprintf("`holdfast why %s` says what is going on", name)}
		}
	}
	var queryFailed *serviceerror.QueryFailed
	switch {
	case errors.As(err, &queryFailed):
		return fail(exitFailed, "asking workspace %q for its state: %w", name, err).
			withSafe("its content stays where it is").
			withMend("TMPRL1100 means that the control worker's program cannot go on with what another version of it began: run that version; for anything else see the control worker's log")
	case isNoWorker(err):
		return fail(exitTimedOut, "no control worker answered for workspace %q: %w", name, err).
			withSafe("the content is untouched; a request that was sent may still be taken when a control worker is back").
			withMend("start a control worker (`holdfast dev`, or `holdfast worker --control`), then see `holdfast why %s`", name)
	case isUnreachable(err):
		return unreachable(err)
	default:
		return fail(exitFailed, "workspace %q: %w", name, err)
	}
}

// isNoWorker reports whether the server answered but nobody took the work in time.
func isNoWorker(err error) bool {
	var deadline *serviceerror.DeadlineExceeded
	var updateTimeout *client.WorkflowUpdateServiceTimeoutOrCanceledError
	var notReady *serviceerror.WorkflowNotReady
	return errors.As(err, &deadline) || errors.As(err, &updateTimeout) || errors.As(err, &notReady) ||
		errors.Is(err, context.DeadlineExceeded)
}

func isUnreachable(err error) bool {
	var unavailable *serviceerror.Unavailable
	return errors.As(err, &unavailable)
}

// unreachable says that the Temporal server cannot be reached.
func unreachable(err error) *failure {
	return fail(exitFailed, "the Temporal server cannot be reached: %w", err).
		withSafe("workspaces keep running and their content stays; what was under way goes on when Temporal is back").
		withMend("start it (`holdfast dev` on one machine), or set TEMPORAL_ADDRESS to the right server; `holdfast doctor` says what is wrong")
}

// wrapText breaks text into lines of at most 80 columns; lines after the first are indented.
func wrapText(text string, indent int) string {
	var out strings.Builder
	for i, paragraph := range strings.Split(text, "\n") {
		if i > 0 {
			out.WriteString("\n")
		}
		column := 0
		lead := len(paragraph) - len(strings.TrimLeft(paragraph, " "))
		out.WriteString(strings.Repeat(" ", lead))
		column = lead
		for j, word := range strings.Fields(paragraph) {
			width := len([]rune(word))
			switch {
			case j == 0:
			case column+1+width > 80:
				out.WriteString("\n" + strings.Repeat(" ", indent))
				column = indent
			default:
				out.WriteString(" ")
				column++
			}
			out.WriteString(word)
			column += width
		}
	}
	return out.String()
}
