package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

// lossReport is what `holdfast node report -o json` prints.
type lossReport struct {
	Node     string               `json:"node"`
	State    workspace.NodePhase  `json:"state"`
	LostAt   time.Time            `json:"lost_at,omitzero"`     // when its last loss was decided
	Returned time.Time            `json:"returned_at,omitzero"` // when it last took its lease again after a loss
	Affected []workspace.Affected `json:"workspaces"`
	// Silent are the workspaces that did not answer: they may be affected, too.
	Silent []string `json:"silent,omitempty"`
}

func (p *program) reportCommand() *cli.Command {
	return &cli.Command{Name: "report", Usage: "name every workspace that a node's loss touched, and what each has lost", ArgsUsage: "NODE",
		Description: "What was lost is bounded by the time from the newest verified snapshot until the loss was decided. While a workspace waits, it is what going on without the node would lose. " +
			"A workspace that stayed, because its node came back in time, has lost nothing and is not named. What one has lost that went on elsewhere is known until it is stopped or started again; it is named for as long as the node has something of it that is not saved.",
		Flags: []cli.Flag{outputFlag()}, Action: p.reportNode}
}

func (p *program) reportNode(c *cli.Context) error {
	name, err := nodeName(c)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
		state, err := control.Node(ctx, name)
		if err != nil {
			return err
		}
		all, err := control.Workspaces(ctx)
		if err != nil {
			return err
		}
		report := reportOf(name, state, all)
		if asJSON {
			return printJSON(p.stdout, report)
		}
		renderReport(p.stdout, report, p.now(), p.colours)
		return nil
	})
}

func reportOf(name string, state workspace.NodeState, all []listedWorkspace) lossReport {
	report := lossReport{Node: name, State: state.Phase, LostAt: state.LostAt, Returned: state.ReturnedAt, Affected: []workspace.Affected{}}
	for _, line := range all {
		if line.Stale {
			report.Silent = append(report.Silent, line.Name)
		} else if affected := workspace.AffectedBy(line.State, name); affected != nil {
			report.Affected = append(report.Affected, *affected)
		}
	}
	return report
}

func renderReport(w io.Writer, report lossReport, now time.Time, colours bool) {
	switch {
	case report.LostAt.IsZero():
		fmt.Fprintf(w, "Node %s was never lost.\n", report.Node)
	case report.Returned.After(report.LostAt):
		fmt.Fprintf(w, "Node %s was lost at %s, and is back since %s.\n", report.Node, moment(report.LostAt), moment(report.Returned))
	default:
		fmt.Fprintf(w, "Node %s is lost since %s (%s ago).\n", report.Node, moment(report.LostAt), age(report.LostAt, now))
	}
	switch {
	case len(report.Affected) > 0:
		renderAffected(w, report.Affected, colours)
	case len(report.Silent) == 0 && !report.LostAt.IsZero():
		fmt.Fprintln(w, wrapText("No workspace is known to be touched by that, and none that could be asked still has something there. One that was stopped or started again since has forgotten what it cost.", 2))
	}
	for _, silent := range report.Silent {
		fmt.Fprintln(w, wrapText(silent+" did not answer: it may be touched, too", 2))
	}
}

func renderAffected(w io.Writer, all []workspace.Affected, colours bool) {
	rows := make([][]string, 0, len(all))
	settled, nothing, unknown, saving, saved := 0, 0, 0, 0, 0
	var most time.Duration
	for _, one := range all {
		rows = append(rows, []string{one.Name, paint(string(one.State), colours), orDash(one.Node), lostWork(one), orDash(workspace.Short(one.Recovered)), orDash(one.Owner)})
		if one.Saving {
			saving++
		}
		if one.Recovered != "" {
			saved++
		}
		if !one.Settled {
			continue
		}
		settled++
		if one.LostWorkSeconds == nil {
			unknown++
		} else if work := time.Duration(*one.LostWorkSeconds * float64(time.Second)); work > 0 {
			most = max(most, work)
		} else {
			nothing++
		}
	}
	fmt.Fprintln(w)
	renderTable(w, []column{
		{name: "workspace", flexible: true, least: 16}, {name: "state"}, {name: "node", flexible: true, least: 8},
		{name: "lost"}, {name: "saved as"}, {name: "owner", flexible: true, least: 8},
	}, rows)
	fmt.Fprintln(w)
	for _, one := range all {
		if !one.Settled {
			fmt.Fprintln(w, wrapText(one.Name+": "+one.What, 2))
		}
	}
	summary := fmt.Sprintf("%s: %d went on without it", plural(len(all), "workspace"), settled)
	if nothing > 0 {
		summary += fmt.Sprintf(", %d of them lost nothing", nothing)
	}
	if unknown > 0 {
		summary += fmt.Sprintf(", %d of them stopped or started again since", unknown)
	}
	if most > 0 {
		summary += "; none is known to have lost more than the last " + workspace.WorkSpan(most) + " of work"
	}
	if waiting := len(all) - settled; waiting > 0 {
		summary += fmt.Sprintf("; %d did not yet", waiting)
	}
	fmt.Fprintln(w, wrapText(summary+".", 2))
	if saved > 0 {
		fmt.Fprintln(w, wrapText("Saved is all that the node still had when it was back: `holdfast download NAME --snapshot SNAPSHOT`, or `holdfast restore NAME --snapshot SNAPSHOT`.", 2))
	}
	if saving > 0 {
		fmt.Fprintln(w, wrapText(fmt.Sprintf("What only the node has of %s is offered as a snapshot once it is back: `holdfast snapshots NAME`.", plural(saving, "workspace")), 2))
	}
}

// lostWork says what one workspace has lost, or would lose.
func lostWork(one workspace.Affected) string {
	switch {
	case one.LostWorkSeconds == nil && one.Settled:
		return "not known any more"
	case one.LostWorkSeconds == nil:
		return "waits for it"
	case *one.LostWorkSeconds <= 0:
		return "nothing"
	}
	span := workspace.WorkSpan(time.Duration(*one.LostWorkSeconds * float64(time.Second)))
	if one.Settled {
		return "at most " + span
	}
	return "would lose " + span
}
