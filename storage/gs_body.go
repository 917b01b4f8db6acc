package storage

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// gsBodies is a transport that lets nobody read a request's body once its answer is there. net/http may go on sending a
// body after the answer came early (a 503, say) or the request failed, and Google's client fills the same buffer with
// the next chunk meanwhile: bytes of one chunk could go out as another. The service's checksum would catch that, at the
// price of the whole upload.
type gsBodies struct{ base http.RoundTripper }

func (t *gsBodies) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.Body == nil || q.ContentLength <= 0 { // single requests, whose length is not known, own what they send
		return t.base.RoundTrip(q)
	}
	use := &bodyUse{}
	guarded := q.WithContext(q.Context())
	guarded.Body = &guardedBody{ReadCloser: q.Body, use: use, left: q.ContentLength}
	if q.GetBody != nil {
		guarded.GetBody = func() (io.ReadCloser, error) {
			body, err := q.GetBody()
			if err != nil {
				return nil, err
			}
			return &guardedBody{ReadCloser: body, use: use, left: q.ContentLength}, nil
		}
	}
	defer use.end()
	return t.base.RoundTrip(guarded)
}

// bodyUse says whether a body may still be read.
type bodyUse struct {
	mu    sync.Mutex
	ended bool
}

func (u *bodyUse) end() {
	u.mu.Lock() // waits for a read that is under way
	defer u.mu.Unlock()
	u.ended = true
}

// errBodyEnded is what a transport gets that goes on sending after the answer; it closes the connection then.
var errBodyEnded = errors.New("the request was answered before all of it was sent")

type guardedBody struct {
	io.ReadCloser
	use  *bodyUse
	left int64 // bytes that have not been read
}

func (b *guardedBody) Read(p []byte) (int, error) {
	b.use.mu.Lock()
	defer b.use.mu.Unlock()
	if b.use.ended {
		if b.left == 0 {
			return 0, io.EOF // all was sent; an error would spoil the answer that is being read
		}
		return 0, errBodyEnded
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
