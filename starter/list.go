package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

func (p *program) list(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if _, err := arguments(c); err != nil {
		return err
	}
	if err := checkState(c.String("state")); err != nil {
		return err
	}
	return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
		all, err := control.Workspaces(ctx)
		if err != nil {
			return err
		}
		var lines []listedWorkspace
		for _, line := range all {
			if owner := c.String(flagOwner); owner != "" && line.Owner != owner {
				continue
			}
			if state := c.String("state"); state != "" && !strings.EqualFold(line.Phase, state) {
				continue
			}
			lines = append(lines, line)
		}
		tellListPaused(ctx, control, lines)
		if asJSON {
			return printJSON(p.stdout, listOf(lines))
		}
		if len(lines) == 0 && len(all) > 0 {
			fmt.Fprintf(p.stdout, "None of the %d workspaces is like that. `holdfast list` shows all.\n", len(all))
			return nil
		}
		renderWorkspaces(p.stdout, lines, p.now(), p.colours)
		return nil
	})
}

// checkState refuses a state that no workspace can be in.
func checkState(state string) error {
	if state == "" {
		return nil
	}
	var names []string
	for _, phase := range workspace.Phases {
		if strings.EqualFold(string(phase), state) {
			return nil
		}
		names = append(names, string(phase))
	}
	return usage("--state %q: want one of %s", state, strings.Join(names, ", "))
}

func renderWorkspaces(w io.Writer, lines []listedWorkspace, now time.Time, colours bool) {
	if len(lines) == 0 {
		fmt.Fprintln(w, "There are no workspaces. `holdfast start NAME` makes one.")
		return
	}
	stale, behind := false, false
	rows := make([][]string, 0, len(lines))
	for _, line := range lines {
		backup, bound := age(line.LastSnapshot, now), "-"
		if point := line.RecoveryPoint; point != nil {
			if backup = "-"; point.Snapshot != "" && point.AgeSeconds >= 0 {
				backup = age(point.Time, now)
			}
			if bound = point.Promised(); point.Exceeded {
				bound, behind = bound+"!", true
			}
		}
		phase := paint(line.Phase, colours)
		if line.Stale {
			phase, stale = phase+"?", true
		}
		rows = append(rows, []string{line.Name, phase, age(line.Since, now), orDash(line.Node), backup, bound, orDash(line.Owner)})
	}
	renderTable(w, []column{
		{name: "name", flexible: true, least: 16}, {name: "state"}, {name: "since", right: true}, {name: "node", flexible: true, least: 8},
		{name: "backup", right: true}, {name: "rpo", right: true}, {name: "owner", flexible: true, least: 8},
	}, rows)
	if behind {
		fmt.Fprintln(w, "! its backup is older than promised: `holdfast why NAME` says why")
	}
	for _, line := range lines {
		if ahead := line.StopAhead; ahead != nil && ahead.Warned {
			fmt.Fprintln(w, wrapText(ahead.Short(line.Name, now), 2))
		}
	}
	for _, line := range lines {
		if line.Paused != "" {
			fmt.Fprintln(w, wrapText(line.Name+": "+line.Paused, 2))
		}
		if line.Loss != "" {
			fmt.Fprintln(w, wrapText(line.Name+": "+line.Loss, 2))
		}
	}
	if stale {
		fmt.Fprintln(w, "? the workspace itself did not answer; this is from Temporal's index, which lags")
	}
}
