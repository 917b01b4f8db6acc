package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/workspace"
)

// dataClient is what the commands need of a node's data port.
type dataClient interface {
	Exec(ctx context.Context, request dataport.ExecRequest, streams dataport.Streams) (int, error)
	Shell(ctx context.Context, request dataport.ExecRequest, streams dataport.Streams) (int, error)
	Logs(ctx context.Context, options engine.LogOptions, w io.Writer) error
	HookLog(ctx context.Context, w io.Writer) error
	Download(ctx context.Context, request dataport.DownloadRequest, begin dataport.BeginDownload) error
	Upload(ctx context.Context, r io.Reader) (dataport.UploadResult, error)
}

// errNoGrant means that there was no way to reach what was asked for at this moment.
var errNoGrant = errors.New("there is no way to reach it now")

func (p *program) accessCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "exec", Usage: "run a command in a running workspace", ArgsUsage: "NAME -- COMMAND [ARGUMENT…]",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
				&cli.StringSliceFlag{Name: "env", Usage: "environment `NAME=VALUE` for this command; repeatable"},
			}, Action: p.exec},
		{Name: "shell", Usage: "open a shell in a running workspace", ArgsUsage: "NAME", Action: p.shell},
		{Name: "logs", Usage: "show what a workspace's main process prints", ArgsUsage: "NAME",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on as more is printed"},
				&cli.IntFlag{Name: "tail", Usage: "only the last `N` lines"},
				&cli.BoolFlag{Name: "hooks", Usage: "the end of what its hooks printed instead, while its node has it"},
			}, Action: p.logs},
		{Name: "download", Usage: "fetch a workspace's content as a tar stream, in every state", ArgsUsage: "NAME",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "snapshot", Usage: "this `SNAPSHOT` instead of the newest content"},
				&cli.StringFlag{Name: "path", Usage: "only this file or directory `PATH` of the workspace"},
				&cli.StringFlag{Name: "file", Aliases: []string{"o"}, Usage: "write to `FILE` (default, and -: standard output)"},
			}, Action: p.download},
	}
}

// throughGrants asks for ways to do verb and tries them in order, until one works or an attempt has had an effect.
func (p *program) throughGrants(ctx context.Context, control control, input workspace.AccessInput, try func(workspace.Grant, dataClient) (final bool, err error)) error {
	result, err := control.Access(ctx, input)
	if err != nil {
		return err
	}
	for _, note := range result.Notes {
		fmt.Fprintln(p.stderr, wrapText("note: "+note, 6))
	}
	if len(result.Grants) == 0 {
		return fail(exitFailed, "%s of workspace %q: %w", input.Verb, input.Name, errNoGrant).
			withMend("`holdfast why %s` says where its content is and which nodes answer", input.Name)
	}
	var last error
	for i, grant := range result.Grants {
		client, err := p.dataPort(grant)
		if err == nil {
			var final bool
			if final, err = try(grant, client); final || err == nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		last = fmt.Errorf("node %s: %w", grant.Node, err)
		if i+1 < len(result.Grants) {
			fmt.Fprintln(p.stderr, wrapText(fmt.Sprintf("note: %v; trying node %s", last, result.Grants[i+1].Node), 6))
		}
	}
	return explainDataPort(input, last)
}

// explainDataPort turns what a data port answered into a failure.
func explainDataPort(input workspace.AccessInput, err error) error {
	var known *failure
	if err == nil || errors.As(err, &known) {
		return err
	}
	code := exitFailed
	mend := fmt.Sprintf("`holdfast why %s` says how the workspace is", input.Name)
	switch {
	case errors.Is(err, dataport.ErrNotRunning):
		code, mend = exitRefused, fmt.Sprintf("`holdfast start %s` starts it; its content can be fetched with `holdfast download %s`", input.Name, input.Name)
	case errors.Is(err, dataport.ErrPaused):
		code, mend = exitRefused, fmt.Sprintf("nothing, when its node is only cut off: it goes on by itself; `holdfast why %s` says what is known, and `holdfast download %s` fetches its content", input.Name, input.Name)
	case errors.Is(err, dataport.ErrConflict):
		code = exitRefused
	case errors.Is(err, dataport.ErrNotHere):
		code = exitNotFound
	case errors.Is(err, dataport.ErrInvalid):
		code = exitUsage
	}
	return fail(code, "%s of workspace %q: %w", input.Verb, input.Name, err).withMend("%s", mend)
}

func (p *program) exec(c *cli.Context) error {
	given := c.Args().Slice()
	if len(given) < 2 {
		return usage("exec: want a workspace and a command").withMend("usage: %s %s", c.Command.HelpName, c.Command.ArgsUsage)
	}
	name := given[0]
	if err := workspace.ValidateName("workspace name", name); err != nil {
		return usage("%w", err)
	}
	command := given[1:]
	environment := map[string]string{}
	for _, pair := range c.StringSlice("env") {
		key, value, found := strings.Cut(pair, "=")
		if err := workspace.ValidateVariable(key); err != nil {
			return usage("--env: %w", err)
		}
		if !found {
			if value, found = os.LookupEnv(key); !found {
				return usage("--env: %s has no value and is not set here", key)
			}
		}
		environment[key] = value
	}
	return p.interactive(c, name, workspace.VerbExec, dataport.ExecRequest{Command: command, Environment: environment, TTY: c.Bool("tty")})
}

func (p *program) shell(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	return p.interactive(c, name, workspace.VerbShell, dataport.ExecRequest{TTY: p.stdinTerminal && p.stdoutTerminal})
}

// interactive runs a command or shell with this process's streams; its exit code becomes ours.
func (p *program) interactive(c *cli.Context, name string, verb workspace.Verb, request dataport.ExecRequest) error {
	return p.withControl(c, func(ctx context.Context, control control, s settings) error {
		input := workspace.AccessInput{Name: name, Verb: verb, Subject: s.Owner}
		return p.throughGrants(ctx, control, input, func(_ workspace.Grant, client dataClient) (bool, error) {
			streams := dataport.Streams{Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Notice: p.notice(request.TTY)}
			used := &countingReader{r: p.stdin}
			streams.Stdin = used
			if request.TTY {
				restore, err := p.rawTerminal(ctx, &request, &streams)
				if err != nil {
					return true, err
				}
				defer restore()
			}
			run := client.Exec
			if verb == workspace.VerbShell {
				run = client.Shell
			}
			code, err := run(ctx, request, streams)
			switch {
			case err == nil && code != 0:
				return true, exitStatus(code)
			case err == nil:
				return true, nil
			case ctx.Err() != nil:
				return true, fail(exitFailed, "interrupted: the command was ended")
			default:
				// What may have begun is not begun a second time elsewhere.
				return used.any() || errors.Is(err, dataport.ErrCut), explainDataPort(input, err)
			}
		})
	})
}

// notice tells what a node says beside a command: on standard error, or, where that is not the terminal on which a person has the
// command's own, on that one. It is never among what a program reads.
func (p *program) notice(tty bool) func(text string) {
	if !tty {
		return func(text string) { fmt.Fprintln(p.stderr, wrapText("note: "+text, 6)) }
	}
	terminal := p.stderr
	if !p.stderrTerminal && p.stdoutTerminal {
		terminal = p.stdout
	}
	// A raw terminal goes to the beginning of a line only when it is told to.
	return func(text string) { fmt.Fprintf(terminal, "\r\nnote: %s\r\n", strings.ReplaceAll(text, "\n", "\r\n")) }
}

func (p *program) logs(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	if c.Int("tail") < 0 {
		return usage("--tail %d: want 0 (all) or more lines", c.Int("tail"))
	}
	if c.Bool("hooks") && (c.Bool("follow") || c.IsSet("tail")) {
		return usage("--hooks excludes --follow and --tail: it is the end of what the hooks printed")
	}
	return p.withControl(c, func(ctx context.Context, control control, s settings) error {
		input := workspace.AccessInput{Name: name, Verb: workspace.VerbLogs, Subject: s.Owner}
		return p.throughGrants(ctx, control, input, func(_ workspace.Grant, client dataClient) (bool, error) {
			out := &countingWriter{w: p.stdout}
			var err error
			if c.Bool("hooks") {
				err = client.HookLog(ctx, out)
			} else {
				err = client.Logs(ctx, engine.LogOptions{Follow: c.Bool("follow"), Tail: c.Int("tail")}, out)
			}
			if err != nil && errWasInterrupted(ctx) {
				return true, nil // Ctrl-C is how one stops following
			}
			return out.n > 0, explainDataPort(input, err)
		})
	})
}

// download is `holdfast download`.
func (p *program) download(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	if err := checkSnapshotFlag("snapshot", c.String("snapshot")); err != nil {
		return err
	}
	if err := workspace.ValidatePath(c.String("path")); err != nil {
		return usage("--path: %w", err)
	}
	path := strings.Trim(c.String("path"), "/")
	if path != "" {
		path = filepath.ToSlash(filepath.Clean(path))
	}
	target := c.String("file")
	toFile := target != "" && target != "-"
	if !toFile && p.stdoutTerminal {
		return usage("download: a tar stream does not belong on a terminal").
			withMend("write it to a file with -o %s.tar, or pipe it: holdfast download %s | tar -x -C DIR", name, name)
	}
	if toFile {
		if info, err := os.Stat(target); err == nil && info.IsDir() {
			return usage("download: %s is a directory", target).withMend("name a file: -o %s", filepath.Join(target, name+".tar"))
		}
		if info, err := os.Stat(filepath.Dir(target)); err != nil || !info.IsDir() {
			return usage("download: %s: there is no such directory", filepath.Dir(target))
		}
	}
	return p.withControl(c, func(ctx context.Context, control control, s settings) error {
		wanted, err := wholeID(ctx, control, name, c.String("snapshot"))
		if err != nil {
			return err
		}
		input := workspace.AccessInput{Name: name, Verb: workspace.VerbDownload, Snapshot: wanted, Path: path, Subject: s.Owner}
		return p.throughGrants(ctx, control, input, func(grant workspace.Grant, client dataClient) (bool, error) {
			return p.downloadFrom(ctx, input, grant, client, target, toFile)
		})
	})
}

// downloadFrom fetches through one grant. A file appears only when all of it has arrived.
func (p *program) downloadFrom(ctx context.Context, input workspace.AccessInput, grant workspace.Grant, client dataClient, target string, toFile bool) (begun bool, err error) {
	var file *renameio.PendingFile
	var out io.Writer = p.stdout
	if toFile {
		if file, err = renameio.NewPendingFile(target, renameio.WithTempDir(filepath.Dir(target)), renameio.WithPermissions(0o600), renameio.WithExistingPermissions()); err != nil {
			return true, fail(exitFailed, "making a file beside %s: %w", target, err).
				withMend("make the directory writable, or name another file with -o")
		}
		defer file.Cleanup() // removes what is partial; nothing once it has its name
		out = file
	}
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	defer show.Close()
	received := &countingWriter{w: out}
	err = client.Download(ctx, dataport.DownloadRequest{Path: input.Path}, func(info dataport.DownloadInfo) (io.Writer, error) {
		begun = true
		fmt.Fprintln(p.stderr, wrapText(downloadWords(input.Name, grant, info, p), 2))
		received.tell = func(n int64) {
			show.Update(status{key: "download", quiet: true, text: fmt.Sprintf("%s: %s received", input.Name, size(n))})
		}
		return received, nil
	})
	if err != nil {
		if !begun {
			return errWasInterrupted(ctx), explainDataPort(input, err)
		}
		safe := "the workspace's content is as it was"
		if toFile {
			safe += "; nothing was left at " + target
		} else {
			safe += "; what was written to standard output is not a whole tar: do not use it"
		}
		if errWasInterrupted(ctx) {
			err = errInterrupted
		}
		return true, fail(exitFailed, "the download of workspace %q was cut after %s: %w", input.Name, size(received.n), err).
			withSafe("%s", safe).withMend("run it again")
	}
	if toFile {
		if err := file.CloseAtomicallyReplace(); err != nil {
			return true, fail(exitFailed, "writing %s: %w", target, err)
		}
	}
	show.Close()
	where := "standard output"
	if toFile {
		where = target
	}
	fmt.Fprintf(p.stderr, "%s: %s written to %s\n", input.Name, size(received.n), where)
	return true, nil
}

// downloadWords says what a download gives and how old it is.
func downloadWords(name string, grant workspace.Grant, info dataport.DownloadInfo, p *program) string {
	var text string
	switch info.Source {
	case dataport.SourceLive:
		text = fmt.Sprintf("%s: the files on node %s as they are now", name, grant.Node)
	case dataport.SourceNode:
		text = fmt.Sprintf("%s: the files that stayed on node %s when it stopped", name, grant.Node)
		if !info.Time.IsZero() {
			text += ", as of " + moment(info.Time) + " (" + age(info.Time, p.now()) + " ago)"
		}
	case dataport.SourceSnapshot:
		text = fmt.Sprintf("%s: snapshot %s of %s (%s ago), read from the stores through node %s", name, workspace.Short(info.Snapshot),
			moment(info.Time), age(info.Time, p.now()), grant.Node)
	default:
		text = fmt.Sprintf("%s: %s on node %s", name, info.Source, grant.Node)
	}
	if info.Note != "" {
		text += "; " + info.Note
	}
	return text
}

// countingWriter counts what passes and tells about it.
type countingWriter struct {
	w    io.Writer
	n    int64
	tell func(n int64)
}

func (c *countingWriter) Write(data []byte) (int, error) {
	n, err := c.w.Write(data)
	c.n += int64(n)
	if c.tell != nil {
		c.tell(c.n)
	}
	return n, err
}
