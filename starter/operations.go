package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

const (
	flagDetach  = "detach"
	flagTimeout = "timeout"
)

// following are the flags of every command that begins an operation.
func following(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.BoolFlag{Name: flagDetach, Aliases: []string{"d"}, Usage: "do not follow: print the operation's id and end"},
		&cli.DurationFlag{Name: flagTimeout, Usage: "follow for at most this `TIME`, such as 10m; the operation goes on after it"},
		outputFlag(),
	)
}

func (p *program) workspaceCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "start", Usage: "start a workspace, a new one or one that is stopped", ArgsUsage: "NAME",
			Flags: following(startFlags()...), Action: p.start,
		},
		{
			Name: "stop", Usage: "stop a workspace through a verified backup", ArgsUsage: "NAME",
			Flags: following(
				&cli.StringFlag{Name: "accept-omissions", Usage: "accept what this `SNAPSHOT` does not hold, so that the node may drop its copy"},
				&cli.BoolFlag{Name: "skip-hooks", Usage: "do not run its pre-stop hook, such as one that keeps failing"}),
			Action: p.updating(workspace.UpdateStop, func(c *cli.Context, subject, _ string) (any, error) {
				accepted := c.String("accept-omissions")
				return workspace.StopRequest{Subject: subject, AcceptOmissions: accepted, SkipHooks: c.Bool("skip-hooks")}, checkSnapshotFlag("accept-omissions", accepted)
			}),
		},
		{
			Name: "backup", Usage: "back a running workspace up", ArgsUsage: "NAME", Flags: following(),
			Action: p.updating(workspace.UpdateBackup, func(_ *cli.Context, subject, _ string) (any, error) {
				return workspace.BackupRequest{Subject: subject}, nil
			}),
		},
		{
			Name: "restore", Usage: "start a stopped workspace from an older snapshot", ArgsUsage: "NAME",
			Flags: following(
				&cli.StringFlag{Name: "snapshot", Usage: "this `SNAPSHOT`: its id, or the first digits of it"},
				&cli.StringFlag{Name: "node", Usage: "only on this `NODE`"}),
			Action: p.updating(workspace.UpdateRestore, func(c *cli.Context, subject, _ string) (any, error) {
				request := workspace.RestoreRequest{Subject: subject, Snapshot: c.String("snapshot"), Node: c.String("node")}
				if request.Snapshot == "" {
					return nil, usage("restore: --snapshot is missing").withMend("`holdfast snapshots NAME` lists them")
				}
				if err := checkSnapshotFlag("snapshot", request.Snapshot); err != nil {
					return nil, err
				}
				if request.Node != "" {
					if err := workspace.ValidateName("--node", request.Node); err != nil {
						return nil, usage("%w", err)
					}
				}
				return request, nil
			}),
		},
		{
			Name: "move", Usage: "take a running workspace to another node, through a verified backup", ArgsUsage: "NAME",
			Description: "It is backed up while it runs; then it is stopped, what has changed since is backed up, and it is started elsewhere from exactly that. " +
				"A move that cannot be made leaves it running where it is.",
			Flags: following(&cli.StringFlag{Name: "node", Usage: "only to this `NODE` (default: any other)"}),
			Action: p.updating(workspace.UpdateMove, func(c *cli.Context, subject, _ string) (any, error) {
				request := workspace.MoveRequest{Subject: subject, Node: c.String("node")}
				if request.Node != "" {
					if err := workspace.ValidateName("--node", request.Node); err != nil {
						return nil, usage("%w", err)
					}
				}
				return request, nil
			}),
		},
		{
			Name: "keep", Usage: "put off that a running workspace is stopped by itself (--idle-stop, --lifetime, --hours)", ArgsUsage: "NAME",
			Description: "It counts from now, and takes the place of what was said before. `holdfast why NAME` shows who said it and until when.",
			Flags:       following(&cli.StringFlag{Name: "for", Usage: "for this `TIME`, from 1m to 720h, such as 4h; off takes it back"}),
			Action: p.updating(workspace.UpdateKeep, func(c *cli.Context, subject, _ string) (any, error) {
				seconds, err := keepFor(c.String("for"))
				return workspace.KeepRequest{Subject: subject, Seconds: seconds}, err
			}),
		},
		{
			Name: "delete", Usage: "delete a stopped workspace; its snapshots stay in the stores", ArgsUsage: "NAME",
			Flags: following(&cli.StringFlag{Name: "discard-data", Usage: "drop its snapshots and what is not backed up too; repeat the workspace's `NAME` to say so"}),
			Action: p.updating(workspace.UpdateDelete, func(c *cli.Context, subject, name string) (any, error) {
				if c.IsSet("discard-data") && c.String("discard-data") != name {
					return nil, usage("--discard-data %q: want the workspace's own name, %s", c.String("discard-data"), name).
						withMend("leave it out to keep the snapshots")
				}
				return workspace.DeleteRequest{Subject: subject, DiscardData: c.String("discard-data")}, nil
			}),
		},
		{
			Name: "unstick", Usage: "seal an attempt that is stuck, keep what is there, and allow a start", ArgsUsage: "NAME",
			Flags: following(),
			Action: p.updating(workspace.UpdateUnstick, func(_ *cli.Context, subject, _ string) (any, error) {
				return workspace.UnstickRequest{Subject: subject}, nil
			}),
		},
	}
}

// keepFor reads for how long a workspace is kept, in seconds; 0 is off.
func keepFor(text string) (int64, error) {
	if text == "" {
		return 0, usage("keep: --for is missing").withMend("say for how long, such as --for 4h")
	}
	if text == "off" || text == "0" {
		return 0, nil
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		return 0, usage("--for %q: want a time such as 4h, or off", text)
	}
	if length < workspace.MinKeep || length > workspace.MaxKeep || length%time.Second != 0 {
		return 0, usage("--for %s: want whole seconds, 1m to 720h (30 days), or off", length)
	}
	return int64(length / time.Second), nil
}

// start is `holdfast start`.
func (p *program) start(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	if _, err := wantsJSON(c); err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	plan, err := planStart(c, s, os.LookupEnv)
	if err != nil {
		return err
	}
	if plan.fromDir != "" && c.Bool(flagDetach) {
		return usage("--from-dir and --detach exclude each other: this command sends the directory")
	}
	return p.withControl(c, func(ctx context.Context, control control, s settings) error {
		var existing *workspace.State
		state, err := control.State(ctx, name)
		switch {
		case err == nil:
			existing = &state
		case asFailure(err).code != exitNotFound:
			return err
		}
		if err := plan.adapt(name, existing); err != nil {
			return err
		}
		if plan.request.Spec != nil {
			recipient := s.ControlRecipient
			if recipient == "" {
				recipient = stackRecipient(s.StateDir)
			}
			if err := plan.seal(recipient); err != nil {
				return err
			}
		}
		if err := plan.completeIDs(ctx, control, name); err != nil {
			return err
		}
		accepted, err := control.Start(ctx, name, s.Owner, newRequestID(), plan.request)
		if err != nil {
			return err
		}
		var sending *upload
		if plan.fromDir != "" {
			sending = &upload{program: p, control: control, name: name, subject: s.Owner, dir: plan.fromDir}
		}
		return p.followed(ctx, c, control, name, accepted, sending)
	})
}

// updating is the action of a command that asks an existing workspace for something.
func (p *program) updating(update string, request func(c *cli.Context, subject, name string) (any, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		name, err := workspaceName(c)
		if err != nil {
			return err
		}
		if _, err := wantsJSON(c); err != nil {
			return err
		}
		s, err := loadSettings(c)
		if err != nil {
			return err
		}
		message, err := request(c, s.Owner, name)
		if err != nil {
			return err
		}
		return p.withControl(c, func(ctx context.Context, control control, _ settings) error {
			message, err := wholeIDs(ctx, control, name, message)
			if err != nil {
				return err
			}
			accepted, err := control.Update(ctx, name, update, newRequestID(), message)
			if err != nil {
				return err
			}
			return p.followed(ctx, c, control, name, accepted, nil)
		})
	}
}

// followed watches an accepted operation and says how it ended, unless the person does not want to wait.
func (p *program) followed(ctx context.Context, c *cli.Context, control control, name string, accepted workspace.Accepted, sending *upload) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if c.Bool(flagDetach) {
		if asJSON {
			return printJSON(p.stdout, accepted)
		}
		p.say("%s: accepted as operation %s; `holdfast why %s` shows how far it is", name, accepted.OperationID, name)
		return nil
	}
	if timeout := c.Duration(flagTimeout); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	f := &follower{control: control, show: newProgress(p.stderr, p.stderrTerminal, p.now), now: p.now, wait: p.wait}
	if sending != nil {
		f.upload = sending.send
	}
	began := p.now()
	operation, state, err := f.follow(ctx, name, accepted.OperationID)
	if err != nil {
		return err
	}
	ended := describeOutcome(operation, state, sending.omissions(), p.now().Sub(began))
	if asJSON {
		if err := printJSON(p.stdout, operation); err != nil {
			return err
		}
		return ended.err
	}
	for _, line := range ended.lines {
		p.say("%s", line)
	}
	return ended.err
}

// errWasInterrupted reports whether a person pressed Ctrl-C.
func errWasInterrupted(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), errInterrupted)
}

// seconds is a duration to a tenth of a second.
func seconds(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
