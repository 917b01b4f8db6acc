package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// completionFlag is what the shells' completion scripts append; it has to stay the last argument.
const completionFlag = "--generate-bash-completion"

// passThrough names the commands whose later arguments belong to somebody else's command line, and how many of ours
// come first.
func passThrough(command string) (ours int, ok bool) {
	return 1, command == "exec"
}

// normalize lets flags stand after arguments (`holdfast stop NAME --detach`), which urfave/cli's parser would take for
// arguments: it moves a command's flags before its arguments and puts "--" between them.
func normalize(app *cli.App, args []string) []string {
	if len(args) < 2 || args[len(args)-1] == completionFlag {
		return args
	}
	out := []string{args[0]}
	rest := args[1:]
	flags, commands, name := app.Flags, app.Commands, ""
	for {
		// Flags of this level, up to the command of the next.
		for len(rest) > 0 && isFlag(rest[0]) {
			n := min(flagWidth(flags, rest), len(rest))
			out, rest = append(out, rest[:n]...), rest[n:]
		}
		if len(rest) == 0 {
			return out
		}
		command := findCommand(commands, rest[0])
		if command == nil {
			break
		}
		name = command.Name
		out, rest = append(out, rest[0]), rest[1:]
		flags, commands = command.Flags, command.Subcommands
		if len(commands) == 0 {
			break
		}
	}
	if name == "" || len(commands) > 0 {
		return append(out, rest...) // a mistake; the parser says which
	}
	ours, through := passThrough(name)
	var own, arguments []string
	for len(rest) > 0 {
		switch {
		case rest[0] == "--":
			arguments, rest = append(arguments, rest[1:]...), nil
		case through && len(arguments) >= ours && !isFlag(rest[0]):
			arguments, rest = append(arguments, rest...), nil
		case isFlag(rest[0]):
			n := flagWidth(flags, rest)
			if n > len(rest) {
				// Its value is missing; "--" must not become it. The parser says so.
				return append(append(out, own...), rest...)
			}
			own, rest = append(own, rest[:n]...), rest[n:]
		default:
			arguments, rest = append(arguments, rest[0]), rest[1:]
		}
	}
	out = append(out, own...)
	if len(arguments) > 0 {
		out = append(append(out, "--"), arguments...)
	}
	return out
}

func isFlag(argument string) bool { return len(argument) > 1 && argument[0] == '-' && argument != "--" }

// flagWidth is how many arguments the flag at the front takes: itself, and its value when that stands apart.
func flagWidth(flags []cli.Flag, rest []string) int {
	name := strings.TrimLeft(rest[0], "-")
	if strings.Contains(name, "=") {
		return 1
	}
	for _, flag := range flags {
		for _, known := range flag.Names() {
			if known == name {
				if taking, ok := flag.(cli.DocGenerationFlag); ok && taking.TakesValue() {
					return 2
				}
				return 1
			}
		}
	}
	return 1
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, command := range commands {
		if command.HasName(name) {
			return command
		}
	}
	return nil
}
