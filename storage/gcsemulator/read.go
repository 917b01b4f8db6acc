package gcsemulator

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"
)

func (q *request) get() *apiError {
	o, apiErr := q.e.existing(q, q.op.Bucket, q.op.Object, "if", true)
	if apiErr != nil {
		return apiErr
	}
	q.answer(http.StatusOK, nil, o.meta.resource())
	return nil
}

// media sends content, or a range of it.
func (q *request) media() *apiError {
	var o *object
	var file *os.File
	for {
		var apiErr *apiError
		if o, apiErr = q.e.existing(q, q.op.Bucket, q.op.Object, "if", true); apiErr != nil {
			return apiErr
		}
		var err error
		if file, err = os.Open(o.path); err == nil {
			break
		}
		if _, now, _ := q.e.find(q.op.Bucket, q.op.Object); !errors.Is(err, fs.ErrNotExist) || now == o {
			return internalError("reading an object", err)
		} // else it was replaced or deleted between the two steps
	}
	defer file.Close()
	first, length, apiErr := parseRange(q.Header.Get("Range"), o.meta.Size)
	if apiErr != nil {
		q.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", o.meta.Size))
		return apiErr
	}
	status := http.StatusOK
	header := q.w.Header()
	if length != o.meta.Size || q.Header.Get("Range") != "" && o.meta.Size > 0 {
		status = http.StatusPartialContent
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+length-1, o.meta.Size))
	}
	q.loseOrKeep(status)
	header.Set("Content-Type", o.meta.ContentType)
	if o.meta.ContentType == "" {
		header.Set("Content-Type", "application/octet-stream")
	}
	for name, value := range map[string]string{
		"Content-Encoding": o.meta.ContentEncoding, "Content-Disposition": o.meta.ContentDisposition,
		"Content-Language": o.meta.ContentLanguage, "Cache-Control": o.meta.CacheControl,
	} {
		if value != "" {
			header.Set(name, value)
		}
	}
	header.Set("Content-Length", strconv.FormatInt(length, 10))
	header.Set("Accept-Ranges", "bytes")
	header.Set("ETag", `"`+o.meta.etag()+`"`)
	header.Set("Last-Modified", o.meta.Updated.Format(http.TimeFormat))
	header.Set("X-Goog-Generation", strconv.FormatInt(o.meta.Generation, 10))
	header.Set("X-Goog-Metageneration", strconv.FormatInt(o.meta.Metageneration, 10))
	header.Set("X-Goog-Stored-Content-Length", strconv.FormatInt(o.meta.Size, 10))
	header.Set("X-Goog-Stored-Content-Encoding", "identity")
	header.Set("X-Goog-Storage-Class", o.meta.StorageClass)
	header.Add("X-Goog-Hash", "crc32c="+o.meta.CRC32C)
	if o.meta.MD5 != "" {
		header.Add("X-Goog-Hash", "md5="+o.meta.MD5)
	}
	for key, value := range o.meta.Metadata {
		header.Set("X-Goog-Meta-"+key, value)
	}
	q.w.WriteHeader(status)
	if q.Method == http.MethodHead {
		return nil
	}
	if _, err := file.Seek(first, io.SeekStart); err != nil {
		panic(http.ErrAbortHandler) // the status is out; a cut is the only way to say it
	}
	if _, err := io.CopyN(q.w, file, length); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// parseRange reads a Range header with one range; what is no such thing is ignored, as the standard says.
func parseRange(text string, size int64) (first, length int64, _ *apiError) {
	span, ok := strings.CutPrefix(text, "bytes=")
	from, to, ok2 := strings.Cut(strings.TrimSpace(span), "-")
	if !ok || !ok2 || strings.Contains(span, ",") {
		return 0, size, nil
	}
	beyond := &apiError{http.StatusRequestedRangeNotSatisfiable, "requestedRangeNotSatisfiable", "Request range not satisfiable"}
	if from == "" {
		n, err := strconv.ParseInt(to, 10, 64)
		if err != nil {
			return 0, size, nil
		}
		if n <= 0 || size == 0 {
			return 0, 0, beyond
		}
		n = min(n, size)
		return size - n, n, nil
	}
	a, err := strconv.ParseInt(from, 10, 64)
	if err != nil || a < 0 {
		return 0, size, nil
	}
	last := size - 1
	if to != "" {
		b, err := strconv.ParseInt(to, 10, 64)
		if err != nil || b < a {
			return 0, size, nil
		}
		last = min(last, b)
	}
	if a >= size {
		return 0, 0, beyond
	}
	return a, last - a + 1, nil
}

// list gives one page of a bucket, in order of names, with what shares a prefix up to the delimiter as one entry.
func (q *request) list() *apiError {
	prefix, delimiter := q.query.Get("prefix"), q.query.Get("delimiter")
	start, end := q.query.Get("startOffset"), q.query.Get("endOffset")
	if q.query.Get("matchGlob") != "" {
		return badRequest("matchGlob is not supported")
	}
	size := q.e.options.PageSize
	if text := q.query.Get("maxResults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return badRequest("Invalid value for maxResults: %q", text)
		}
		if n > 0 {
			size = min(size, n)
		}
	}
	after := "" // the last entry of the page before
	if token := q.query.Get("pageToken"); token != "" {
		data, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return badRequest("Invalid page token")
		}
		after = string(data)
	}
	q.e.mu.Lock()
	b := q.e.buckets[q.op.Bucket]
	if b == nil {
		q.e.mu.Unlock()
		return noBucket()
	}
	names := b.sorted()
	items, prefixes, next := []any{}, []string{}, ""
	last := after
	for i := sort.SearchStrings(names, max(prefix, start, after)); i < len(names); i++ {
		name := names[i]
		if !strings.HasPrefix(name, prefix) || end != "" && name >= end {
			break
		}
		group := ""
		if delimiter != "" {
			if at := strings.Index(name[len(prefix):], delimiter); at >= 0 {
				group = name[:len(prefix)+at+len(delimiter)]
			}
		}
		if after != "" && (name <= after || group != "" && group <= after) || group != "" && group == last {
			continue
		}
		if len(items)+len(prefixes) == size {
			next = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		if group != "" {
			prefixes, last = append(prefixes, group), group
		} else {
			items, last = append(items, b.objects[name].meta.resource()), name
		}
	}
	q.e.mu.Unlock()
	answer := map[string]any{"kind": "storage#objects"}
	if len(items) > 0 {
		answer["items"] = items
	}
	if len(prefixes) > 0 {
		answer["prefixes"] = prefixes
	}
	if next != "" {
		answer["nextPageToken"] = next
	}
	q.answer(http.StatusOK, nil, answer)
	return nil
}

func (b *bucket) resource() any {
	return map[string]any{
		"kind": "storage#bucket", "id": b.name, "name": b.name, "location": "US", "locationType": "multi-region",
		"storageClass": "STANDARD", "metageneration": "1", "projectNumber": "0", "etag": "CAE=",
		"timeCreated": b.created.Format(time.RFC3339Nano), "updated": b.created.Format(time.RFC3339Nano),
	}
}
