package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"go.temporal.io/sdk/client"

	"holdfast/devstack"
	"holdfast/worker"
)

// tellRecipient finds the control side's public key, which the first control worker made, and adds it to the stack's
// description, so that the command can seal secrets to it.
func tellRecipient(ctx context.Context, stack *devstack.Stack) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	file := stack.File()
	recipient, err := worker.ControlRecipient(ctx, worker.Config{Stores: file.Stores, Policy: file.Policy, GCSEndpoint: file.GCSEndpoint, DNS: file.DNS})
	if err != nil {
		return fmt.Errorf("reading the control side's public key: %w", err)
	}
	return stack.SetControlRecipient(recipient)
}

func (p *program) devCommand() *cli.Command {
	return &cli.Command{
		Name: "dev", Usage: "run everything on this machine: Temporal, its Web UI, stores, a control worker, nodes",
		Description: "Everything is kept in the state directory and is there again the next time. Ctrl-C stops all in order;\n" +
			"workspaces that run stay as they are and are gone on with. With TEMPORAL_ADDRESS set that server is used.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "node", Usage: "run the agent of a node `NAME`; repeatable (default: node-1 and node-2)"},
			&cli.StringFlag{Name: "engine", EnvVars: []string{"HOLDFAST_ENGINE"}, Usage: "container `ENGINE`: auto, docker or process"},
			&cli.IntFlag{Name: "temporal-port", Usage: "`PORT` of Temporal (default: a free one)"},
			&cli.IntFlag{Name: "ui-port", Usage: "`PORT` of the Web UI (default: a free one)"},
		},
		Action: p.dev,
	}
}

func (p *program) dev(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	options := devstack.StackOptions{
		Roles: devstack.ProductRoles(), DataDir: s.StateDir, Nodes: c.StringSlice("node"), Engine: c.String("engine"), Policy: s.Policy,
		Progress: func(event devstack.Event) { tellEvent(p.stderr, event) },
		Temporal: devstack.TemporalOptions{Port: c.Int("temporal-port"), UIPort: c.Int("ui-port")},
	}
	if options.Engine == "auto" {
		options.Engine = ""
	}
	if os.Getenv("TEMPORAL_ADDRESS") != "" || c.IsSet(flagTemporalAddress) {
		external, err := externalTemporal(c)
		if err != nil {
			return err
		}
		options.External = external
	}
	stack, err := devstack.StartStack(c.Context, options)
	if err != nil {
		if c.Context.Err() != nil {
			return fail(exitFailed, "interrupted while starting: everything was stopped again").withSafe("what is in %s stays", s.StateDir)
		}
		return explainStack(s.StateDir, err)
	}
	if err := tellRecipient(c.Context, stack); err != nil && c.Context.Err() == nil {
		return errors.Join(err, stack.Stop(context.WithoutCancel(c.Context)))
	}
	if c.Context.Err() == nil {
		describeStack(p.stdout, stack.File())
	}
	<-c.Context.Done()
	fmt.Fprintln(p.stderr, "Stopping everything in order; press Ctrl-C again to end at once.")
	stopping, cancel := context.WithTimeout(context.WithoutCancel(c.Context), 2*time.Minute)
	defer cancel()
	if err := stack.Stop(stopping); err != nil {
		return fail(exitFailed, "%w", err).withSafe("all data stays in %s", s.StateDir)
	}
	return nil
}

// externalTemporal is the Temporal server that the person's own configuration names.
func externalTemporal(c *cli.Context) (*client.Options, error) {
	profile, err := loadProfile(c)
	if err != nil {
		return nil, err
	}
	options, err := profile.ToClientOptions(profileRequest())
	if err != nil {
		return nil, usage("Temporal's client configuration: %w", err)
	}
	return &options, nil
}

func explainStack(dir string, err error) error {
	var port *devstack.PortError
	var path *fs.PathError
	switch {
	case errors.Is(err, devstack.ErrInUse):
		return fail(exitRefused, "%w", err).withMend("use the stack that runs, or name another directory with --%s", flagStateDir)
	case errors.As(err, &port):
		return fail(exitFailed, "%w", err).withSafe("nothing was left running; what is in %s stays", dir).
			withMend("free the port, or choose another (`holdfast dev --help` lists the flags); 0 picks a free one")
	case errors.As(err, &path) && strings.HasPrefix(path.Path, dir) && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)):
		// The logs lie in it too: there is nothing to be read there.
		return fail(exitFailed, "%w", err).withSafe("nothing was left running; what is in %s stays", dir).
			withMend("make it writable for this user, or name another directory with --%s", flagStateDir)
	default:
		return fail(exitFailed, "%w", err).withSafe("nothing was left running; what is in %s stays", dir).
			withMend("the logs are in %s/logs", dir)
	}
}

// tellEvent writes one line for what happens to the stack.
func tellEvent(w io.Writer, event devstack.Event) {
	what := event.Component
	if what == "" {
		what = "stack"
	}
	var words []string
	if event.Kind != devstack.EventNote {
		words = append(words, string(event.Kind))
	}
	if event.Text != "" {
		words = append(words, event.Text)
	}
	if event.Err != nil {
		words = append(words, event.Err.Error())
	}
	writeAt(w, 20, event.Time.Format("15:04:05")+" "+what, strings.Join(words, ": "))
}

// describeStack says where everything is and what to do first.
func describeStack(w io.Writer, file devstack.StackFile) {
	fmt.Fprintln(w)
	fmt.Fprintln(w, "Holdfast runs on this machine.")
	fmt.Fprintln(w)
	writeField(w, "Temporal", file.TemporalAddress+", namespace "+file.Namespace)
	if file.UIURL != "" {
		writeField(w, "Web UI", file.UIURL)
		// Not wrapped: an address that is broken over two lines cannot be clicked.
		fmt.Fprintf(w, "%-*s%s\n", fieldWidth, "", file.LoginURL())
		writeField(w, "", "opened with this address it shows payloads decoded; the address holds a secret")
	}
	writeField(w, "stores", strings.Join(file.Stores, ", ")+" (policy "+file.Policy+")")
	writeField(w, "nodes", strings.Join(file.Nodes, ", "))
	for _, role := range sortedKeys(file.Metrics) {
		writeField(w, "metrics", "http://"+file.Metrics[role]+"/metrics, of "+role)
	}
	writeField(w, "data", file.DataDir)
	writeField(w, "logs", file.DataDir+"/logs")
	fmt.Fprintln(w)
	if key := keyFile(file.MasterKey); key != "" {
		fmt.Fprintln(w, wrapText("KEEP THE MASTER KEY: "+key, 0))
		fmt.Fprintln(w, wrapText("Copy it to another machine now. Without it no backup can be opened, by nobody and by no means; with it and one of the stores everything can be.", 0))
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "Try, in another terminal:")
	if dir, err := devstack.DefaultDir(); err != nil || dir != file.DataDir {
		fmt.Fprintf(w, "  export HOLDFAST_STATE_DIR=%s\n", shellQuote(file.DataDir))
	}
	for _, command := range []string{
		"holdfast start web --from-dir .", "holdfast exec web -- ls -l", "holdfast shell web", "holdfast stop web", "holdfast why web",
		"holdfast start web --not-node " + firstOr(file.Nodes, "NODE"), "holdfast doctor",
	} {
		fmt.Fprintln(w, "  "+command)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "Ctrl-C stops everything in order and keeps all data.")
}

func firstOr(items []string, fallback string) string {
	if len(items) > 0 {
		return items[0]
	}
	return fallback
}

// shellQuote makes one word for a shell.
func shellQuote(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") == "" && word != "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
