package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/cenkalti/backoff/v5"
)

// errS3Taken is the answer to a create-only write whose key is taken; Put finds out by whom.
var errS3Taken = errors.New("the key is taken")

// s3Codes says what the error codes of S3 and of the servers that speak it mean. What is not here is transient.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
var s3Codes = map[string]error{
	"NoSuchBucket":                       ErrBucketNotFound,
	"NoSuchKey":                          ErrNotFound,
	"NotFound":                           ErrNotFound, // HEAD has no body; of what, is asked separately
	"AccessDenied":                       ErrPermission,
	"AllAccessDisabled":                  ErrPermission,
	"AccountProblem":                     ErrPermission,
	"InvalidAccessKeyId":                 ErrPermission,
	"SignatureDoesNotMatch":              ErrPermission,
	"InvalidObjectState":                 ErrPermission, // archived to a class that cannot be read
	"Forbidden":                          ErrPermission,
	"InvalidBucketName":                  ErrInvalid,
	"KeyTooLongError":                    ErrInvalid,
	"InvalidURI":                         ErrInvalid,
	"EntityTooLarge":                     ErrInvalid,
	"PermanentRedirect":                  ErrInvalid, // another region's bucket
	"AuthorizationHeaderMalformed":       ErrInvalid, // the same, as some say it
	"IllegalLocationConstraintException": ErrInvalid,
	"QuotaExceeded":                      ErrNoSpace,
	"XMinioStorageFull":                  ErrNoSpace,
	"BadDigest":                          ErrIntegrity,
	"InvalidDigest":                      ErrIntegrity,
	"XAmzContentSHA256Mismatch":          ErrIntegrity,
	"XAmzContentChecksumMismatch":        ErrIntegrity,
	"IncompleteBody":                     ErrIntegrity,
	"PreconditionFailed":                 errS3Taken,
}

// explain adds the sentinel error that fits. The SDK's errors name the operation, the host and the request's id, and
// never a key or signature.
func (p *s3Provider) explain(err error) error {
	if err == nil {
		return nil
	}
	var kind error
	var api smithy.APIError
	if errors.As(err, &api) {
		kind = s3Codes[api.ErrorCode()]
	}
	if kind == nil {
		switch s3Status(err) {
		case http.StatusForbidden:
			// Credentials that have run out, and clocks that differ, come as 403 too, and mend themselves.
			if api == nil || !s3Passing[api.ErrorCode()] {
				kind = ErrPermission
			}
		case http.StatusUnauthorized:
			kind = ErrPermission
		case http.StatusInsufficientStorage:
			kind = ErrNoSpace
		case http.StatusPreconditionFailed:
			kind = errS3Taken
		case http.StatusMovedPermanently:
			kind = ErrInvalid
		}
	}
	switch {
	case kind == nil:
		return err
	case kind == ErrInvalid && s3Status(err) == http.StatusMovedPermanently:
		return fmt.Errorf("%w (is %s in another region? say so with ?region=): %w", kind, p.bucket, err)
	default:
		return fmt.Errorf("%w: %w", kind, err)
	}
}

var s3Passing = map[string]bool{"ExpiredToken": true, "TokenRefreshRequired": true, "RequestTimeTooSkewed": true, "RequestExpired": true}

// s3Status is the HTTP status of the answer, 0 when there was none.
func s3Status(err error) int {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.HTTPStatusCode()
	}
	return 0
}

// again makes a call until it succeeds, fails for good, or RetryFor is over. What the server asks for with Retry-After
// is waited for, within bounds.
func (p *s3Provider) again(ctx context.Context, call func() error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = 100*time.Millisecond, time.Second, 2
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := call()
		last = p.explain(err)
		if last == nil {
			return struct{}{}, nil
		}
		if ctx.Err() != nil || !Retryable(last) || errors.Is(last, errS3Taken) {
			return struct{}{}, backoff.Permanent(last)
		}
		if wait := s3RetryAfter(err); wait > 0 {
			return struct{}{}, &backoff.RetryAfterError{Duration: min(wait, p.config.RetryAfterAtMost)}
		}
		return struct{}{}, last
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(p.config.RetryFor))
	switch {
	case err == nil:
		p.seen.Store(true)
		return nil
	case ctx.Err() != nil && !errors.Is(last, ctx.Err()):
		return fmt.Errorf("%w; before that: %w", ctx.Err(), last)
	default:
		return last
	}
}

// s3RetryAfter is what the answer asks to wait, 0 when it does not.
func s3RetryAfter(err error) time.Duration {
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) || response.Response == nil {
		return 0
	}
	return retryAfter(response.Response.Header, time.Now())
}
