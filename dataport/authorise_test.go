package dataport

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

func try(c *Client, verb Verb) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	var err error
	switch verb {
	case VerbExec:
		_, err = c.Exec(ctx, ExecRequest{Command: []string{"true"}}, Streams{})
	case VerbShell:
		_, err = c.Shell(ctx, ExecRequest{}, Streams{})
	case VerbLogs:
		err = c.Logs(ctx, engine.LogOptions{}, io.Discard)
	case VerbDownload:
		err = c.Download(ctx, DownloadRequest{}, func(DownloadInfo) (io.Writer, error) { return io.Discard, nil })
	case VerbUpload:
		_, err = c.Upload(ctx, strings.NewReader("x"))
	}
	return err
}

func okHost() *fakeHost {
	return &fakeHost{
		exec: func(context.Context, Claims, ExecRequest, Streams) (int, error) { return 0, nil },
		logs: func(context.Context, Claims, engine.LogOptions, io.Writer) error { return nil },
		download: func(_ context.Context, _ Claims, _ DownloadRequest, begin BeginDownload) error {
			_, err := begin(DownloadInfo{Source: SourceLive})
			return err
		},
		upload: func(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
			n, err := io.Copy(io.Discard, r)
			return UploadResult{Files: 1, Bytes: n}, err
		},
	}
}

// Every token opens its own verb on its own node and nothing else.
func TestEveryVerbWithEveryToken(t *testing.T) {
	host := okHost()
	h := start(t, host, nil)
	for _, permitted := range Verbs() {
		for _, asked := range Verbs() {
			before := host.calls.Load()
			err := try(h.client(permitted), asked)
			if permitted == asked {
				require.NoError(t, err, asked)
				continue
			}
			require.ErrorIs(t, err, ErrForbidden, "%s with a token for %s", asked, permitted)
			require.Equal(t, before, host.calls.Load(), "the host was not asked")
		}
	}
}

func TestRefusedTokens(t *testing.T) {
	host := okHost()
	h := start(t, host, nil)
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)

	other := h.claims(VerbDownload)
	other.Node = "node-b"
	expired := h.claims(VerbDownload)
	expired.Expires = time.Now().Add(-time.Hour)
	foreignText, err := Sign(foreign, h.claims(VerbDownload))
	require.NoError(t, err)
	good := h.sign(h.claims(VerbDownload))

	for name, test := range map[string]struct {
		token string
		want  error
	}{
		"other node": {h.sign(other), ErrForbidden},
		"expired":    {h.sign(expired), ErrExpired},
		"foreign":    {foreignText, ErrUnauthorized},
		"tampered":   {good[:20] + "AAAA" + good[24:], ErrUnauthorized},
		"nonsense":   {"nonsense", ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, try(h.clientWith(test.token), VerbDownload), test.want)
		})
	}
	require.Zero(t, host.calls.Load(), "the host was not asked")
}

func TestTokensThatChangeThingsAreForOneUse(t *testing.T) {
	h := start(t, okHost(), nil)
	for _, verb := range Verbs() {
		client := h.client(verb)
		require.NoError(t, try(client, verb))
		if err := try(client, verb); verb.changes() {
			require.ErrorIs(t, err, ErrReplayed, verb)
		} else {
			require.NoError(t, err, verb)
		}
	}
}

func TestUsedTokensAreForgottenOnlyWhenExpired(t *testing.T) {
	var used nonces
	now := time.Now()
	require.NoError(t, used.use("a", now.Add(time.Minute), now))
	for i := range maxNonces - 1 {
		require.NoError(t, used.use(strconv.Itoa(i), now.Add(time.Hour), now))
	}
	require.ErrorIs(t, used.use("b", now.Add(time.Hour), now), ErrBusy)
	require.ErrorIs(t, used.use("a", now.Add(time.Minute), now), ErrReplayed)
	later := now.Add(time.Minute + ClockSkew + time.Second) // "a" cannot be shown any more: it has expired
	require.NoError(t, used.use("b", now.Add(time.Hour), later))
}

func TestKeyNotKnownYet(t *testing.T) {
	h := start(t, okHost(), func(o *ServerOptions) {
		o.VerifyKey = func() (ed25519.PublicKey, bool) { return nil, false }
	})
	require.ErrorIs(t, try(h.client(VerbLogs), VerbLogs), ErrUnavailable)
}

// A server with another certificate gets neither the token nor the request.
func TestWrongFingerprintLearnsNothing(t *testing.T) {
	real := start(t, okHost(), nil)
	text, err := makeCertificate("rogue")
	require.NoError(t, err)
	certificate, err := tls.X509KeyPair(text, text)
	require.NoError(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	require.NoError(t, err)
	var heard atomic.Int64
	rogue := make(chan struct{})
	go func() {
		defer close(rogue)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, conn)
		heard.Store(n)
		conn.Close()
	}()
	client, err := Dial(listener.Addr().String(), real.server.Fingerprint(), real.sign(real.claims(VerbUpload)))
	require.NoError(t, err)
	require.ErrorIs(t, try(client, VerbUpload), ErrWrongFingerprint)
	soon(t, rogue, "the rogue server's connection to end")
	listener.Close()
	require.Zero(t, heard.Load())
}

func TestOnlyTLS13(t *testing.T) {
	h := start(t, okHost(), nil)
	_, err := tls.Dial("tcp", h.server.Address(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	require.ErrorContains(t, err, "protocol version")
}

func TestNothingAnswers(t *testing.T) {
	h := start(t, okHost(), nil)
	client, err := Dial("127.0.0.1:1", h.server.Fingerprint(), "hf1.a.b")
	require.NoError(t, err)
	require.ErrorIs(t, try(client, VerbLogs), ErrUnreachable)
}

func TestBadClientOptions(t *testing.T) {
	good := strings.Repeat("0a", 32)
	for _, test := range [][3]string{
		{"no-port", good, "t"}, {"h:1", "abc", "t"}, {"h:1", good + "00", "t"}, {"h:1", good, ""}, {"h:1", good, "a\r\nb: c"}, {"h:1", good, "a b"},
	} {
		_, err := Dial(test[0], test[1], test[2])
		require.ErrorIs(t, err, ErrInvalid, "%q", test)
	}
}

// What does not speak the protocol is told so, without the host.
func TestPlainRequests(t *testing.T) {
	host := okHost()
	h := start(t, host, nil)
	for name, test := range map[string]struct {
		head   string
		status int
	}{
		"no upgrade":  {"GET /v1/logs HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"no token":    {"GET /v1/logs HTTP/1.1\r\nHost: x\r\nUpgrade: " + upgradeProtocol + "\r\nConnection: Upgrade\r\n\r\n", 401},
		"other path":  {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"post":        {"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nUpgrade: " + upgradeProtocol + "\r\n\r\n", 400},
		"huge header": {"GET /v1/logs HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", h.server.Address(), &tls.Config{InsecureSkipVerify: true})
			require.NoError(t, err)
			defer conn.Close()
			go io.WriteString(conn, test.head)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			defer response.Body.Close()
			require.Equal(t, test.status, response.StatusCode)
			if response.StatusCode != 431 {
				require.NoError(t, json.NewDecoder(response.Body).Decode(&RemoteError{}))
			}
		})
	}
	require.Zero(t, host.calls.Load())
}

// Who connects and says nothing, or upgrades and asks nothing, is let go.
func TestSilentConnectionsEnd(t *testing.T) {
	t.Parallel()
	host := okHost()
	h := start(t, host, func(o *ServerOptions) { o.timing.open = 100 * time.Millisecond })
	raw, err := net.Dial("tcp", h.server.Address())
	require.NoError(t, err)
	defer raw.Close()
	raw.SetReadDeadline(time.Now().Add(waitLimit))
	_, err = io.ReadAll(raw)
	require.False(t, isTimeout(err), "a connection without a handshake ends")

	// Long enough for a busy machine to open the stream.
	h = start(t, host, func(o *ServerOptions) { o.timing.open = 3 * time.Second })
	client := h.client(VerbExec)
	frames, err := client.open(context.Background(), VerbExec)
	require.NoError(t, err)
	defer closeNow(frames)
	for err == nil {
		_, _, err = frames.read()
	}
	require.False(t, isTimeout(err), "a stream without a request ends")
	require.Zero(t, host.calls.Load())
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestDownloadStaysWithinTheToken(t *testing.T) {
	var got atomic.Value
	host := okHost()
	host.download = func(_ context.Context, c Claims, r DownloadRequest, begin BeginDownload) error {
		got.Store(r.Path)
		_, err := begin(DownloadInfo{})
		return err
	}
	h := start(t, host, nil)
	claims := h.claims(VerbDownload)
	claims.Path = "src/app"
	client := h.clientWith(h.sign(claims))
	ask := func(path string) error {
		return client.Download(context.Background(), DownloadRequest{Path: path}, func(DownloadInfo) (io.Writer, error) { return io.Discard, nil })
	}
	require.NoError(t, ask(""))
	require.Equal(t, "src/app", got.Load())
	require.NoError(t, ask("src/app/main.go"))
	require.Equal(t, "src/app/main.go", got.Load())
	before := host.calls.Load()
	require.ErrorIs(t, ask("src"), ErrForbidden)
	require.ErrorIs(t, ask("src/app/../../etc"), ErrInvalid)
	require.Equal(t, before, host.calls.Load())
}
