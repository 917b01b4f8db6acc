package main

import "testing"

// What a node says beside a command is not among what the command prints.
func TestNoticesAreNotOutput(t *testing.T) {
	p := newTestProgram(t, &fakeControl{grants: grants("n1")})
	p.ports["n1"] = &fakeDataPort{content: "out\n", notices: []string{"workspace web is paused: x", "workspace web goes on"}}
	if code := p.run("exec", "web", "--", "cat"); code != exitDone {
		t.Errorf("exit code %d: %s", code, p.errs.String())
	}
	if p.out.String() != "out\n" {
		t.Errorf("standard output is %q", p.out.String())
	}
	if got, want := p.errs.String(), "note: workspace web is paused: x\nnote: workspace web goes on\n"; got != want {
		t.Errorf("standard error is %q, want %q", got, want)
	}
}

// On a raw terminal a line begins where it should, and where standard error goes elsewhere the person is told on the terminal.
func TestNoticesOnATerminal(t *testing.T) {
	for name, stderrTerminal := range map[string]bool{"both": true, "standard error is a file": false} {
		t.Run(name, func(t *testing.T) {
			p := newTestProgram(t, &fakeControl{})
			p.stdoutTerminal, p.stderrTerminal = true, stderrTerminal
			p.notice(true)("paused\nby its node")
			terminal, other := p.out.String(), p.errs.String()
			if stderrTerminal {
				terminal, other = other, terminal
			}
			if terminal != "\r\nnote: paused\r\nby its node\r\n" || other != "" {
				t.Errorf("the terminal got %q, the other %q", terminal, other)
			}
		})
	}
}
