package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/s3gateway"
	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// gateway is the one versitygw of this package's tests.
var gateway struct {
	once sync.Once
	err  error
	root string
	*s3gateway.Gateway
}

func TestMain(m *testing.M) {
	code := m.Run()
	if gateway.Gateway != nil {
		_ = gateway.Stop()
	}
	if gateway.root != "" {
		_ = os.RemoveAll(gateway.root)
	}
	os.Exit(code)
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// s3Server gives the endpoint of the gateway, after building it when that was never done, and sets the credentials.
func s3Server(t *testing.T) string {
	t.Helper()
	gateway.once.Do(func() {
		if gateway.root, gateway.err = os.MkdirTemp("", "holdfast-s3-"); gateway.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
		defer cancel()
		gateway.Gateway, gateway.err = s3gateway.Start(ctx, s3gateway.Options{Root: gateway.root, Progress: testLog{t}})
	})
	if gateway.err != nil {
		storagetest.Missing(t, "versitygw", "no S3 server: "+gateway.err.Error())
	}
	s3Credentials(t, gateway.AccessKey, gateway.SecretKey)
	return gateway.Endpoint
}

// s3Credentials keeps everything else of the environment that the AWS SDK looks at out of a test.
func s3Credentials(t *testing.T, access, secret string) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "",
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
}

var buckets atomic.Int64

// bucket makes a bucket, which is a directory to the gateway.
func bucket(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	require.NoError(t, os.Mkdir(filepath.Join(gateway.root, name), 0o700))
	return name
}

func newS3(t *testing.T, bucket, prefix string, config storage.S3Config) storage.Provider {
	t.Helper()
	p, err := storage.NewS3(t.Context(), bucket, prefix, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func TestS3Suite(t *testing.T) {
	endpoint := s3Server(t)
	missing := func(t *testing.T) storage.Provider {
		return newS3(t, "no-such-bucket", "", storage.S3Config{Endpoint: endpoint})
	}
	t.Run("bucket", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) storage.Provider {
			return newS3(t, bucket(t), "", storage.S3Config{Endpoint: endpoint})
		}, storagetest.WithMissing(missing))
	})
	t.Run("address", func(t *testing.T) { // one address configures a store, here below a prefix
		storagetest.Run(t, func(t *testing.T) storage.Provider {
			p, err := storage.Open(t.Context(), "s3://"+bucket(t)+"/workspaces/one?endpoint="+endpoint, storage.OpenOptions{})
			require.NoError(t, err)
			return p
		})
	})
	// An answer to HEAD cannot say what is missing: it is found out.
	_, err := missing(t).Stat(t.Context(), "x")
	require.ErrorIs(t, err, storage.ErrBucketNotFound)
}

func TestS3WrongCredentials(t *testing.T) {
	endpoint := s3Server(t)
	name := bucket(t)
	s3Credentials(t, gateway.AccessKey, "planted-wrong-secret")
	p := newS3(t, name, "", storage.S3Config{Endpoint: endpoint})
	_, err := p.Put(t.Context(), "x", []byte("x"), storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrPermission)
	require.False(t, storage.Retryable(err))
	require.NotContains(t, err.Error(), "planted-wrong-secret")
	_, err = p.Stat(t.Context(), "x")
	require.ErrorIs(t, err, storage.ErrPermission)
	require.ErrorIs(t, p.List(t.Context(), "", nil), storage.ErrPermission)
}

// trip is a transport that can spoil requests.
type trip struct {
	next http.RoundTripper
	do   func(r *http.Request, next http.RoundTripper) (*http.Response, error)
}

func (s trip) RoundTrip(r *http.Request) (*http.Response, error) { return s.do(r, s.next) }

func spoil(do func(r *http.Request, next http.RoundTripper) (*http.Response, error)) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper { return trip{next, do} }
}

// An answer that is lost after the server has stored the object: the next try finds the key taken by itself
// (invariant 8); by somebody else it is a conflict.
func TestS3LostAnswer(t *testing.T) {
	endpoint := s3Server(t)
	name := bucket(t)
	honest := newS3(t, name, "", storage.S3Config{Endpoint: endpoint})
	var puts atomic.Int64
	p := newS3(t, name, "", storage.S3Config{Endpoint: endpoint, Wrap: spoil(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if r.Method == http.MethodPut && puts.Add(1) == 1 && err == nil {
			_ = response.Body.Close()
			return nil, syscall.ECONNRESET
		}
		return response, err
	})})
	data := bytes.Repeat([]byte("lost"), 1000)
	_, err := p.Put(t.Context(), "x", data, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	require.EqualValues(t, 1, puts.Load(), "what is there is looked at before it is sent again")
	got, err := storage.ReadAll(t.Context(), honest, "x", 0, -1)
	require.NoError(t, err)
	require.Equal(t, data, got)
}

// Bytes that change on the way are refused by the server, and nothing is stored.
func TestS3DamagedOnTheWay(t *testing.T) {
	endpoint := s3Server(t)
	name := bucket(t)
	honest := newS3(t, name, "", storage.S3Config{Endpoint: endpoint})
	var damaged atomic.Int64
	p := newS3(t, name, "", storage.S3Config{Endpoint: endpoint, RetryFor: time.Millisecond, Wrap: spoil(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		if r.Method == http.MethodPut {
			data, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			data[len(data)/2] ^= 1
			damaged.Add(1)
			r = r.Clone(r.Context())
			r.Body = io.NopCloser(bytes.NewReader(data))
		}
		return next.RoundTrip(r)
	})})
	_, err := p.Put(t.Context(), "x", []byte("content"), storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrIntegrity)
	require.True(t, storage.Retryable(err))
	require.Positive(t, damaged.Load())
	_, err = honest.Stat(t.Context(), "x")
	require.ErrorIs(t, err, storage.ErrNotFound)
}

// A server that answers with another checksum, or with none, is not believed.
func TestS3LyingServer(t *testing.T) {
	endpoint := s3Server(t)
	name := bucket(t)
	const header = "X-Amz-Checksum-Crc32c"
	for _, test := range []struct {
		lie    func(http.Header)
		stored func(*http.Request) // what happens to the object behind the answer
		want   error
	}{
		{func(h http.Header) { h.Set(header, "AAAAAA==") }, nil, storage.ErrIntegrity},
		{func(h http.Header) { h.Set(header, "nonsense") }, nil, storage.ErrIntegrity},
		{func(h http.Header) { h.Del(header) }, nil, nil}, // read back, and right
		{func(h http.Header) { h.Del(header) }, func(*http.Request) {
			require.NoError(t, os.WriteFile(filepath.Join(gateway.root, name, "x"), []byte("other"), 0o600))
		}, storage.ErrIntegrity},
	} {
		p := newS3(t, name, "", storage.S3Config{Endpoint: endpoint, RetryFor: time.Millisecond, Wrap: spoil(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			response, err := next.RoundTrip(r)
			if err == nil && r.Method == http.MethodPut {
				test.lie(response.Header)
				if test.stored != nil {
					test.stored(r)
				}
			}
			return response, err
		})})
		_, err := p.Put(t.Context(), "x", []byte("12345"), storage.PutOptions{})
		if test.want == nil {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, test.want)
		}
	}
}

// What servers answer and what it means, from canned answers.
func TestS3Answers(t *testing.T) {
	s3Credentials(t, "key", "secret")
	for _, test := range []struct {
		status    int
		code      string
		want      error // nil: none of the sentinels, transient
		tries     int
		retryable bool
	}{
		{404, "NoSuchBucket", storage.ErrBucketNotFound, 1, false},
		{404, "NoSuchKey", storage.ErrNotFound, 1, false},
		{403, "AccessDenied", storage.ErrPermission, 1, false},
		{403, "InvalidAccessKeyId", storage.ErrPermission, 1, false},
		{403, "SomethingNew", storage.ErrPermission, 1, false},
		{401, "Unauthorized", storage.ErrPermission, 1, false},
		{400, "BadDigest", storage.ErrIntegrity, 2, true},
		{507, "InsufficientStorage", storage.ErrNoSpace, 1, false},
		{403, "QuotaExceeded", storage.ErrNoSpace, 1, false},
		{301, "PermanentRedirect", storage.ErrInvalid, 1, false},
		{400, "KeyTooLongError", storage.ErrInvalid, 1, false},
		{400, "ExpiredToken", nil, 2, true},
		{403, "RequestTimeTooSkewed", nil, 2, true},
		{503, "SlowDown", nil, 2, true},
		{500, "InternalError", nil, 2, true},
		{409, "ConditionalRequestConflict", nil, 2, true},
	} {
		t.Run(test.code, func(t *testing.T) {
			var tries atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tries.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(test.status)
				_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, test.code)
			}))
			t.Cleanup(server.Close)
			p := newS3(t, "bucket", "", storage.S3Config{Endpoint: server.URL, RetryFor: 300 * time.Millisecond})
			_, err := p.Put(t.Context(), "x", []byte("x"), storage.PutOptions{CreateOnly: true})
			require.Error(t, err)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			require.Equal(t, test.retryable, storage.Retryable(err), "%v", err)
			require.GreaterOrEqual(t, tries.Load(), int64(test.tries))
			if test.tries == 1 {
				require.EqualValues(t, 1, tries.Load())
			}
		})
	}
}

// Retry-After is waited for, within bounds: a server cannot hold a backup up for an hour.
func TestS3RetryAfter(t *testing.T) {
	s3Credentials(t, "key", "secret")
	for _, after := range []string{"1", "3600"} {
		var times []time.Time
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if times = append(times, time.Now()); len(times) == 1 {
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.WriteString(w, `<Error><Code>SlowDown</Code></Error>`)
				return
			}
			w.Header().Set("X-Amz-Checksum-Crc32c", r.Header.Get("X-Amz-Checksum-Crc32c"))
		}))
		t.Cleanup(server.Close)
		p := newS3(t, "bucket", "", storage.S3Config{Endpoint: server.URL, RetryAfterAtMost: 1200 * time.Millisecond})
		_, err := p.Put(t.Context(), "x", []byte("x"), storage.PutOptions{})
		require.NoError(t, err)
		require.Len(t, times, 2)
		require.GreaterOrEqual(t, times[1].Sub(times[0]), 990*time.Millisecond)
		require.Less(t, times[1].Sub(times[0]), time.Minute)
	}
}

// A server that refuses a create-only write before it has read all of it may cut the connection before its answer is
// read, each time anew. The outcome is found by looking at what is there (invariant 8).
func TestS3RefusedBeforeItIsSent(t *testing.T) {
	s3Credentials(t, "key", "secret")
	there := bytes.Repeat([]byte("there"), 1<<20)
	var puts atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			w.Header().Set("Content-Length", strconv.Itoa(len(there)))
			_, _ = w.Write(there)
			return
		}
		puts.Add(1)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_ = conn.(*net.TCPConn).SetLinger(0) // so that closing resets it
		_ = conn.Close()
	}))
	t.Cleanup(server.Close)
	p := newS3(t, "bucket", "", storage.S3Config{Endpoint: server.URL})
	_, err := p.Put(t.Context(), "x", there, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	_, err = p.Put(t.Context(), "x", []byte("another"), storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrExists)
	require.EqualValues(t, 2, puts.Load())
	// What is to be replaced is another matter.
	p = newS3(t, "bucket", "", storage.S3Config{Endpoint: server.URL, RetryFor: time.Millisecond})
	_, err = p.Put(t.Context(), "x", there, storage.PutOptions{})
	require.Error(t, err)
	require.True(t, storage.Retryable(err))
}

// Bodies that end early, ranges that are ignored, and listings out of order are errors.
func TestS3BadReads(t *testing.T) {
	s3Credentials(t, "key", "secret")
	list := func(truncated bool, keys ...string) string {
		var text strings.Builder
		fmt.Fprintf(&text, `<ListBucketResult><IsTruncated>%v</IsTruncated>`, truncated)
		for _, key := range keys {
			fmt.Fprintf(&text, `<Contents><Key>%s</Key><Size>1</Size></Contents>`, key)
		}
		return text.String() + `</ListBucketResult>`
	}
	answer := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Has("list-type"):
			_, _ = io.WriteString(w, answer)
		case r.Header.Get("Range") != "": // ignored
			_, _ = io.WriteString(w, "0123456789")
		default:
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "only this")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	p := newS3(t, "bucket", "", storage.S3Config{Endpoint: server.URL, RetryFor: time.Millisecond})
	_, err := storage.ReadAll(t.Context(), p, "x", 0, -1)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = storage.ReadAll(t.Context(), p, "x", 3, 4)
	require.ErrorIs(t, err, storage.ErrIntegrity)
	none := func(storage.Object) error { return nil }
	answer = list(false, "a", "b")
	require.NoError(t, p.List(t.Context(), "", none))
	answer = list(false, "b", "a")
	require.ErrorIs(t, p.List(t.Context(), "", none), storage.ErrIntegrity)
	answer = list(true, "a", "b") // more, but no token
	require.ErrorIs(t, p.List(t.Context(), "", none), storage.ErrIntegrity)
	answer = list(false, "a", "b")[:60]
	require.Error(t, p.List(t.Context(), "", none))
}

// The resolver's connections are the ones that are used, for the bucket's name too.
func TestS3DialContext(t *testing.T) {
	endpoint := s3Server(t)
	name := bucket(t)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(endpoint, "http://"))
	require.NoError(t, err)
	var dialled atomic.Value
	p := newS3(t, name, "", storage.S3Config{Endpoint: "http://storage.holdfast.test:" + port, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Store(address)
		return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(endpoint, "http://"))
	}})
	_, err = p.Put(t.Context(), "x", []byte("x"), storage.PutOptions{})
	require.NoError(t, err)
	require.Equal(t, "storage.holdfast.test:"+port, dialled.Load())
}
