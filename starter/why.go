package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

func (p *program) why(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
		state, err := control.State(ctx, name)
		if err != nil {
			return err
		}
		pending, err := control.Pending(ctx, name)
		if err != nil {
			return err
		}
		paused := tellPaused(ctx, control, &state)
		e := workspace.Explain(state, pending, p.now())
		if len(paused) > 0 && state.Instance != nil && paused[0].Token == state.Instance.Token && state.Operation == nil {
			e.Doing = "Nothing runs: it goes on by itself once its node may let it."
		}
		if state.Instance != nil {
			// For display only: a node that cannot be asked about keeps nobody from the rest.
			if node, err := control.Node(ctx, state.Instance.Node); err == nil {
				e.Drain = node.Drain.Of(name)
			}
		}
		if asJSON {
			return printJSON(p.stdout, e)
		}
		renderExplanation(p.stdout, e, p.now(), p.colours)
		return nil
	})
}

func renderExplanation(w io.Writer, e workspace.Explanation, now time.Time, colours bool) {
	writeField(w, e.Name, paint(string(e.Phase), colours)+" for "+age(e.Since, now))
	writeField(w, "reason", e.Reason)
	writeField(w, "now", e.Doing)
	if e.Attempt > 0 {
		writeField(w, "attempt", strconv.Itoa(int(e.Attempt)))
	}
	if e.Failure != nil {
		writeField(w, "last error", e.Failure.Words+" ("+string(e.Failure.Class)+")\n"+innermost(e.Failure.Error))
		writeField(w, "helps", strings.ReplaceAll(e.Failure.Mend, "NAME", e.Name))
	}
	if !e.NextRetry.IsZero() {
		writeField(w, "next try", "in "+ago(e.NextRetry.Sub(now))+", at "+moment(e.NextRetry))
	}
	writeField(w, "so far", e.Far)
	writeField(w, "drain", e.Drain)
	renderRecoveryPoint(w, e.RecoveryPoint, now)
	if e.StopAhead != nil {
		renderStopAhead(w, e.StopAhead.Policy, e.StopAhead, now)
	}
	renderHooks(w, e.Name, e.FailedHooks, now)
	for i, line := range e.Safe {
		name := "safe"
		if i > 0 {
			name = ""
		}
		writeField(w, name, line)
	}
	for i, action := range e.Can {
		name := "you can"
		if i > 0 {
			name = ""
		}
		// Not wrapped: a command that is broken over two lines cannot be copied.
		fmt.Fprintf(w, "%-*s%s\n", fieldWidth, name, action.Command)
		writeField(w, "", "  "+action.Does)
	}
}

// innermost is the end of a long chain of causes, which is where the cause of them all is; -o json has the whole.
func innermost(chain string) string {
	const most = 120
	causes := strings.Split(chain, ": ")
	end := causes[len(causes)-1]
	for i := len(causes) - 2; i >= 0 && len(causes[i])+2+len(end) <= most; i-- {
		end = causes[i] + ": " + end
	}
	if len(end) < len(chain) {
		return "… " + end
	}
	return end
}
