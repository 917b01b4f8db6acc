package gcsemulator

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// pieceSize is how much of an upload is read at a time; also the burst of the speed limit.
const pieceSize = 32 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksums are those that a client declares of its content; empty means none.
type checksums struct {
	CRC32C string
	MD5    string
}

// fromHeader adds what an X-Goog-Hash header declares.
func (c *checksums) fromHeader(header http.Header) {
	for _, line := range header.Values("X-Goog-Hash") {
		for _, part := range strings.Split(line, ",") {
			kind, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch kind {
			case "crc32c":
				c.CRC32C = value
			case "md5":
				c.MD5 = value
			}
		}
	}
}

// digest computes both checksums of a stream.
type digest struct {
	crc  uint32
	md5  hash.Hash
	size int64
}

func newDigest() *digest { return &digest{md5: md5.New()} }

func (d *digest) Write(p []byte) (int, error) {
	d.crc = crc32.Update(d.crc, castagnoli, p)
	d.size += int64(len(p))
	return d.md5.Write(p)
}

// verify compares the content with what was declared and puts the checksums into meta.
func (d *digest) verify(meta *objectMeta, declared checksums) *apiError {
	crc, sum := encodeCRC32C(d.crc), base64.StdEncoding.EncodeToString(d.md5.Sum(nil))
	if declared.CRC32C != "" && declared.CRC32C != crc {
		return badRequest("Provided CRC32C %q doesn't match calculated CRC32C %q.", declared.CRC32C, crc)
	}
	if declared.MD5 != "" && declared.MD5 != sum {
		return badRequest("Provided MD5 hash %q doesn't match calculated MD5 hash %q.", declared.MD5, sum)
	}
	meta.CRC32C, meta.MD5, meta.Size = crc, sum, d.size
	return nil
}

// routeUpload serves /upload/storage/v1/b/BUCKET/o.
func (q *request) routeUpload() (func() *apiError, *apiError) {
	q.op.Object = q.query.Get("name")
	if id := q.query.Get("upload_id"); id != "" {
		return q.routeSession(id)
	}
	if q.Method != http.MethodPost && q.Method != http.MethodPut {
		return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", q.Method + " is not allowed here"}
	}
	switch kind := q.query.Get("uploadType"); kind {
	case "resumable":
		q.op.Kind = OpUploadStart
		return q.startSession, nil
	case "multipart":
		q.op.Kind = OpInsert
		return q.insertMultipart, nil
	case "media":
		q.op.Kind = OpInsert
		return func() *apiError {
			meta := objectMeta{ContentType: q.Header.Get("Content-Type")}
			return q.insert(meta, checksums{}, q.Body)
		}, nil
	default:
		return nil, badRequest("Invalid uploadType %q", kind)
	}
}

// uploadMeta reads the metadata that a client sends for a new object.
func (q *request) uploadMeta(body io.Reader) (objectMeta, checksums, *apiError) {
	var sent struct {
		Name               string            `json:"name"`
		CRC32C             string            `json:"crc32c"`
		MD5                string            `json:"md5Hash"`
		ContentType        string            `json:"contentType"`
		ContentEncoding    string            `json:"contentEncoding"`
		ContentDisposition string            `json:"contentDisposition"`
		ContentLanguage    string            `json:"contentLanguage"`
		CacheControl       string            `json:"cacheControl"`
		CustomTime         string            `json:"customTime"`
		StorageClass       string            `json:"storageClass"`
		Metadata           map[string]string `json:"metadata"`
	}
	data, err := io.ReadAll(io.LimitReader(body, 1<<20))
	if err == nil && len(bytes.TrimSpace(data)) > 0 {
		err = json.Unmarshal(data, &sent)
	}
	if err != nil {
		return objectMeta{}, checksums{}, badRequest("The object's metadata cannot be read: %v", err)
	}
	if q.op.Object == "" {
		q.op.Object = sent.Name
	}
	meta := objectMeta{
		ContentType: sent.ContentType, ContentEncoding: sent.ContentEncoding, ContentDisposition: sent.ContentDisposition,
		ContentLanguage: sent.ContentLanguage, CacheControl: sent.CacheControl, CustomTime: sent.CustomTime,
		StorageClass: sent.StorageClass, Metadata: sent.Metadata,
	}
	return meta, checksums{CRC32C: sent.CRC32C, MD5: sent.MD5}, nil
}

// insertMultipart is a single request with a part of metadata and a part of content.
func (q *request) insertMultipart() *apiError {
	mediaType, params, err := mime.ParseMediaType(q.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mediaType, "multipart/") || params["boundary"] == "" {
		return badRequest("Content-Type %q is not multipart", q.Header.Get("Content-Type"))
	}
	parts := multipart.NewReader(q.Body, params["boundary"])
	first, err := parts.NextRawPart()
	if err != nil {
		return badRequest("The metadata part cannot be read: %v", err)
	}
	meta, declared, apiErr := q.uploadMeta(first)
	if apiErr != nil {
		return apiErr
	}
	second, err := parts.NextRawPart()
	if err != nil {
		return badRequest("The content part cannot be read: %v", err)
	}
	if meta.ContentType == "" {
		meta.ContentType = second.Header.Get("Content-Type")
	}
	return q.insert(meta, declared, second)
}

// insert stores an object in one request: nothing is visible before all of it is there and verified.
func (q *request) insert(meta objectMeta, declared checksums, body io.Reader) *apiError {
	if apiErr := validateObjectName(q.op.Object); apiErr != nil {
		return apiErr
	}
	meta.Bucket, meta.Name = q.op.Bucket, q.op.Object
	declared.fromHeader(q.Header)
	conds, apiErr := parseConditions(q.query, "if")
	if apiErr != nil {
		return apiErr
	}
	if _, _, apiErr := q.e.find(meta.Bucket, meta.Name); apiErr != nil {
		return apiErr
	}
	staged, err := os.CreateTemp(q.e.uploadsDir(), "single-*.part")
	if err != nil {
		return internalError("receiving an upload", err)
	}
	defer func() {
		_ = staged.Close()
		_ = os.Remove(staged.Name())
	}()
	counted := q.e.stats.begin(q, 0)
	var stored *object
	whole := false
	defer func() { counted.end(whole, stored, asError(apiErr)) }()

	sums := newDigest()
	if apiErr = q.receive(body, counted, io.MultiWriter(staged, sums)); apiErr != nil {
		return apiErr
	}
	whole = true
	if apiErr = sums.verify(&meta, declared); apiErr != nil {
		return apiErr
	}
	if err := q.e.sync(staged); err != nil {
		apiErr = internalError("receiving an upload", err)
		return apiErr
	}
	if stored, apiErr = q.e.commit(meta, staged.Name(), conds); apiErr != nil {
		return apiErr
	}
	q.answer(http.StatusOK, nil, stored.meta.resource())
	return nil
}

// asError keeps a nil *apiError from becoming an error that is not nil.
func asError(err *apiError) error {
	if err == nil {
		return nil
	}
	return err
}

// receive copies content from the wire, counting every byte and holding the set speed. What came in before a cut has
// been written when it returns.
func (q *request) receive(body io.Reader, counted *meter, to io.Writer) *apiError {
	piece := make([]byte, pieceSize)
	for {
		n, err := body.Read(piece)
		if n > 0 {
			counted.add(piece[:n])
			if _, err := to.Write(piece[:n]); err != nil {
				return internalError("receiving an upload", err)
			}
			if err := q.e.wait(q.Context(), n); err != nil {
				return badRequest("The upload was cut: %v", err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badRequest("The upload was cut: %v", err)
		}
	}
}

// stagedPath is where the content of a resumable upload is collected.
func (e *Emulator) stagedPath(id string) string { return filepath.Join(e.uploadsDir(), id+dataSuffix) }

func (e *Emulator) sessionPath(id string) string { return filepath.Join(e.uploadsDir(), id+metaSuffix) }

// contentRange is a parsed Content-Range of a chunk. first is -1 in "bytes */…", total is -1 in "…/*".
type contentRange struct{ first, last, total int64 }

func parseContentRange(text string) (contentRange, error) {
	r := contentRange{-1, -1, -1}
	rest, ok := strings.CutPrefix(text, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return r, fmt.Errorf("%q is not a Content-Range", text)
	}
	if total != "*" {
		if _, err := fmt.Sscanf(total+" ", "%d ", &r.total); err != nil || r.total < 0 {
			return r, fmt.Errorf("%q is not a Content-Range", text)
		}
	}
	if span == "*" {
		return r, nil
	}
	if _, err := fmt.Sscanf(span+" ", "%d-%d ", &r.first, &r.last); err != nil ||
		r.first < 0 || r.last < r.first || r.total >= 0 && r.last >= r.total {
		return r, fmt.Errorf("%q is not a Content-Range", text)
	}
	return r, nil
}
