package gcsemulator

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequests: whatever is asked of the emulator, it answers with something that is no failure of its own; what is refused
// leaves the objects as they were, and what has been accepted is listed under a name that is valid, with the size that a
// read of it has.
func FuzzRequests(f *testing.F) {
	e, err := New(Options{Dir: f.TempDir(), Buckets: []string{"bucket"}, PageSize: 7})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = e.Close() })
	multipart := "--x\r\nContent-Type: application/json\r\n\r\n{\"name\":\"a\",\"crc32c\":\"yZRlqg==\"}\r\n--x\r\nContent-Type: text/plain\r\n\r\nhello\r\n--x--\r\n"
	f.Add("POST", "/upload/storage/v1/b/bucket/o?uploadType=multipart", "multipart/related; boundary=x", "", []byte(multipart))
	f.Add("POST", "/upload/storage/v1/b/bucket/o?uploadType=media&name=b&ifGenerationMatch=0", "", "", []byte("hello"))
	f.Add("POST", "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=c", "", "bytes 0-4/5", []byte("{}"))
	f.Add("PUT", "/bucket/d", "", "bytes */*", []byte("hello"))
	f.Add("GET", "/storage/v1/b/bucket/o?prefix=a&delimiter=/&maxResults=-1&pageToken=%ff", "", "", []byte(nil))
	f.Add("GET", "/storage/v1/b/bucket/o/a?alt=media", "", "bytes=1-", []byte(nil))
	f.Add("GET", "/bucket/a", "", "bytes=-99999999999999999999", []byte(nil))
	f.Add("PATCH", "/storage/v1/b/bucket/o/a", "", "", []byte(`{"metadata":{"a":null},"contentType":3}`))
	f.Add("POST", "/storage/v1/b/bucket/o/a/rewriteTo/b/bucket/o/e?rewriteToken=x", "", "", []byte(`{}`))
	f.Add("DELETE", "/storage/v1/b/bucket/o/a?ifGenerationMatch=x", "", "", []byte(nil))
	f.Add("POST", "/storage/v1/b?project=p", "", "", []byte(`{"name":"../x"}`))
	f.Add("GET", "/storage/v1/b/bucket/o/%2e%2e%2fx?alt=media", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, method, target, kind, span string, body []byte) {
		at, err := url.Parse(target)
		if err != nil || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "//") || len(body) > 1<<16 {
			return
		}
		before := listing(t, e)
		r, err := http.NewRequest(method, "http://emulator"+target, bytes.NewReader(body))
		if err != nil {
			return
		}
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Range", span)
		r.Header.Set("Content-Range", span)
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Fatalf("%s %s: %d %s", method, at, w.Code, w.Body)
		}
		after := listing(t, e)
		if w.Code >= 400 && !equal(before, after) {
			t.Fatalf("%s %s was refused (%d) and changed %v to %v", method, at, w.Code, before, after)
		}
		for name, size := range after {
			if err := validateObjectName(name); err != nil {
				t.Fatalf("an object is called %q: %v", name, err)
			}
			read := httptest.NewRecorder()
			e.ServeHTTP(read, httptest.NewRequest("GET", "http://emulator/storage/v1/b/bucket/o/"+url.PathEscape(name)+"?alt=media", nil))
			if read.Code != http.StatusOK || int64(read.Body.Len()) != size {
				t.Fatalf("%q is listed with %d bytes and read as %d with %d", name, size, read.Code, read.Body.Len())
			}
			if len(after) > 20 { // every later request looks at all of them
				e.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("DELETE", "http://emulator/storage/v1/b/bucket/o/"+url.PathEscape(name), nil))
			}
		}
	})
}

func equal(a, b map[string]int64) bool {
	for name, size := range a {
		if other, ok := b[name]; !ok || other != size {
			return false
		}
	}
	return len(a) == len(b)
}

// listing is what the bucket's listing says, page by page.
func listing(t *testing.T, e *Emulator) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for token := ""; ; {
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest("GET", "http://emulator/storage/v1/b/bucket/o?pageToken="+url.QueryEscape(token), nil))
		var page struct {
			Items []struct {
				Name string `json:"name"`
				Size int64  `json:"size,string"`
			} `json:"items"`
			Next string `json:"nextPageToken"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK {
			t.Fatalf("listing: %d %s (%v)", w.Code, w.Body, err)
		}
		for _, item := range page.Items {
			all[item.Name] = item.Size
		}
		if token = page.Next; token == "" {
			return all
		}
	}
}
