package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
	"holdfast/workspace"
)

func (p *program) showCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "list", Usage: "list the workspaces", Flags: []cli.Flag{
			outputFlag(),
			&cli.StringFlag{Name: flagOwner, Usage: "only those of this `NAME`"},
			&cli.StringFlag{Name: "state", Usage: "only those in this `STATE`, such as Running"},
		}, Action: p.list},
		{Name: "show", Usage: "show everything known about a workspace", ArgsUsage: "NAME", Flags: []cli.Flag{outputFlag()}, Action: p.show},
		{Name: "why", Usage: "say what is being done about a workspace, what is safe, and what you can do", ArgsUsage: "NAME",
			Flags: []cli.Flag{outputFlag()}, Action: p.why},
		{Name: "snapshots", Usage: "list a workspace's snapshots", ArgsUsage: "NAME", Flags: []cli.Flag{
			outputFlag(),
			&cli.BoolFlag{Name: "full", Usage: "print whole ids, one a line with its time, oldest first"},
		}, Action: p.snapshots},
		p.nodeCommands(),
	}
}

func (p *program) show(c *cli.Context) error {
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
		paused := tellPaused(ctx, control, &state)
		if asJSON {
			return printJSON(p.stdout, shownState{State: state, Paused: paused, RecoveryPoint: workspace.RecoveryPointOf(state, p.now()), StopAhead: workspace.StopAheadOf(state, p.now())})
		}
		renderState(p.stdout, state, p.now(), p.colours)
		return nil
	})
}

// shownState is what `holdfast show -o json` prints: the state, and what follows from it at this moment.
type shownState struct {
	workspace.State
	RecoveryPoint *workspace.RecoveryPoint `json:"recovery_point,omitempty"`
	StopAhead     *workspace.StopAhead     `json:"stop_ahead,omitempty"`
	// Paused is what its nodes have paused of it.
	Paused []workspace.PausedInstance `json:"paused,omitempty"`
}

// renderState writes what is known as "field  value" lines.
func renderState(w io.Writer, state workspace.State, now time.Time, colours bool) {
	plain := func(name, format string, args ...any) { writeField(w, name, fmt.Sprintf(format, args...)) }
	plain("name", "%s", state.Name)
	plain("id", "%s", state.ID)
	plain("owner", "%s", state.Owner)
	plain("created", "%s (%s ago)", moment(state.Created), age(state.Created, now))
	plain("state", "%s for %s", paint(string(state.Phase), colours), age(state.Since, now))
	plain("reason", "%s", state.Reason)
	plain("image", "%s", imageOf(state))
	if text := volumeOf(state); text != "" {
		plain("volume", "%s", text)
	}
	plain("environment", "%s", strings.Join(state.Spec.Environment, ", "))
	if state.Source.Kind != workspace.SourceEmpty {
		plain("began as", "%s of %s", state.Source.Kind, state.Source.Describe)
	}
	if instance := state.Instance; instance != nil {
		plain("instance", "%d on node %s for %s", instance.Token, instance.Node, age(instance.Began, now))
		plain("container", "%s", instance.Container)
		for _, note := range instance.Notes {
			plain("note", "%s", note)
		}
	}
	if len(state.Stores) > 0 {
		plain("written to", "%s only; more with the next start once the roll-out has come to it", strings.Join(state.Stores, ", "))
	}
	if kept := state.Kept; kept != nil {
		where := "node " + kept.Node
		if kept.Volume != "" {
			where = "the shared volume, last of node " + kept.Node
		}
		plain("kept", "instance %d on %s: %s", kept.Token, where, kept.Why)
		plain("owed to", "%s", strings.Join(kept.Owed, ", "))
	}
	if loss := state.Loss; loss != nil {
		plain("lost", "%s, since %s (%s ago), last heard of at %s", loss.What(), moment(loss.At), age(loss.At, now), moment(loss.Heard))
		plain("", "%s", loss.Waiting)
	}
	if recovery := state.Recovery; recovery != nil {
		plain("recovered", "%s", recovery.Words())
	}
	for i := range state.Left {
		left := &state.Left[i]
		plain("left", "%s", left.Stays(now))
	}
	for i := range state.Salvaged {
		saved := &state.Salvaged[i]
		plain("saved", "%s", saved.Kept())
	}
	if head := state.Head; head != nil {
		plain("snapshot", "%s", head.Snapshot)
		if !head.Time.IsZero() {
			plain("", "%s, %s (%s ago), %s files, %s", head.Kind, moment(head.Time), age(head.Time, now), count(head.Files), size(head.Bytes))
		}
		if head.Omitted > 0 {
			plain("", "lacks %s things%s", count(head.Omitted), omissionLines(head.Omissions, head.Omitted))
		}
		if excluded := head.Excluded; excluded != nil {
			if excluded.Count > 0 {
				plain("", "%s", excludedWords(byRules, excluded.Count, excluded.Paths))
			}
			for _, problem := range excluded.Problems {
				plain("", "%s", problem)
			}
		}
	}
	renderRecoveryPoint(w, workspace.RecoveryPointOf(state, now), now)
	renderRetention(w, state, now)
	renderStopAhead(w, orDefault(state.Spec.Stop.Words(), "only when a person stops it (--idle-stop, --lifetime and --hours are off)"), workspace.StopAheadOf(state, now), now)
	for i, hook := range state.Spec.Hooks {
		name := "hooks"
		if i > 0 {
			name = ""
		}
		plain(name, "%s, at most %s, on error %s: %s", hook.When, hook.Timeout(), orDefault(hook.OnError, workspace.HookContinue), hook.Command)
	}
	renderHooks(w, state.Name, state.Hooks, now)
	if operation := state.Operation; operation != nil {
		plain("doing", "%s: %s, since %s", operation.Kind, operation.Step, moment(operation.Began))
	}
	for _, operation := range state.Waiting {
		plain("waiting", "%s, since %s", operation.Kind, moment(operation.Began))
	}
	if state.Block != nil {
		plain("blocked", "%s%s", state.Block.Message, omissionLines(state.Block.Omissions, state.Block.Omitted))
		plain("mend", "%s", state.Block.Mend)
	}
	for _, operation := range state.Recent {
		result := "done"
		switch {
		case operation.Refused:
			result = "refused: " + operation.Error
		case operation.Failed:
			result = "failed: " + innermost(operation.Error)
			if failure := operation.Failure(); failure != nil {
				result = "failed: " + failure.Words + "\n" + innermost(operation.Error)
			}
		case len(operation.Owed) > 0:
			result = "done, owed to " + strings.Join(operation.Owed, ", ")
		}
		kind := string(operation.Kind)
		if operation.Cause != "" {
			kind += " because " + operation.Cause + ","
		}
		plain("recent", "%s at %s, took %s: %s", kind, moment(operation.Began), ago(operation.Ended.Sub(operation.Began)), result)
	}
}

// renderRecoveryPoint says what a lost node costs (A7).
func renderRecoveryPoint(w io.Writer, point *workspace.RecoveryPoint, now time.Time) {
	if point == nil {
		return
	}
	writeField(w, "rpo", point.Bound())
	writeField(w, "", point.Held())
	if next := point.Next(now); next != "" {
		writeField(w, "", "next snapshot: "+next)
	}
	if failed := point.Failed(now); failed != "" {
		writeField(w, "", "last snapshot: "+failed+"\n"+innermost(point.LastFailure.Error))
	}
}

// renderRetention says which timed snapshots are kept, and what came of forgetting the others.
func renderRetention(w io.Writer, state workspace.State, now time.Time) {
	switch kept := state.Spec.Retention; {
	case kept.Off:
		writeField(w, "retention", "none: no snapshot is ever forgotten")
	case state.Spec.Snapshots.Every() > 0 || state.Retaining != nil:
		writeField(w, "retention", kept.String())
	default:
		return
	}
	writeField(w, "", state.Retaining.Done(now))
	if failed := state.Retaining.Failed(now); failed != "" {
		writeField(w, "", failed+"\n"+innermost(state.Retaining.LastFailure.Error))
	}
}

// renderStopAhead says when it is stopped by itself, and what is known of its use.
func renderStopAhead(w io.Writer, policy string, ahead *workspace.StopAhead, now time.Time) {
	writeField(w, "stops", policy)
	if ahead == nil {
		return
	}
	writeField(w, "", ahead.Words(now))
	writeField(w, "last used", ahead.Seen(now))
	if ahead.Unknown != "" {
		writeField(w, "", "since then its node has not said whether it is used, so it is not stopped for that: "+innermost(ahead.Unknown))
	}
	writeField(w, "", ahead.Problem())
	writeField(w, "put off", ahead.Kept(now))
}

// renderHooks says how hooks ended the last time.
func renderHooks(w io.Writer, workspaceName string, results []workspace.HookResult, now time.Time) {
	failed := false
	for i, result := range results {
		name := "last hooks"
		if i > 0 {
			name = ""
		}
		writeField(w, name, fmt.Sprintf("%s, %s ago", result.Words(), age(result.Time, now)))
		failed = failed || result.Failed()
	}
	if failed {
		writeField(w, "", "`holdfast logs "+workspaceName+" --hooks` shows what they printed, while the node has it")
	}
}

func orDefault(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}

// fieldWidth is where values begin.
const fieldWidth = 13

// writeField writes one name and its value, wrapped below where the value begins.
func writeField(w io.Writer, name, value string) { writeAt(w, fieldWidth, name, value) }

func writeAt(w io.Writer, width int, name, value string) {
	if value == "" {
		return
	}
	for i, line := range strings.Split(value, "\n") {
		if i > 0 {
			name = ""
		}
		indent := width + len(line) - len(strings.TrimLeft(line, " "))
		// A name may be followed by one space only; what comes after it begins in its column all the same.
		wrapped := wrapText(strings.Repeat("x", max(indent, len(name)+1)-1)+" "+line, indent)
		lead := fmt.Sprintf("%-*s", max(indent, len(name)+1), name)
		fmt.Fprintln(w, strings.TrimRight(lead+wrapped[len(lead):], " "))
	}
}

func imageOf(state workspace.State) string {
	switch {
	case state.Instance != nil && state.Instance.Image != "":
		return state.Instance.Image
	case state.Spec.Image != "":
		return state.Spec.Image
	default:
		return "the engine's default"
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05") + " UTC"
}

func (p *program) snapshots(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
		result, err := control.Snapshots(ctx, workspace.SnapshotsInput{Name: name})
		if err != nil {
			return err
		}
		for _, note := range result.Notes {
			fmt.Fprintln(p.stderr, wrapText("note: "+note, 6))
		}
		if len(result.Snapshots) == 0 && len(result.Notes) > 0 {
			return fail(exitFailed, "which snapshots %s has cannot be said now: no store answered", name).
				withSafe("what is stored stays as it is").withMend("`holdfast doctor` asks each store; `holdfast show %s` names the newest snapshot", name)
		}
		switch {
		case asJSON:
			result.Snapshots = listOf(result.Snapshots)
			return printJSON(p.stdout, result)
		case c.Bool("full"):
			for _, line := range result.Snapshots {
				fmt.Fprintln(p.stdout, line.Snapshot, moment(line.Time), line.Kind)
			}
			return nil
		}
		if len(result.Snapshots) == 0 {
			p.say("There are no snapshots of %s yet; a backup or a stop makes one.", name)
			return nil
		}
		renderSnapshots(p.stdout, result.Snapshots, p.now())
		return nil
	})
}

func renderSnapshots(w io.Writer, lines []workspace.SnapshotLine, now time.Time) {
	rows := make([][]string, 0, len(lines))
	excludes := slices.ContainsFunc(lines, func(line workspace.SnapshotLine) bool { return line.Excluded > 0 })
	for _, line := range lines {
		id := workspace.Short(line.Snapshot)
		if line.Head {
			id += " *"
		}
		lacks := "-"
		if line.Omitted > 0 {
			lacks = count(line.Omitted)
		}
		row := []string{id, line.Time.UTC().Format("2006-01-02 15:04"), age(line.Time, now), orDash(line.Kind),
			count(line.Files), size(line.Bytes), lacks, strconv.Itoa(len(line.Providers))}
		if excludes {
			row = append(row, count(line.Excluded))
		}
		rows = append(rows, row)
	}
	columns := []column{
		{name: "snapshot"}, {name: "time (UTC)"}, {name: "age", right: true}, {name: "kind"},
		{name: "files", right: true}, {name: "size", right: true}, {name: "lacks", right: true}, {name: "on", right: true},
	}
	if excludes {
		columns = append(columns, column{name: "excl", right: true})
	}
	renderTable(w, columns, rows)
	fmt.Fprintln(w, "* the newest version; \"on\" is on how many stores it is; --full prints whole ids")
	if slices.ContainsFunc(lines, func(line workspace.SnapshotLine) bool { return line.Kind == string(snapshot.Recovered) }) {
		fmt.Fprintln(w, "recovered: what an instance that was replaced still had when its node returned;\nnever the newest version, and kept until a person removes it")
	}
	if excludes {
		fmt.Fprintf(w, "\"excl\" is how many paths %s excluded\n", snapshot.IgnoreFile)
	}
}

func (p *program) nodes(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if _, err := arguments(c); err != nil {
		return err
	}
	return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
		lines, err := control.Nodes(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(p.stdout, listOf(lines))
		}
		renderNodes(p.stdout, lines, p.now())
		return nil
	})
}

func renderNodes(w io.Writer, lines []listedNode, now time.Time) {
	if len(lines) == 0 {
		fmt.Fprintln(w, "There are no nodes. `holdfast worker --node NAME` on a machine makes it one.")
		return
	}
	rows := make([][]string, 0, len(lines))
	for _, line := range lines {
		phase := orDash(line.Phase)
		if line.Stale {
			phase += "?"
		}
		rows = append(rows, []string{line.Name, phase, age(line.Since, now), orDash(line.words()), orDash(line.Engine), orDash(line.Address), orDash(line.Reason)})
	}
	renderTable(w, []column{
		{name: "node", flexible: true, least: 12}, {name: "state"}, {name: "since", right: true}, {name: "runs", right: true}, {name: "engine"}, {name: "data port"},
		{name: "reason", flexible: true, least: 12},
	}, rows)
}

// volumeOf says what the content lies on, when that is not simply the node's disk.
func volumeOf(state workspace.State) string {
	volume := state.Spec.Volume
	text := ""
	switch {
	case volume.Kind == workspace.VolumeShared && state.Instance != nil && state.Instance.Volume != "":
		text = "shared, on " + state.Instance.Volume
	case volume.Kind == workspace.VolumeShared && state.Kept != nil && state.Kept.Volume != "":
		text = "shared, on " + state.Kept.Volume
	case volume.Kind == workspace.VolumeShared:
		text = "shared"
	case volume.SizeBytes > 0:
		text = string(volume.Kind)
	}
	if volume.SizeBytes > 0 {
		text += ", " + size(volume.SizeBytes)
	}
	return text
}
