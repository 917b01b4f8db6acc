package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

// drainCommand is `holdfast node drain`.
func (p *program) drainCommand() *cli.Command {
	return &cli.Command{
		Name: "drain", Usage: "move everything that runs on a node elsewhere, so that it can be taken away", ArgsUsage: "NODE",
		Description: "The node is cordoned first, and stays cordoned. Its workspaces are moved as by `holdfast move`, a few at a time; one that cannot be moved runs on where it is, is named with what would help, and is tried again. " +
			"Past the deadline it says who is still there and goes on; nothing is ever dropped. " +
			"It goes on without this command. `holdfast node show NODE` shows how far it is.",
		Flags: following(
			&cli.IntFlag{Name: "parallel", Value: workspace.DrainParallel, Usage: fmt.Sprintf("move `N` workspaces at once, at most %d", workspace.MaxDrainParallel)},
			&cli.DurationFlag{Name: "deadline", Value: workspace.DrainDeadline, Usage: "say that it is late after this `TIME`; 0 is never"},
			&cli.BoolFlag{Name: "stop-at-deadline", Usage: "stop, with a backup, what could not be moved by the deadline"},
			&cli.BoolFlag{Name: "disable", Usage: "end a drain; what is being moved is moved to its end, and the node stays cordoned"}),
		Action: p.drain,
	}
}

func (p *program) drain(c *cli.Context) error {
	name, err := nodeName(c)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	request := workspace.DrainRequest{Parallel: c.Int("parallel"), Deadline: c.Duration("deadline"), Stop: c.Bool("stop-at-deadline")}
	if request.Parallel == 0 {
		return usage("--parallel 0: want 1 to %d", workspace.MaxDrainParallel)
	}
	if err := request.Validate(); err != nil {
		return usage("--%w", err)
	}
	order := workspace.NodeOrder{Kind: workspace.OrderDrain, Drain: &request}
	if c.Bool("disable") {
		for _, other := range []string{"parallel", "deadline", "stop-at-deadline"} {
			if c.IsSet(other) {
				return usage("--disable and --%s exclude each other", other)
			}
		}
		order = workspace.NodeOrder{Kind: workspace.OrderUndrain}
	}
	return p.withControl(c, func(ctx context.Context, control control, s settings) error {
		order.Subject = s.Owner
		state, err := control.OrderNode(ctx, name, newRequestID(), order)
		switch {
		case err != nil:
			return err
		case order.Kind == workspace.OrderUndrain && !asJSON:
			p.say("the drain of node %s has ended; what is being moved is moved to its end. Nothing new is placed on it: `holdfast node uncordon %s` changes that", name, name)
			return nil
		case order.Kind == workspace.OrderUndrain, c.Bool(flagDetach) && asJSON:
			return printJSON(p.stdout, state)
		case c.Bool(flagDetach):
			p.say("node %s is cordoned, and being drained; `holdfast node show %s` shows how far it is", name, name)
			return nil
		}
		if timeout := c.Duration(flagTimeout); timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		if state, err = p.followDrain(ctx, control, name, state); err != nil {
			return err
		}
		if asJSON {
			if err := printJSON(p.stdout, state); err != nil {
				return err
			}
		}
		return p.drainEnded(name, state.Drain, asJSON)
	})
}

// followDrain watches a drain until the node is drained or the drain has ended. Following never changes anything.
func (p *program) followDrain(ctx context.Context, control control, name string, state workspace.NodeState) (workspace.NodeState, error) {
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	defer show.Close()
	pace := &backoff.ExponentialBackOff{InitialInterval: pollFirst, Multiplier: 1.5, MaxInterval: pollMost}
	pace.Reset()
	for {
		if drain := state.Drain; drain == nil || !drain.Active() || !drain.Drained.IsZero() {
			return state, nil
		}
		show.Update(drainStatus(name, state, p.now()))
		if err := p.wait(ctx, pace.NextBackOff()); err != nil {
			return state, leftDrain(ctx, name)
		}
		now, err := control.Node(ctx, name)
		switch {
		case ctx.Err() != nil:
			return state, leftDrain(ctx, name)
		case err != nil && !transient(err):
			return state, err
		case err != nil:
			show.Update(status{key: "away", text: name + ": " + asFailure(err).Error() + "; the drain goes on without us, still asking"})
		default:
			state = now
		}
	}
}

// drainStatus is one line about a drain, and who is in trouble.
func drainStatus(name string, state workspace.NodeState, now time.Time) status {
	drain := state.Drain
	line := status{text: name + " is " + drain.Words(now)}
	if state.Phase != workspace.NodeReady {
		line.text += fmt.Sprintf("; the node is %s, and waited for", state.Phase)
	}
	if drain.Unheard != "" {
		line.text += "; not everything could be seen: " + drain.Unheard
	}
	line.key = fmt.Sprint(drain.Moved, drain.Stopped, len(drain.On), state.Phase, drain.Late(now), drain.Unheard)
	var troubles []string
	for _, item := range drain.Waiting {
		if item.Mend != "" {
			troubles = append(troubles, item.Name+": "+item.Words())
			line.key += item.Name + item.Why
		}
	}
	line.detail = strings.Join(troubles, "\n")
	line.waits = len(drain.Moving) == 0
	return line
}

// leftDrain says that only the following ended.
func leftDrain(ctx context.Context, name string) error {
	what := "no longer followed"
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		what = "the time to wait is over"
	}
	return fail(exitTimedOut, "%s: the drain of node %s goes on", what, name).
		withSafe("nothing was interrupted or undone").
		withMend("`holdfast node show %s` shows how far it is; `holdfast node drain --disable %s` ends it", name, name)
}

// drainEnded says how a drain came out.
func (p *program) drainEnded(name string, drain *workspace.NodeDrain, quiet bool) error {
	switch {
	case drain == nil:
		return fail(exitFailed, "node %s knows of no drain any more", name).withMend("`holdfast node show %s` says what it is", name)
	case !drain.Active():
		return fail(exitFailed, "the drain of node %s has ended before it was done: %s; %d moved, %d gone and not running, %d were still there", name, drain.Why,
			drain.Moved, drain.Stopped, len(drain.On)).
			withSafe("nothing was dropped: what was not moved is where it was").
			withMend("`holdfast node show %s` names what was still there", name)
	}
	if !quiet {
		p.say("node %s is drained: %d moved, %d gone and not running; nothing is on it that anybody needs. It stays cordoned: take it away, or `holdfast node uncordon %s`",
			name, drain.Moved, drain.Stopped, name)
	}
	if drain.LeftCount == 0 {
		return nil
	}
	return fail(exitOwed, "done, but this stays on its disk:\n%s", leftLines(drain)).
		withSafe("no workspace needs it to go on").
		withMend("what is only there is gone with the node: copy it first if somebody may want it; docs/operations.md says where it is")
}

func leftLines(drain *workspace.NodeDrain) string {
	var lines []string
	for _, item := range drain.Left {
		line := item.Name + ": " + item.Why
		if item.Only {
			line += " (nowhere else, as far as is known)"
		}
		lines = append(lines, line)
	}
	if more := drain.LeftCount - len(drain.Left); more > 0 {
		lines = append(lines, fmt.Sprintf("and %s more", count(int64(more))))
	}
	return strings.Join(lines, "\n")
}

// renderDrain shows a drain among what is known of a node.
func renderDrain(w io.Writer, drain *workspace.NodeDrain, now time.Time) {
	if drain == nil {
		return
	}
	writeField(w, "drain", drain.Words(now))
	if !drain.Active() {
		writeField(w, "", fmt.Sprintf("begun by %s at %s, ended %s ago", drain.By, moment(drain.Began), age(drain.Ended, now)))
	} else {
		line := fmt.Sprintf("begun at %s, %d at once", moment(drain.Began), drain.Parallel)
		if !drain.Deadline.IsZero() {
			line += ", deadline " + moment(drain.Deadline)
			if drain.Stop {
				line += ": what runs there then is stopped"
			}
		}
		writeField(w, "", line)
	}
	if drain.Unheard != "" {
		writeField(w, "", "not everything could be seen: "+drain.Unheard)
	}
	first := func(field string, lines []string) {
		for i, line := range lines {
			if i > 0 {
				field = ""
			}
			writeField(w, field, line)
		}
	}
	var moving, waiting []string
	for _, item := range drain.Moving {
		moving = append(moving, item.Name+": "+item.Why)
	}
	for _, item := range drain.Waiting {
		waiting = append(waiting, item.Name+": "+item.Words())
	}
	if more := len(drain.On) - len(drain.Moving) - len(drain.Waiting); more > 0 {
		waiting = append(waiting, fmt.Sprintf("and %s more", count(int64(more))))
	}
	first("moving", moving)
	first("still there", waiting)
	if drain.LeftCount > 0 {
		first("left", strings.Split(leftLines(drain), "\n"))
	}
}
