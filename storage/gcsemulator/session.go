package gcsemulator

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// sessionLife is how long an unfinished resumable upload is kept, and the answer to a finished one.
const sessionLife = 7 * 24 * time.Hour

// session is one resumable upload. Its content is collected in a file; what has been received is that file's size, so
// that an upload goes on after a restart.
type session struct {
	id       string
	mu       sync.Mutex // one request at a time
	active   sync.Mutex // guards current
	current  *http.ResponseController
	declared sessionRecord
	file     *os.File
	sums     *digest
	done     *objectMeta // set when it has become an object: the answer to every later request
}

// sessionRecord is what is kept of a session on disk.
type sessionRecord struct {
	Meta       objectMeta `json:"meta"`
	Declared   checksums  `json:"declared"`
	Conditions conditions `json:"conditions"`
	Created    time.Time  `json:"created"`
}

// startSession begins a resumable upload and gives its address.
func (q *request) startSession() *apiError {
	meta, declared, apiErr := q.uploadMeta(q.Body)
	if apiErr != nil {
		return apiErr
	}
	if apiErr := validateObjectName(q.op.Object); apiErr != nil {
		return apiErr
	}
	meta.Bucket, meta.Name = q.op.Bucket, q.op.Object
	if meta.ContentType == "" {
		meta.ContentType = q.Header.Get("X-Upload-Content-Type")
	}
	declared.fromHeader(q.Header)
	conds, apiErr := parseConditions(q.query, "if")
	if apiErr != nil {
		return apiErr
	}
	_, o, apiErr := q.e.find(meta.Bucket, meta.Name)
	if apiErr != nil {
		return apiErr
	}
	if apiErr := conds.check(o, false); apiErr != nil { // checked again at the end; early is kinder
		return apiErr
	}
	s := &session{id: rand.Text(), sums: newDigest()}
	meta.Upload = s.id
	s.declared = sessionRecord{meta, declared, conds, time.Now().UTC()}
	record, _ := json.Marshal(s.declared)
	file, err := os.OpenFile(q.e.stagedPath(s.id), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return internalError("beginning an upload", err)
	}
	s.file = file
	if err := q.e.writeDurably(q.e.sessionPath(s.id), record); err != nil {
		s.closeFile()
		_ = os.Remove(q.e.stagedPath(s.id))
		return internalError("beginning an upload", err)
	}
	q.e.mu.Lock()
	q.e.sessions[s.id] = s
	q.e.mu.Unlock()

	scheme := "http"
	if q.TLS != nil {
		scheme = "https"
	}
	location := url.URL{Scheme: scheme, Host: q.Host, Path: q.URL.Path, RawPath: q.URL.RawPath}
	location.RawQuery = url.Values{"uploadType": {"resumable"}, "name": {meta.Name}, "upload_id": {s.id}}.Encode()
	q.op.Upload = s.id
	q.answer(http.StatusOK, http.Header{"Location": {location.String()}, "X-Guploader-Uploadid": {s.id}}, nil)
	return nil
}

// routeSession finds out what a request to a session wants.
func (q *request) routeSession(id string) (func() *apiError, *apiError) {
	q.op.Upload, q.op.Kind, q.op.Range = id, OpUploadChunk, q.Header.Get("Content-Range")
	q.e.mu.Lock()
	s := q.e.sessions[id]
	q.e.mu.Unlock()
	if s == nil || s.declared.Meta.Bucket != q.op.Bucket {
		return nil, notFound("No such upload: %s", id)
	}
	q.op.Object = s.declared.Meta.Name
	switch q.Method {
	case http.MethodDelete:
		q.op.Kind = OpUploadCancel
		return func() *apiError { return q.cancelSession(s) }, nil
	case http.MethodPost, http.MethodPut:
	default:
		return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", q.Method + " is not allowed here"}
	}
	if q.op.Range == "" { // the whole rest in one request
		return func() *apiError { return q.chunk(s, contentRange{0, -1, -1}, true) }, nil
	}
	r, err := parseContentRange(q.op.Range)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if r.first < 0 && r.total < 0 {
		q.op.Kind = OpUploadStatus
	}
	return func() *apiError { return q.chunk(s, r, r.total >= 0) }, nil
}

// take makes this request the one that works on the session. A request whose client has gone may still wait for the
// rest of its body; the newer one ends that wait, as it is the client's present wish.
func (s *session) take(w http.ResponseWriter) func() {
	s.active.Lock()
	if s.current != nil {
		_ = s.current.SetReadDeadline(time.Now())
	}
	s.active.Unlock()
	s.mu.Lock()
	s.active.Lock()
	s.current = http.NewResponseController(w)
	s.active.Unlock()
	return func() {
		s.active.Lock()
		s.current = nil
		s.active.Unlock()
		s.mu.Unlock()
	}
}

// chunk receives a part of a resumable upload, or answers how far it is. Bytes that are here already are counted and
// dropped, so that a chunk whose answer was lost can be sent again; final says that the total size is known.
func (q *request) chunk(s *session, r contentRange, final bool) *apiError {
	defer s.take(q.w)()
	offset := max(r.first, 0)
	if r.first < 0 {
		offset = s.size()
	}
	counted := q.e.stats.begin(q, offset)
	var stored *object
	var apiErr *apiError
	whole := false
	defer func() { counted.end(whole, stored, asError(apiErr)) }()

	if s.done != nil { // a repeat after its answer was lost
		if apiErr = q.receive(q.Body, counted, io.Discard); apiErr == nil {
			whole = true
			q.answer(http.StatusOK, nil, s.done.resource())
		}
		return apiErr
	}
	if s.file == nil {
		apiErr = notFound("No such upload: %s", s.id)
		return apiErr
	}
	length := int64(-1) // without a Content-Range
	switch {
	case r.first < 0:
		length = 0
	case r.last >= 0:
		length = r.last - r.first + 1
	}
	switch {
	case offset > s.size():
		apiErr = badRequest("Invalid request. According to the Content-Range header, the upload offset is %d byte(s), "+
			"which exceeds already uploaded size of %d byte(s).", offset, s.size())
		return apiErr
	case r.first >= 0 && !final && length%(256<<10) != 0:
		apiErr = badRequest("Invalid request. The number of bytes uploaded is required to be equal or greater than 262144, " +
			"except for the final request (it's recommended to be the exact multiple of 262144).")
		return apiErr
	}
	body := io.Reader(q.Body)
	if length >= 0 {
		body = io.LimitReader(body, length)
	}
	skip := &skipper{skip: s.size() - offset, to: s}
	if apiErr = q.receive(body, counted, skip); apiErr != nil {
		return apiErr
	}
	if length >= 0 && counted.record.Received < length {
		apiErr = badRequest("Invalid request. %d bytes were received where Content-Range says %d.", counted.record.Received, length)
		return apiErr
	}
	if !final || r.total >= 0 && s.size() < r.total {
		q.incomplete(s)
		return nil
	}
	whole = true
	if stored, apiErr = q.finish(s, r.total); apiErr == nil {
		q.answer(http.StatusOK, nil, stored.meta.resource())
	}
	return apiErr
}

// skipper drops the first bytes.
type skipper struct {
	skip int64
	to   io.Writer
}

func (k *skipper) Write(p []byte) (int, error) {
	n := int(min(k.skip, int64(len(p))))
	k.skip -= int64(n)
	if n == len(p) {
		return n, nil
	}
	m, err := k.to.Write(p[n:])
	return n + m, err
}

// incomplete says how much has been received, in the form that the client asked for.
func (q *request) incomplete(s *session) {
	header := http.Header{}
	if s.size() > 0 {
		header.Set("Range", fmt.Sprintf("bytes=0-%d", s.size()-1))
	}
	status := http.StatusPermanentRedirect
	if q.Header.Get("X-GUploader-No-308") == "yes" {
		status = http.StatusOK
		header.Set("X-Http-Status-Code-Override", "308")
	}
	q.answer(status, header, nil)
}

// finish verifies the whole content and makes it the object. An upload that fails for good is forgotten.
func (q *request) finish(s *session, total int64) (*object, *apiError) {
	record := s.declared
	record.Declared.fromHeader(q.Header)
	if total >= 0 && s.size() > total {
		return nil, badRequest("Invalid request. %d bytes were received where Content-Range says %d in all.", s.size(), total)
	}
	if apiErr := s.sums.verify(&record.Meta, record.Declared); apiErr != nil {
		q.e.forget(s)
		return nil, apiErr
	}
	if err := q.e.sync(s.file); err != nil {
		return nil, internalError("finishing an upload", err)
	}
	o, apiErr := q.e.commit(record.Meta, q.e.stagedPath(s.id), record.Conditions)
	if apiErr != nil {
		if apiErr.status == http.StatusPreconditionFailed || apiErr.status == http.StatusNotFound {
			q.e.forget(s)
		}
		return nil, apiErr
	}
	s.closeFile()
	s.done = &o.meta
	return o, nil
}

func (q *request) cancelSession(s *session) *apiError {
	defer s.take(q.w)()
	if s.done == nil {
		q.e.forget(s)
	}
	q.answer(499, nil, nil)
	return nil
}

// forget drops an unfinished session. Its lock is held.
func (e *Emulator) forget(s *session) {
	s.closeFile()
	_ = os.Remove(e.sessionPath(s.id)) // first: content without a record is removed at the next start
	_ = os.Remove(e.stagedPath(s.id))
	e.mu.Lock()
	delete(e.sessions, s.id)
	e.mu.Unlock()
}

func (s *session) size() int64 {
	if s.sums == nil {
		return 0
	}
	return s.sums.size
}

// Write adds to the end of the content.
func (s *session) Write(p []byte) (int, error) {
	n, err := s.file.WriteAt(p, s.sums.size)
	_, _ = s.sums.Write(p[:n])
	return n, err
}

func (s *session) closeFile() {
	if s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
}

// loadSessions takes up the uploads that were under way when the emulator last ended. loadBuckets comes before it.
func (e *Emulator) loadSessions() error {
	finished := map[string]*objectMeta{}
	for _, b := range e.buckets {
		for _, o := range b.objects {
			if o.meta.Upload != "" {
				finished[o.meta.Upload] = &o.meta
			}
		}
	}
	entries, err := os.ReadDir(e.uploadsDir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		id, isRecord := strings.CutSuffix(entry.Name(), metaSuffix)
		if !isRecord {
			continue
		}
		s, err := e.loadSession(id, finished[id])
		if err != nil {
			return fmt.Errorf("upload %s: %w", id, err)
		}
		if s != nil {
			e.sessions[id] = s
		}
	}
	for _, entry := range entries { // content of single-request uploads, and what has no session any more
		id, isContent := strings.CutSuffix(entry.Name(), dataSuffix)
		if s := e.sessions[id]; isContent && s != nil && s.done == nil || strings.HasSuffix(entry.Name(), metaSuffix) {
			continue
		}
		if err := os.Remove(filepath.Join(e.uploadsDir(), entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// loadSession gives nil for a session that has ended.
func (e *Emulator) loadSession(id string, done *objectMeta) (*session, error) {
	data, err := os.ReadFile(e.sessionPath(id))
	if err != nil {
		return nil, err
	}
	s := &session{id: id, done: done, sums: newDigest()}
	if err := json.Unmarshal(data, &s.declared); err != nil {
		return nil, err
	}
	if time.Since(s.declared.Created) > sessionLife {
		return nil, os.Remove(e.sessionPath(id))
	}
	if done != nil {
		return s, nil
	}
	s.file, err = os.OpenFile(e.stagedPath(id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) { // finished, and the object has been replaced or deleted since
		return nil, os.Remove(e.sessionPath(id))
	}
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(s.sums, s.file); err != nil {
		s.closeFile()
		return nil, err
	}
	return s, nil
}
