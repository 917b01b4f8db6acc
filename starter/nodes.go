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

// nodeCommands are `holdfast node …`.
func (p *program) nodeCommands() *cli.Command {
	order := func(kind workspace.NodeOrderKind, usage, description string) *cli.Command {
		return &cli.Command{Name: string(kind), Usage: usage, Description: description, ArgsUsage: "NODE",
			Flags: []cli.Flag{outputFlag()}, Action: p.orderNode(kind)}
	}
	return &cli.Command{Name: "node", Usage: "look at nodes, and say what is to be done about one", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list the nodes", Flags: []cli.Flag{outputFlag()}, Action: p.nodes},
		{Name: "show", Usage: "show everything known about a node", ArgsUsage: "NODE", Flags: []cli.Flag{outputFlag()}, Action: p.showNode},
		order(workspace.OrderCordon, "place nothing new on a node; what runs there goes on", ""),
		order(workspace.OrderUncordon, "place workspaces on a node again", ""),
		p.drainCommand(),
		p.reportCommand(),
		order(workspace.OrderProceed, "let the workspaces of a lost node go on elsewhere although they are held",
			"Workspaces are held when several nodes, or all, are lost at once, or when the control plane was away: it may be what they share that failed."),
		order(workspace.OrderDead, "say that a node does not come back: its workspaces go on elsewhere at once",
			"They are not held and the node is not waited for. If it returns all the same, nothing of what it has is put over newer work."),
	}}
}

func nodeName(c *cli.Context) (string, error) {
	args, err := arguments(c, "NODE")
	if err != nil {
		return "", err
	}
	if err := workspace.ValidateName("node", args[0]); err != nil {
		return "", usage("%w", err)
	}
	return args[0], nil
}

func (p *program) showNode(c *cli.Context) error {
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
		beat, err := control.Beat(ctx, name)
		if err != nil {
			return err
		}
		paused, unnamed, err := pausedNames(ctx, control, beat)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(p.stdout, shownNode{NodeState: state, nodeLoad: loadOf(beat), Paused: paused})
		}
		renderNode(p.stdout, state, p.now(), p.colours)
		writeField(p.stdout, "instances", loadOf(beat).words())
		renderPaused(p.stdout, paused, unnamed)
		return nil
	})
}

// shownNode is what `holdfast node show -o json` prints.
type shownNode struct {
	workspace.NodeState
	nodeLoad
	Paused []workspace.PausedInstance `json:"paused,omitempty"`
}

func renderNode(w io.Writer, state workspace.NodeState, now time.Time, colours bool) {
	writeField(w, "node", state.Info.Name)
	writeField(w, "state", fmt.Sprintf("%s for %s", paint(string(state.Phase), colours), age(state.Since, now)))
	writeField(w, "reason", state.Reason)
	if state.Cordoned != "" {
		writeField(w, "cordoned", "by "+state.Cordoned+": nothing new is placed on it")
	}
	renderDrain(w, state.Drain, now)
	if loss := state.Loss; loss != nil {
		writeField(w, "lost", fmt.Sprintf("%s (%s ago), last heard of at %s; `holdfast node report %s` says what that cost", moment(loss.At), age(loss.At, now), moment(loss.Heard), state.Info.Name))
		if loss.Dead != "" {
			writeField(w, "dead", loss.Dead+" said so")
		}
		if loss.Proceed != "" {
			writeField(w, "proceed", loss.Proceed+" said so")
		}
	}
	if !state.LossDue.IsZero() {
		writeField(w, "waited for", "until "+moment(state.LossDue)+"; then it counts as lost")
	}
	if !state.ReturnedAt.IsZero() {
		writeField(w, "returned", fmt.Sprintf("%s (%s ago), lost at %s", moment(state.ReturnedAt), age(state.ReturnedAt, now), moment(state.LostAt)))
	}
	writeField(w, "lease", fmt.Sprintf("epoch %d", state.Epoch))
	writeField(w, "engine", state.Info.Engine)
	writeField(w, "data port", state.Info.Address)
	writeField(w, "version", state.Info.Version)
	if volume := state.Info.Volume; volume != nil && volume.ID != "" {
		writeField(w, "shared volume", volume.ID+" on "+volume.Dir)
	} else if volume != nil {
		writeField(w, "shared volume", "not usable: "+volume.Problem)
	}
	writeField(w, "note", strings.Join(state.Info.Notes, "\n"))
}

// orderNode is the action of a command that says something of a node.
func (p *program) orderNode(kind workspace.NodeOrderKind) cli.ActionFunc {
	return func(c *cli.Context) error {
		name, err := nodeName(c)
		if err != nil {
			return err
		}
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		return p.withControl(c, func(ctx context.Context, control control, s settings) error {
			state, err := control.OrderNode(ctx, name, newRequestID(), workspace.NodeOrder{Kind: kind, Subject: s.Owner})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(p.stdout, state)
			}
			p.say("%s", map[workspace.NodeOrderKind]string{
				workspace.OrderDead:     "node " + name + " is dead; its workspaces go on elsewhere, from their newest verified snapshots",
				workspace.OrderProceed:  "the workspaces of node " + name + " are held no longer",
				workspace.OrderCordon:   "nothing new is placed on node " + name,
				workspace.OrderUncordon: "workspaces are placed on node " + name + " again",
			}[kind])
			return nil
		})
	}
}
