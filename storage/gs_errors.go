package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	gcs "cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
)

// gsBudget limits the retries inside Google's client, which by itself goes on until the context ends. It counts from the
// first failure after the last success, so that a long upload that stumbles now and then goes on, and one that is stuck
// ends soon.
type gsBudget struct {
	limit time.Duration

	mu    sync.Mutex
	since time.Time // of the first failure in a row
	opens int       // requests of a download since its last byte
}

func (g *gsProvider) budget() *gsBudget { return &gsBudget{limit: g.config.RetryFor} }

func (b *gsBudget) options() []gcs.RetryOption {
	return []gcs.RetryOption{
		// Every write has a precondition and deleting twice is no error, so that all of them can be repeated.
		gcs.WithPolicy(gcs.RetryAlways),
		gcs.WithBackoff(gax.Backoff{Initial: 100 * time.Millisecond, Max: time.Second, Multiplier: 2}),
		gcs.WithErrorFunc(b.again),
	}
}

// again says whether a request that ended like this is sent once more. The client also asks it after successes.
func (b *gsBudget) again(err error) bool {
	if err == nil {
		b.progress()
		return false
	}
	if !gsTransient(err) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() {
		b.since = time.Now()
	}
	return time.Since(b.since) < b.limit
}

func (b *gsBudget) progress() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since, b.opens = time.Time{}, 0
}

// gsOpens is how often a download is begun without a single byte coming in.
const gsOpens = 20

// errGSCut ends a download that is cut again and again before its first byte. Google's client begins such a download
// anew for ever, without a pause, as every new request succeeds.
var errGSCut = errors.New("the download was cut again and again")

// open counts a request of a download and says whether it may be sent.
func (b *gsBudget) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens++
	return b.opens <= gsOpens
}

// budgetKey is where a download's context carries its budget.
type budgetKey struct{}

// gsDownloads is a transport that asks a download's budget first.
type gsDownloads struct{ base http.RoundTripper }

func (t *gsDownloads) RoundTrip(q *http.Request) (*http.Response, error) {
	if b, ok := q.Context().Value(budgetKey{}).(*gsBudget); ok && !b.open() {
		return nil, errGSCut
	}
	return t.base.RoundTrip(q)
}

// gsTransient reports whether the same request may succeed within seconds.
func gsTransient(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, errGSCut) {
		return false
	}
	var api *googleapi.Error
	if !errors.As(err, &api) {
		return true // the network, or something that is no answer of the service
	}
	switch api.Code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusInsufficientStorage:
		return false
	}
	return api.Code >= 500 || gsRateLimited(api)
}

// gsRateLimited finds the rate limits that come as 403.
// https://cloud.google.com/storage/docs/json_api/v1/status-codes
func gsRateLimited(api *googleapi.Error) bool {
	for _, item := range api.Errors {
		if item.Reason == "rateLimitExceeded" || item.Reason == "userRateLimitExceeded" {
			return true
		}
	}
	return false
}

// gsError keeps a cause and hides the address of an upload in its text: whoever has it can write the object.
type gsError struct {
	text  string
	cause error
}

func (e *gsError) Error() string { return e.text }
func (e *gsError) Unwrap() error { return e.cause }

var gsUploadID = regexp.MustCompile(`upload_id=[^&"'\s]+`)

// explain says what was being done and adds the sentinel error that fits. An object that is not there is told from a
// bucket that is not there by asking, where the answer itself does not say.
func (g *gsProvider) explain(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	cause := err
	if text := err.Error(); gsUploadID.MatchString(text) {
		cause = &gsError{text: gsUploadID.ReplaceAllString(text, "upload_id=..."), cause: err}
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%s: %w: %w", doing, ctx.Err(), cause)
	}
	if sentinel := g.classify(ctx, err); sentinel != nil && !errors.Is(err, sentinel) {
		return fmt.Errorf("%s: %w: %w", doing, sentinel, cause)
	}
	return fmt.Errorf("%s: %w", doing, cause)
}

// classify gives the sentinel error of a failure, or nil when it is transient or not known.
func (g *gsProvider) classify(ctx context.Context, err error) error {
	var api *googleapi.Error
	if !errors.As(err, &api) {
		var refused *auth.Error
		switch {
		case errors.As(err, &refused) && refused.Response != nil && refused.Response.StatusCode/100 == 4 && !refused.Temporary():
			return ErrPermission // a key that was revoked, for example
		case errors.Is(err, gcs.ErrBucketNotExist):
			return ErrBucketNotFound
		case strings.Contains(err.Error(), "bad CRC on read"):
			return ErrIntegrity
		}
		return nil
	}
	said := api.Message + " " + api.Body
	switch api.Code {
	case http.StatusNotFound:
		return g.missing(ctx, said)
	case http.StatusUnauthorized, http.StatusForbidden:
		if gsRateLimited(api) {
			return nil
		}
		for _, item := range api.Errors {
			if item.Reason == "quotaExceeded" {
				return ErrNoSpace
			}
		}
		return ErrPermission
	case http.StatusInsufficientStorage:
		return ErrNoSpace
	case http.StatusRequestEntityTooLarge:
		return ErrInvalid
	case http.StatusBadRequest:
		if strings.Contains(said, "doesn't match calculated") {
			return ErrIntegrity
		}
	}
	return nil
}

// missing decides between an object and a bucket that is not there. nil: it cannot be known now.
func (g *gsProvider) missing(ctx context.Context, said string) error {
	switch {
	case strings.Contains(said, "bucket does not exist"):
		return ErrBucketNotFound
	case strings.Contains(said, "No such object"):
		return ErrNotFound
	}
	// A listing needs no right that a backup does not need anyway; reading the bucket's own data would.
	ctx, cancel := context.WithTimeout(ctx, 2*g.config.RetryFor)
	defer cancel()
	_, err := g.client.Bucket(g.bucket).Retryer(g.budget().options()...).Objects(ctx, &gcs.Query{Prefix: g.prefix + "a"}).Next()
	var api *googleapi.Error
	switch {
	case err == nil, errors.Is(err, iterator.Done):
		return ErrNotFound
	case errors.Is(err, gcs.ErrBucketNotExist), errors.As(err, &api) && api.Code == http.StatusNotFound:
		return ErrBucketNotFound
	case errors.As(err, &api) && api.Code == http.StatusForbidden:
		return ErrNotFound // may not list, but was allowed to be told that the object is not there
	default:
		return nil
	}
}

// gsCode is the HTTP status of an error, 0 when it has none.
func gsCode(err error) int {
	var api *googleapi.Error
	if errors.As(err, &api) {
		return api.Code
	}
	return 0
}
