package storage

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// watchedTransport tells a circuit how each request ended: the clients above try one call several times in place, and
// who can do without the provider need not wait until they have given up.
type watchedTransport struct {
	base    http.RoundTripper
	circuit *circuit
	// retryAfterAtMost, when above 0, is how long at most an answer that asks to be left alone for a while is held back:
	// the client above begins its next try when it gets it, and knows nothing of that header.
	retryAfterAtMost time.Duration
}

func (t *watchedTransport) RoundTrip(q *http.Request) (*http.Response, error) {
	began := time.Now()
	answer, err := t.base.RoundTrip(q)
	switch {
	case err != nil:
		t.note(q.Context(), began, err)
		return answer, err
	case passing(answer.StatusCode):
		t.note(q.Context(), began, fmt.Errorf("%s %s: %s", q.Method, q.URL.Host, answer.Status))
		if wait := min(retryAfter(answer.Header, time.Now()), t.retryAfterAtMost); wait > 0 {
			if err := sleep(q.Context(), wait); err != nil {
				_ = answer.Body.Close() // it is an error's
				return nil, err
			}
		}
	default:
		t.note(q.Context(), began, nil)
	}
	return answer, nil
}

func (t *watchedTransport) note(ctx context.Context, began time.Time, err error) {
	if t.circuit != nil {
		t.circuit.noted(ctx, began, err)
	}
}

// passing reports whether a status says that the same request may be answered later.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusInsufficientStorage:
		return false
	}
	return status >= 500
}

// retryAfter is what an answer asks to wait, as seconds or as a date, 0 when it does not. A date is compared with the
// answer's own, not with this machine's clock.
func retryAfter(header http.Header, now time.Time) time.Duration {
	asked := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(asked); err == nil {
		return time.Duration(min(max(seconds, 0), 1<<20)) * time.Second
	}
	until, err := http.ParseTime(asked)
	if err != nil {
		return 0
	}
	if said, err := http.ParseTime(header.Get("Date")); err == nil {
		now = said
	}
	return max(until.Sub(now), 0)
}
