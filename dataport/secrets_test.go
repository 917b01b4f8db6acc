package dataport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What nobody may see is planted everywhere that a secret passes, the host breaks every rule, and neither the log nor an
// error has it.
func TestPlantedSecretsStayHidden(t *testing.T) {
	const (
		value    = "planted-environment-value-5b1f"
		argument = "planted-argument-91ac"
		input    = "planted-input-77d0"
		password = "planted-sealed-password-2e2e"
	)
	quote := func(r ExecRequest) string {
		return fmt.Sprintf("running with V=%s: refused", r.Environment["V"])
	}
	behaviours := map[string]func(context.Context, Claims, ExecRequest, Streams) (int, error){
		"well": func(_ context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
			_, err := io.ReadAll(s.Stdin)
			return 0, err
		},
		"error": func(_ context.Context, _ Claims, r ExecRequest, _ Streams) (int, error) {
			return 0, errors.New(quote(r))
		},
		"panic": func(_ context.Context, _ Claims, r ExecRequest, _ Streams) (int, error) { panic(quote(r)) },
		"request": func(_ context.Context, _ Claims, r ExecRequest, _ Streams) (int, error) {
			return 0, fmt.Errorf("%+v %v", r, r)
		},
	}
	for name, exec := range behaviours {
		t.Run(name, func(t *testing.T) {
			h := start(t, &fakeHost{exec: exec}, nil)
			claims := h.claims(VerbExec)
			claims.Sealed = []byte(password)
			token := h.sign(claims)
			client := h.clientWith(token)
			request := ExecRequest{Command: []string{"tool", argument}, Environment: map[string]string{"V": value, "SHORT": "1"}}
			_, err := client.Exec(context.Background(), request, Streams{Stdin: strings.NewReader(input)})
			_, again := client.Exec(context.Background(), request, Streams{}) // refused: used already
			require.ErrorIs(t, again, ErrReplayed)

			// The log is complete only when the server is down.
			require.NoError(t, h.server.Shutdown(context.Background()))
			seen := h.log.String() + fmt.Sprint(err, again)
			for _, secret := range []string{value, input, password, token, token[4:40], token[len(token)-40:]} {
				require.NotContains(t, seen, secret)
			}
			require.NotContains(t, h.log.String(), argument)
			// The audit line is there: who, what, where.
			require.Contains(t, h.log.String(), `msg="data port: authorised" subject=alice verb=exec workspace=alice/api workspace_id=ws-1 instance=7`)
			if name == "error" {
				require.ErrorContains(t, err, "running with V=[secret]: refused", "the rest of the message arrives")
			}
		})
	}
}

func TestRefusalsAreLoggedWithoutTheToken(t *testing.T) {
	h := start(t, okHost(), nil)
	token := h.sign(h.claims(VerbLogs))
	err := try(h.clientWith(token[:len(token)-8]+"AAAAAAAA"), VerbLogs)
	require.ErrorIs(t, err, ErrUnauthorized)
	require.Contains(t, h.log.String(), `msg="data port: refused" verb=logs`)
	require.NotContains(t, h.log.String()+err.Error(), token[4:30])
}

func TestFormatsHideSecrets(t *testing.T) {
	const secret = "planted-format-secret"
	request := ExecRequest{Command: []string{"tool", secret}, Environment: map[string]string{"V": secret}}
	client, err := Dial("127.0.0.1:1", strings.Repeat("0", 64), secret)
	require.NoError(t, err)
	for _, value := range []any{request, &request, client, []any{request, client}, map[string]any{"r": request}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			require.NotContains(t, fmt.Sprintf(verb, value), secret)
		}
		for _, handler := range []func(io.Writer) slog.Handler{
			func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
			func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		} {
			var log bytes.Buffer
			slog.New(handler(&log)).Info("x", "request", request, "client", client)
			require.NotContains(t, log.String(), secret)
		}
	}
}

func TestMessagesAreHarmless(t *testing.T) {
	require.Equal(t, "a?[31mb?\n\tc", printable("a\x1b[31mb\xff\n\tc"))
	require.Less(t, len(printable(strings.Repeat("é", maxMessage))), maxMessage+10)
	r := newRedactor("", ExecRequest{Environment: map[string]string{"A": "abcd", "B": "abcdef", "C": "x"}})
	require.Equal(t, "[secret] [secret] x", r.clean("abcdef abcd x"))
}
