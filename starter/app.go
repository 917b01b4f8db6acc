package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"holdfast/dataport"
	"holdfast/workspace"
)

// program is the command with what it touches, so that tests can stand in for the terminal and for Temporal.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// stdoutTerminal, stderrTerminal and stdinTerminal decide about bars, colours and what a terminal must not get.
	stdoutTerminal, stderrTerminal, stdinTerminal bool
	colours                                       bool
	typed                                         []string // the command line, for completions

	now      func() time.Time
	wait     func(ctx context.Context, d time.Duration) error
	connect  func(ctx context.Context, c *cli.Context, s settings) (control, error)
	dataPort func(grant workspace.Grant) (dataClient, error)
}

// newProgram is the command on this process's own streams.
func newProgram() *program {
	isTerminal := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	return &program{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdinTerminal: isTerminal(os.Stdin), stdoutTerminal: isTerminal(os.Stdout), stderrTerminal: isTerminal(os.Stderr),
		colours: isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		now:     time.Now,
		wait:    sleep,
		connect: connectTemporal,
		dataPort: func(grant workspace.Grant) (dataClient, error) {
			return dataport.Dial(grant.Address, grant.Fingerprint, grant.Token)
		},
	}
}

// app is the whole command line.
func (p *program) app() *cli.App {
	app := &cli.App{
		Name:                      "holdfast",
		Usage:                     "cloud workspaces whose files are never lost",
		HideVersion:               true, // ours says more
		HideHelpCommand:           true,
		EnableBashCompletion:      true,
		Suggest:                   true,
		DisableSliceFlagSeparator: true, // a value may hold commas
		Reader:                    p.stdin,
		Writer:                    p.stdout,
		ErrWriter:                 p.stderr,
		Flags:                     append(globalFlags(), &cli.BoolFlag{Name: flagVersion, Usage: "say which version this is", DisableDefaultText: true}),
		ExitErrHandler:            func(*cli.Context, error) {}, // run decides about exit codes
		OnUsageError:              onUsageError,
		Before:                    onlyVersion,
		Action:                    p.withoutCommand,
	}
	app.Commands = append(app.Commands, p.workspaceCommands()...)
	app.Commands = append(app.Commands, p.showCommands()...)
	app.Commands = append(app.Commands, p.accessCommands()...)
	app.Commands = append(app.Commands, p.snapshotCommand(), p.volumeCommand(), p.keyCommand(), p.doctorCommand())
	app.Commands = append(app.Commands, p.demoCommand(), p.devCommand(), p.webUICommand())
	app.Commands = append(app.Commands, p.roleCommands()...)
	app.Commands = append(app.Commands, p.otherCommands()...)
	prepare(app.Commands, p)
	return app
}

// prepare gives every command what all of them have.
func prepare(commands []*cli.Command, p *program) {
	for _, command := range commands {
		command.OnUsageError = onUsageError
		command.HideHelpCommand = true // a workspace may be called "help"
		if command.Subcommands != nil {
			command.Action = unknownCommand
			prepare(command.Subcommands, p)
		}
		if command.BashComplete == nil && command.Subcommands == nil && strings.HasPrefix(command.ArgsUsage, "NAME") {
			command.BashComplete = p.completeName
		}
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usage("%w", err).withMend("`%s --help` says what there is", strings.TrimSpace(c.Command.HelpName))
}

// onlyVersion refuses a command beside --version, which would else be done without a word of it.
func onlyVersion(c *cli.Context) error {
	if c.Bool(flagVersion) && c.Args().Present() {
		return usage("--%s stands alone; there is %q beside it", flagVersion, c.Args().First())
	}
	return nil
}

func (p *program) withoutCommand(c *cli.Context) error {
	if c.Bool(flagVersion) {
		_, err := fmt.Fprintln(p.stdout, version())
		return err
	}
	return unknownCommand(c)
}

// unknownCommand is the action where a command was expected.
func unknownCommand(c *cli.Context) error {
	if !c.Args().Present() {
		return cli.ShowSubcommandHelp(c)
	}
	name := c.Args().First()
	f := usage("there is no command %q", name)
	commands := c.App.Commands
	help := "holdfast"
	if c.Command != nil && len(c.Command.Subcommands) > 0 {
		commands = c.Command.Subcommands
		help = c.Command.HelpName
	}
	if question := cli.SuggestCommand(commands, name); question != "" { // Did you mean "stop"?
		return f.withMend("%s `%s --help` lists the commands", question, help)
	}
	return f.withMend("`%s --help` lists the commands", help)
}

// arguments takes exactly so many arguments, named for the message.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	given := c.Args().Slice()
	switch {
	case len(given) < len(names):
		return nil, usage("%s: %s is missing", c.Command.Name, names[len(given)]).withMend("usage: %s %s", c.Command.HelpName, c.Command.ArgsUsage)
	case len(given) > len(names):
		return nil, usage("%s: %q is one argument too many", c.Command.Name, given[len(names)]).withMend("usage: %s %s", c.Command.HelpName, c.Command.ArgsUsage)
	}
	return given, nil
}

// workspaceName takes the one argument that is a workspace's name.
func workspaceName(c *cli.Context) (string, error) {
	given, err := arguments(c, "NAME")
	if err != nil {
		return "", err
	}
	if err := workspace.ValidateName("workspace name", given[0]); err != nil {
		return "", usage("%w", err)
	}
	return given[0], nil
}

// withControl runs do with a connection to Temporal.
func (p *program) withControl(c *cli.Context, do func(ctx context.Context, control control, s settings) error) error {
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	connection, err := p.connect(c.Context, c, s)
	if err != nil {
		return err
	}
	defer connection.Close()
	return do(c.Context, connection, s)
}

func (p *program) otherCommands() []*cli.Command {
	return []*cli.Command{
		p.completionCommand(),
		{
			Name:  "version",
			Usage: "say which version this is",
			Action: func(c *cli.Context) error {
				if _, err := arguments(c); err != nil {
					return err
				}
				_, err := fmt.Fprintln(p.stdout, version())
				return err
			},
		},
	}
}

// version is what the build recorded about itself.
func version() string {
	text := "holdfast"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return text + " (unknown) " + runtime.Version()
	}
	number, revision, modified := info.Main.Version, "", ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = " " + shorten(setting.Value, 13)
		case setting.Key == "vcs.modified" && setting.Value == "true":
			modified = " (modified)"
		}
	}
	if number == "" {
		number = "(devel)"
	}
	return text + " " + number + strings.TrimSuffix(revision, "…") + modified + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
