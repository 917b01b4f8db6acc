package dataport

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a node says to the person comes beside what the command prints, in order, and only to a client that asks for it: an older one
// would take it for a breach of the protocol.
func TestNotices(t *testing.T) {
	offered := make(chan bool, 1)
	h := start(t, &fakeHost{exec: func(_ context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
		offered <- s.Notice != nil
		io.WriteString(s.Stdout, "one ")
		if s.Notice != nil {
			s.Notice("it is paused: \x1b[2Jwhy")
			s.Notice("it goes on")
		}
		io.WriteString(s.Stdout, "two")
		return 3, nil
	}}, nil)
	var out bytes.Buffer
	var notices []string
	code, err := h.client(VerbExec).Exec(t.Context(), ExecRequest{Command: []string{"x"}}, Streams{Stdout: &out, Stderr: &out, Notice: func(text string) { notices = append(notices, text) }})
	require.NoError(t, err)
	require.Equal(t, 3, code)
	require.True(t, <-offered)
	require.Equal(t, "one two", out.String())
	require.Equal(t, []string{"it is paused: ?[2Jwhy", "it goes on"}, notices)

	out.Reset()
	code, err = h.client(VerbExec).Exec(t.Context(), ExecRequest{Command: []string{"x"}}, Streams{Stdout: &out})
	require.NoError(t, err)
	require.Equal(t, 3, code)
	require.False(t, <-offered)
	require.Equal(t, "one two", out.String())
}
