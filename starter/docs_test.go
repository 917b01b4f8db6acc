package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

const docsIntroduction = `# The holdfast command

This page is what ` + "`--help`" + ` prints, for all commands; a test keeps them equal
(` + "`go test ./starter -run TestCommandsPage -update`" + ` writes it anew).

Flags may stand before or after arguments. What follows ` + "`--`" + ` is never a flag. Settings come from flags, then
` + "`HOLDFAST_*`" + ` variables, then ` + "`holdfast.yaml`" + `; connection settings for Temporal are Temporal's own
(` + "`TEMPORAL_ADDRESS`" + `, ` + "`TEMPORAL_NAMESPACE`" + `, TLS, API keys, profiles), else those of the stack that ` + "`holdfast dev`" + ` runs.

` + "`holdfast.yaml`" + ` may hold: state_dir, codec_key, control_recipient, owner, stores (a list), policy, master_key, dns
(a list), private_zones (a list), gcs_endpoint, ca_file, engine,
metrics_address, shared_volumes, snapshot_every, double_write. A name that is not known is an error.

Output is for people unless ` + "`-o json`" + ` asks for JSON, whose fields are only ever added. Progress and notes go to
standard error. ` + "`NO_COLOR`" + ` is honoured.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage; nothing was done |
| 3 | not found |
| 4 | refused (a conflict, or not in this state); nothing was changed |
| 5 | the time to wait is over, or Ctrl-C; the operation goes on |
| 6 | done, but something is owed or was left out, which is named |

` + "`exec`" + ` and ` + "`shell`" + ` end with the status of what they ran.
`

// TestCommandsPage keeps docs/commands.md equal to --help.
func TestCommandsPage(t *testing.T) {
	var page strings.Builder
	page.WriteString(docsIntroduction)
	section := func(path []string) {
		p := newTestProgram(t, &fakeControl{})
		if code := p.run(append(append([]string{}, path...), "--help")...); code != exitDone {
			t.Fatalf("%v --help: exit code %d: %s", path, code, p.errs.String())
		}
		title := strings.Join(append([]string{"holdfast"}, path...), " ")
		fmt.Fprintf(&page, "\n## %s\n\n```\n", title)
		for line := range strings.Lines(p.out.String()) {
			page.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
		page.WriteString("```\n")
	}
	section(nil)
	var walk func(path []string, commands []*cli.Command)
	walk = func(path []string, commands []*cli.Command) {
		for _, command := range commands {
			if command.Hidden {
				continue
			}
			here := append(append([]string{}, path...), command.Name)
			if len(command.Subcommands) > 0 {
				walk(here, command.Subcommands)
				continue
			}
			section(here)
		}
	}
	walk(nil, newTestProgram(t, &fakeControl{}).app().Commands)

	path := filepath.Join("..", "docs", "commands.md")
	if *update {
		if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(page.String(), string(got)); diff != "" {
		t.Errorf("docs/commands.md is not what --help prints:\n%s", diff)
	}
}

// TestEveryCommandIsDescribed proves that no command or flag is without words.
func TestEveryCommandIsDescribed(t *testing.T) {
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, command := range commands {
			if command.Usage == "" {
				t.Errorf("%s %s has no words", path, command.Name)
			}
			for _, flag := range command.Flags {
				if described, ok := flag.(cli.DocGenerationFlag); !command.Hidden && (!ok || described.GetUsage() == "") {
					t.Errorf("%s %s %v has no words", path, command.Name, flag.Names())
				}
			}
			walk(path+" "+command.Name, command.Subcommands)
		}
	}
	walk("holdfast", newTestProgram(t, &fakeControl{}).app().Commands)
}
