// Package gcsemulator is a small Google Cloud Storage for tests and for the one-machine stack: the JSON API, the XML
// API's reads, uploads of all three kinds, on a directory. It is built to be faithful under faults, where other
// emulators append a retried chunk twice or ignore preconditions: offsets, replays, checksums and preconditions are
// honoured, an object appears whole or not at all, and what was acknowledged survives a kill.
//
// It knows no authentication, versioning, ACLs, signed URLs or gRPC. It counts what it receives (see Stats), so that a
// test or a demonstration can say how much was uploaded again without asking who uploaded it.
package gcsemulator

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Options configures an Emulator.
type Options struct {
	// Dir keeps everything. It is made when absent. One Emulator at a time may use it.
	Dir string
	// Buckets are made when they do not exist.
	Buckets []string
	// BytesPerSecond slows down all uploads together; 0 does not. See SetBytesPerSecond.
	BytesPerSecond int64
	// PageSize is the largest page of a listing. Default 1000, as in the real service.
	PageSize int
	// NoSync leaves it to the system when to write to the disk: what was acknowledged survives the death of the process,
	// but not a loss of power. Several times faster for small objects.
	NoSync bool
	// Logger takes one debug line per request. Default: slog.Default().
	Logger *slog.Logger
}

// Emulator is the service as an http.Handler. Make it with New.
type Emulator struct {
	options Options
	lock    *os.File
	limiter *rate.Limiter
	hooks   atomic.Pointer[Hooks]
	stats   *counters
	running sync.WaitGroup
	held    holding

	commits [64]sync.Mutex // by object name: precondition and commit are one step

	mu             sync.Mutex
	buckets        map[string]*bucket
	sessions       map[string]*session
	lastGeneration int64
}

// Operation says what a request does, for hooks.
type Operation struct {
	Kind   string // one of the constants below
	Bucket string
	Object string
	Upload string // id of a resumable upload
	// Range is the Content-Range of a chunk, such as "bytes 0-262143/*".
	Range string
}

// The kinds of operation.
const (
	OpInsert       = "insert"        // single-request upload
	OpUploadStart  = "upload-start"  // of a resumable upload
	OpUploadChunk  = "upload-chunk"  // the final one included
	OpUploadStatus = "upload-status" // "bytes */*"
	OpUploadCancel = "upload-cancel"
	OpMedia        = "media" // reading content
	OpGet          = "get"   // reading metadata
	OpPatch        = "patch"
	OpDelete       = "delete"
	OpCopy         = "copy"
	OpList         = "list"
	OpBucket       = "bucket"
	OpControl      = "control" // /_stats, /_throttle, /_hold
)

// Hooks inject faults. Both may be called by many requests at once.
type Hooks struct {
	// Before runs before anything is done. When it returns true it has answered the request itself; it can also block,
	// or panic with http.ErrAbortHandler to cut the connection.
	Before func(w http.ResponseWriter, r *http.Request, op Operation) bool
	// After runs when the request has taken effect and its answer is known but not sent. When it returns false the
	// answer is lost: the connection is cut.
	After func(r *http.Request, op Operation, status int) bool
}

// SetHooks installs hooks in place of those before; the zero Hooks removes them.
func (e *Emulator) SetHooks(h Hooks) { e.hooks.Store(&h) }

// SetBytesPerSecond changes the speed of all uploads together, also of those that are under way; 0 removes the limit.
func (e *Emulator) SetBytesPerSecond(n int64) {
	if n <= 0 {
		e.limiter.SetLimit(rate.Inf)
		return
	}
	e.limiter.SetLimit(rate.Limit(n))
}

// New opens or makes the store in options.Dir.
func New(options Options) (*Emulator, error) {
	if options.Dir == "" {
		return nil, fmt.Errorf("gcs emulator: no directory given")
	}
	if options.PageSize <= 0 || options.PageSize > 1000 {
		options.PageSize = 1000
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	e := &Emulator{
		options: options, limiter: rate.NewLimiter(rate.Inf, pieceSize),
		buckets: map[string]*bucket{}, sessions: map[string]*session{},
	}
	e.SetBytesPerSecond(options.BytesPerSecond)
	e.SetHooks(Hooks{})
	for _, dir := range []string{e.bucketsDir(), e.uploadsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the gcs emulator's directory: %w", err)
		}
	}
	if err := e.open(); err != nil {
		if e.stats != nil {
			e.stats.close()
		}
		if e.lock != nil {
			e.lock.Close()
		}
		return nil, fmt.Errorf("opening the gcs emulator's directory: %w", err)
	}
	return e, nil
}

func (e *Emulator) open() error {
	var err error
	if e.lock, err = os.OpenFile(filepath.Join(e.options.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(e.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use by another emulator: %w", e.options.Dir, err)
	}
	if e.stats, err = openCounters(filepath.Join(e.options.Dir, "uploads.jsonl")); err != nil {
		return err
	}
	if err := e.loadBuckets(); err != nil {
		return err
	}
	if err := e.loadSessions(); err != nil {
		return err
	}
	for _, name := range e.options.Buckets {
		if err := e.CreateBucket(name); err != nil {
			return err
		}
	}
	return nil
}

func (e *Emulator) bucketsDir() string { return filepath.Join(e.options.Dir, "buckets") }
func (e *Emulator) uploadsDir() string { return filepath.Join(e.options.Dir, "uploads") }

// Close waits for requests under way and closes the store. End the servers first.
func (e *Emulator) Close() error {
	e.running.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sessions {
		s.closeFile()
	}
	err := e.stats.close()
	if lockErr := e.lock.Close(); err == nil {
		err = lockErr
	}
	return err
}

// request is one HTTP request on its way through the emulator.
type request struct {
	*http.Request
	e     *Emulator
	w     http.ResponseWriter
	op    Operation
	query url.Values
	xml   bool // the XML API: other error bodies
}

// ServeHTTP implements http.Handler.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.running.Add(1)
	defer e.running.Done()
	query, err := url.ParseQuery(r.URL.RawQuery)
	q := &request{Request: r, e: e, w: w, query: query}
	if err != nil {
		q.fail(badRequest("the query cannot be read: %v", err))
		return
	}
	handler, apiErr := q.route()
	if apiErr != nil {
		q.fail(apiErr)
		return
	}
	e.stats.countRequest(q.op.Kind)
	e.options.Logger.Debug("gcs emulator", "op", q.op.Kind, "bucket", q.op.Bucket, "object", q.op.Object, "range", q.op.Range)
	if !e.held.wait(q) {
		panic(http.ErrAbortHandler)
	}
	if before := e.hooks.Load().Before; before != nil && before(w, r, q.op) {
		return
	}
	if err := handler(); err != nil {
		q.fail(err)
	}
}

// segments splits a path as it came over the wire, so that an escaped slash stays inside its segment.
func segments(escaped string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	for i, part := range parts {
		text, err := url.PathUnescape(part)
		if err != nil {
			return nil, err
		}
		parts[i] = text
	}
	return parts, nil
}

// route finds the handler of a request and says what it will do.
func (q *request) route() (func() *apiError, *apiError) {
	escaped := q.URL.EscapedPath()
	parts, err := segments(escaped)
	if err != nil {
		return nil, badRequest("the path cannot be read: %v", err)
	}
	upload := false
	switch {
	case strings.HasPrefix(parts[0], "_"):
		q.op.Kind = OpControl
		return q.control(parts[0])
	case len(parts) > 3 && parts[0] == "upload" && parts[1] == "storage":
		parts, upload = parts[3:], true
	case len(parts) > 3 && parts[0] == "download" && parts[1] == "storage":
		parts = parts[3:]
		q.query.Set("alt", "media")
	case len(parts) > 2 && parts[0] == "storage" && parts[1] == "v1":
		parts = parts[2:]
	default:
		return q.routeXML(escaped)
	}
	if parts[0] != "b" {
		return nil, notFound("no such resource: %s", escaped)
	}
	if len(parts) == 1 {
		q.op.Kind = OpBucket
		return q.routeBuckets()
	}
	q.op.Bucket = parts[1]
	switch {
	case len(parts) == 2:
		q.op.Kind = OpBucket
		return q.routeBucket()
	case len(parts) == 4 && parts[2] == "iam" && parts[3] == "testPermissions" && q.Method == http.MethodGet:
		q.op.Kind = OpBucket
		return q.testPermissions, nil
	case parts[2] != "o":
		return nil, notFound("no such resource: %s", escaped)
	case len(parts) == 3 && upload:
		return q.routeUpload()
	case len(parts) == 3 && q.Method == http.MethodGet:
		q.op.Kind = OpList
		return q.list, nil
	case len(parts) == 4:
		q.op.Object = parts[3]
		return q.routeObject()
	case len(parts) == 9 && (parts[4] == "rewriteTo" || parts[4] == "copyTo") && q.Method == http.MethodPost &&
		parts[5] == "b" && parts[7] == "o":
		q.op.Kind, q.op.Object = OpCopy, parts[8]
		source, sourceBucket := parts[3], q.op.Bucket
		q.op.Bucket = parts[6]
		return func() *apiError { return q.copyFrom(sourceBucket, source, parts[4] == "rewriteTo") }, nil
	}
	return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", q.Method + " is not allowed here"}
}

func (q *request) routeObject() (func() *apiError, *apiError) {
	switch q.Method {
	case http.MethodGet, http.MethodHead:
		if q.query.Get("alt") == "media" {
			q.op.Kind = OpMedia
			return q.media, nil
		}
		q.op.Kind = OpGet
		return q.get, nil
	case http.MethodDelete:
		q.op.Kind = OpDelete
		return q.deleteObject, nil
	case http.MethodPatch, http.MethodPut:
		q.op.Kind = OpPatch
		return q.patch, nil
	}
	return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", q.Method + " is not allowed here"}
}

// routeXML serves reads of /bucket/object, where slashes of the name may come unescaped.
func (q *request) routeXML(escaped string) (func() *apiError, *apiError) {
	q.xml = true
	bucketPart, objectPart, _ := strings.Cut(strings.TrimPrefix(escaped, "/"), "/")
	name, err := url.PathUnescape(objectPart)
	if err != nil || name == "" || bucketPart == "" {
		return nil, notFound("no such resource: %s", escaped)
	}
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		return nil, &apiError{http.StatusMethodNotAllowed, "MethodNotAllowed", "only reads are served by the XML API here"}
	}
	for header, parameter := range map[string]string{
		"X-Goog-If-Generation-Match": "ifGenerationMatch", "X-Goog-If-Metageneration-Match": "ifMetagenerationMatch",
	} {
		if value := q.Header.Get(header); value != "" {
			q.query.Set(parameter, value)
		}
	}
	q.op.Kind, q.op.Bucket, q.op.Object = OpMedia, bucketPart, name
	return q.media, nil
}

// wait holds an upload back to the set speed.
func (e *Emulator) wait(ctx context.Context, n int) error {
	return e.limiter.WaitN(ctx, n)
}
