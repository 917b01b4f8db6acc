package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// The scripts ask this very program what fits, so that they never need an update. They are for one fixed name: shells
// look completions up by it.
const (
	bashCompletion = `# holdfast completion for bash; load it with: source <(holdfast completion bash)
_holdfast_complete() {
  local current="${COMP_WORDS[COMP_CWORD]}" words options
  words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  if [[ "$current" == -* ]]; then
    options=$("${words[@]}" "$current" --generate-bash-completion 2>/dev/null)
  else
    options=$("${words[@]}" --generate-bash-completion 2>/dev/null)
  fi
  COMPREPLY=()
  while IFS= read -r option; do
    [[ -n "$option" && "$option" == "$current"* ]] && COMPREPLY+=("$option")
  done <<<"$options"
}
complete -o bashdefault -o default -F _holdfast_complete holdfast
`
	zshCompletion = `#compdef holdfast
# holdfast completion for zsh; load it with: source <(holdfast completion zsh)
_holdfast() {
  local -a options
  local current="${words[CURRENT]}"
  if [[ "$current" == -* ]]; then
    options=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 "${words[@]:0:$((CURRENT-1))}" "$current" --generate-bash-completion 2>/dev/null)}")
  else
    options=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 "${words[@]:0:$((CURRENT-1))}" --generate-bash-completion 2>/dev/null)}")
  fi
  if [[ -n "${options[1]}" ]]; then
    _describe 'values' options
  else
    _files
  fi
}
if [[ "$funcstack[1]" == "_holdfast" ]]; then _holdfast "$@"; else compdef _holdfast holdfast; fi
`
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script", ArgsUsage: "bash|zsh|fish",
		BashComplete: func(*cli.Context) { fmt.Fprintln(p.stdout, "bash\nzsh\nfish") },
		Action: func(c *cli.Context) error {
			given, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			var script string
			switch given[0] {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				if script, err = c.App.ToFishCompletion(); err != nil {
					return fmt.Errorf("writing the completion for fish: %w", err)
				}
			default:
				return usage("completion: no script for %q: want bash, zsh or fish", given[0])
			}
			_, err = fmt.Fprint(p.stdout, script)
			return err
		},
	}
}

// completeWithin bounds how long a person who pressed the tab key waits for names.
const completeWithin = 2 * time.Second

// completeName offers flags after a dash, else the names of workspaces. It says nothing when it cannot.
func (p *program) completeName(c *cli.Context) {
	if len(p.typed) > 1 && strings.HasPrefix(p.typed[len(p.typed)-2], "-") { // before completionFlag
		cli.DefaultCompleteWithFlags(c.Command)(c)
		return
	}
	if c.NArg() > 0 {
		return // the name is there already
	}
	ctx, cancel := context.WithTimeout(c.Context, completeWithin)
	defer cancel()
	s, err := loadSettings(c)
	if err != nil {
		return
	}
	connection, err := p.connect(ctx, c, s)
	if err != nil {
		return
	}
	defer connection.Close()
	names, err := connection.Workspaces(ctx)
	if err != nil {
		return
	}
	for _, line := range names {
		fmt.Fprintln(p.stdout, line.Name)
	}
}
