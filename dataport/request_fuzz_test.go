package dataport

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// spoken is a connection on which a peer has said something and then closed it.
type spoken struct {
	net.Conn
	said *bytes.Reader
}

func (s spoken) Read(p []byte) (int, error)      { return s.said.Read(p) }
func (s spoken) SetReadDeadline(time.Time) error { return nil }

func listening(said []byte) *frameConn {
	conn := spoken{said: bytes.NewReader(said)}
	return &frameConn{conn: conn, r: bufio.NewReader(conn), silence: time.Minute}
}

func frame(kind frameType, payload string) []byte {
	return frameBytes(kind, uint32(len(payload)), []byte(payload))
}

// FuzzRequest: whatever a client sends first, a request that is accepted asks for what its token's verb allows and for
// nothing that the engine or the content could misread; an error never quotes a value.
func FuzzRequest(f *testing.F) {
	verbs := []Verb{VerbExec, VerbShell, VerbLogs, VerbDownload, VerbUpload}
	f.Add(0, "", []byte(`{"exec":{"command":["a","b"],"environment":{"A":"topsecret"}}}`))
	f.Add(0, "", []byte(`{"exec":{"command":["a\u0000"]}}`))
	f.Add(1, "", []byte(`{"exec":{"environment":{"":"x"}}}`))
	f.Add(2, "", []byte(`{"logs":{"Tail":-1}}`))
	f.Add(3, "a/b", []byte(`{"download":{"path":"a/b/../c"}}`))
	f.Add(3, "a", []byte(`{"download":{"path":"ab"}}`))
	f.Add(3, "", []byte(`{"download":{"path":"a//./b/"}}`))
	f.Add(4, "", []byte(`[`))
	f.Fuzz(func(t *testing.T, verb int, permitted string, payload []byte) {
		if len(payload) > maxRequest {
			return
		}
		claims := Claims{Verb: verbs[uint(verb)%uint(len(verbs))], Path: permitted}
		s := &stream{frames: listening(frame(frameRequest, string(payload))), claims: claims}
		request, err := s.readRequest()
		if err != nil {
			if bytes.Contains(payload, []byte("topsecret")) && strings.Contains(err.Error(), "topsecret") {
				t.Fatalf("a value is quoted: %v", err)
			}
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrForbidden) {
				t.Fatalf("%q is neither invalid nor forbidden: %v", payload, err)
			}
			return
		}
		switch claims.Verb {
		case VerbExec, VerbShell:
			if claims.Verb == VerbExec && len(request.Exec.Command) == 0 {
				t.Fatalf("%q has no command", payload)
			}
			if slices.ContainsFunc(request.Exec.Command, func(a string) bool { return strings.ContainsRune(a, 0) }) {
				t.Fatalf("%q has a zero byte in an argument", payload)
			}
			for name, value := range request.Exec.Environment {
				if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
					t.Fatalf("%q sets %q", payload, name)
				}
			}
		case VerbLogs:
			if request.Logs.Tail < 0 {
				t.Fatalf("%q wants %d lines", payload, request.Logs.Tail)
			}
		case VerbDownload:
			path := request.Download.Path
			within, _ := cleanPath(permitted)
			if strings.HasPrefix(path, "/") || strings.Contains("/"+path+"/", "/../") || strings.ContainsRune(path, 0) ||
				within != "" && path != within && !strings.HasPrefix(path, within+"/") {
				t.Fatalf("%q of a token for %q gives %q", payload, permitted, path)
			}
		case VerbUpload:
		}
	})
}

// FuzzAnswerOfANode: whatever a node says, a client ends with a result only when the node sent one, else with an error that says
// what is wrong, and writes only output that was asked for.
func FuzzAnswerOfANode(f *testing.F) {
	f.Add(append(frame(frameStdout, "out"), frame(frameResult, `{"exit_code":3}`)...))
	f.Add(append(frame(framePing, ""), frame(frameError, `{"code":"not-here","message":"\u001b[31mred"}`)...))
	f.Add(append(frame(frameBegin, `{}`), frame(frameResult, `[]`)...))
	f.Add(append(frame(frameCredit, "\xff\xff\xff\xff"), frame(frameCredit, "\xff\xff\xff\xff")...))
	f.Add(frame(frameStderr, "cut")[:6])
	f.Fuzz(func(t *testing.T, said []byte) {
		var stdout bytes.Buffer
		r := &running{frames: listening(said), credit: make(chan uint32, 1), done: make(chan struct{})}
		r.stdout, r.hasInput = &stdout, true
		end, err := r.receive()
		results := bytes.Contains(said, []byte{byte(frameResult)})
		var refusal *RemoteError
		switch {
		case err == nil && !results:
			t.Fatalf("%+v out of %q", end, said)
		case errors.As(err, &refusal) && strings.ContainsFunc(refusal.Message, func(c rune) bool { return c == 0x1b }):
			t.Fatalf("a message of a node could move the cursor: %q", refusal.Message)
		}
		if stdout.Len() > len(said) {
			t.Fatalf("%d bytes were written out of %d", stdout.Len(), len(said))
		}
	})
}
