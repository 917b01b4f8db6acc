package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// TestFailedOperationsAreExplained proves that show tells an operation's failure as why does, in words and with the end of
// the chain of causes, and that what is for people already is left as it is.
func TestFailedOperationsAreExplained(t *testing.T) {
	chain := "backing up: " + strings.Repeat("sending it to a store: ", 12) + "file:///srv/store: writing pack 4f2a: no room left"
	for _, test := range []struct {
		operation workspace.Operation
		says      []string
		not       string
	}{
		{workspace.Operation{Kind: workspace.OperationStop, Failed: true, ErrorType: workspace.ErrorStoreFull, Error: chain},
			[]string{"failed: an object store has no room left", "… ", "file:///srv/store: writing pack 4f2a: no room left"}, "backing up"},
		{workspace.Operation{Kind: workspace.OperationStop, Failed: true, ErrorType: "Unheard", Error: chain},
			[]string{"failed: … ", "writing pack 4f2a: no room left"}, "backing up"},
		{workspace.Operation{Kind: workspace.OperationStop, Failed: true, ErrorType: workspace.ErrorInterrupted, Error: "given up for a later start"},
			[]string{"failed: given up for a later start"}, "took over"},
	} {
		state := someState()
		state.Recent = []workspace.Operation{test.operation}
		var out bytes.Buffer
		renderState(&out, state, testNow, false)
		_, recent, found := strings.Cut(out.String(), "recent")
		require.True(t, found, out.String())
		recent = strings.Join(strings.Fields(recent), " ")
		for _, words := range test.says {
			require.Contains(t, recent, strings.TrimSpace(words))
		}
		require.NotContains(t, recent, test.not)
	}
}
