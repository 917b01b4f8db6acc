package main

import (
	"strings"
	"testing"
)

// The flag says what the command says.
func TestVersion(t *testing.T) {
	var said []string
	for _, word := range []string{"version", "--version"} {
		p := newTestProgram(t, &fakeControl{})
		if code := p.run(word); code != exitDone || p.errs.String() != "" {
			t.Errorf("%s: exit code %d: %s", word, code, p.errs.String())
		}
		said = append(said, p.out.String())
	}
	if said[0] != said[1] || !strings.HasPrefix(said[0], "holdfast ") {
		t.Errorf("they say %q", said)
	}
}
