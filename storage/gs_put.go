package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	gcs "cloud.google.com/go/storage"
)

// gsPutTries is how often Put begins anew: after a lost upload session, or when another writer was in between.
const gsPutTries = 3

// Put implements Provider. Data that fits into one chunk goes in one request, which the client repeats; more goes as a
// resumable upload, of which it repeats chunks.
func (g *gsProvider) Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error) {
	name, err := g.name(key)
	if err != nil {
		return Object{}, err
	}
	doing := fmt.Sprintf("storing %s/%s", g.URL(), key)
	select {
	case g.uploads <- struct{}{}:
		defer func() { <-g.uploads }()
	case <-ctx.Done():
		return Object{}, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	for try := 1; ; try++ {
		object, again, err := g.putOnce(ctx, key, name, data, options)
		if err == nil {
			return object, nil
		}
		if !again || try == gsPutTries || ctx.Err() != nil {
			return Object{}, g.explain(ctx, doing, err)
		}
		g.config.Logger.Debug("storing an object again", "object", g.URL()+"/"+key, "try", try, "error", g.explain(ctx, doing, err))
		if err := sleep(ctx, time.Duration(try)*100*time.Millisecond); err != nil {
			return Object{}, fmt.Errorf("%s: %w", doing, err)
		}
	}
}

// putOnce makes one attempt; again says whether another one makes sense now.
func (g *gsProvider) putOnce(ctx context.Context, key, name string, data []byte, options PutOptions) (_ Object, again bool, _ error) {
	conditions := gcs.Conditions{DoesNotExist: true}
	if !options.CreateOnly {
		// Replacing exactly the generation that was seen makes the write safe to repeat: a repeat of one that had
		// succeeded is refused in place of burying what came later.
		switch attrs, err := g.handle(name, g.budget()).Attrs(ctx); {
		case err == nil:
			conditions = gcs.Conditions{GenerationMatch: attrs.Generation}
		case !errors.Is(err, gcs.ErrObjectNotExist):
			return Object{}, false, err
		}
	}
	attrs, err := g.upload(ctx, name, data, conditions)
	switch code := gsCode(err); {
	case err == nil:
		object, err := g.verify(ctx, key, name, data, attrs)
		return object, true, err
	case code == http.StatusPreconditionFailed:
		return g.alreadyThere(ctx, key, data, options)
	case code == http.StatusNotFound, code == http.StatusGone:
		// The bucket, or an upload session that the service forgot; only the second goes away by trying again.
		if missing := g.missing(ctx, err.Error()); errors.Is(missing, ErrBucketNotFound) {
			return Object{}, false, fmt.Errorf("%w: %w", ErrBucketNotFound, err)
		}
		return Object{}, true, &sessionError{cause: err}
	case code == http.StatusBadRequest:
		return Object{}, true, err // a checksum that did not match, or a session out of step: begin anew
	default:
		return Object{}, false, err
	}
}

// sessionError hides the status of a lost upload session, so that nobody takes it for an object that is not there.
type sessionError struct{ cause error }

func (e *sessionError) Error() string { return "the upload session was lost: " + e.cause.Error() }

// upload sends the data, with its checksum, which the service compares before anything becomes visible.
func (g *gsProvider) upload(ctx context.Context, name string, data []byte, conditions gcs.Conditions) (*gcs.ObjectAttrs, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends what the writer still does when an error made us leave
	w := g.handle(name, g.budget()).If(conditions).NewWriter(ctx)
	w.ChunkSize = g.chunkSize(len(data))
	w.ChunkRetryDeadline = 2*g.config.Stall + g.config.RetryFor // the budget ends it sooner
	w.ContentType = "application/octet-stream"
	w.CRC32C, w.SendCRC32C, w.DisableAutoChecksum = Checksum(data), true, true
	_, writeErr := w.Write(data)
	if err := w.Close(); err != nil {
		return nil, err
	}
	if writeErr != nil {
		return nil, writeErr
	}
	return w.Attrs(), nil
}

// chunkSize is a little more than the data when that is small, since the client sends what does not fill a chunk in one
// request and allocates a whole chunk for it. A size of 0 would be one request that is never repeated.
func (g *gsProvider) chunkSize(size int) int {
	return min(g.config.ChunkSize, (size/gsChunkUnit+1)*gsChunkUnit)
}

// verify believes the service only when what it says that it stored is what was sent.
func (g *gsProvider) verify(ctx context.Context, key, name string, data []byte, attrs *gcs.ObjectAttrs) (Object, error) {
	object := gsObject(key, attrs)
	if attrs.Size == int64(len(data)) && attrs.CRC32C == Checksum(data) {
		return object, nil
	}
	// Ours, and wrong: it must not stay where a create-only write would find it. That generation and no other.
	err := g.handle(name, g.budget()).If(gcs.Conditions{GenerationMatch: attrs.Generation}).Delete(ctx)
	if err != nil {
		err = fmt.Errorf(", and removing it failed: %w", err)
	}
	return Object{}, errors.Join(fmt.Errorf("%d bytes with CRC32C %08x were stored, sent were %d with %08x: %w",
		attrs.Size, attrs.CRC32C, len(data), Checksum(data), ErrIntegrity), err)
}

// alreadyThere is reached when the precondition failed: the answer to our own write was lost, or another was faster.
func (g *gsProvider) alreadyThere(ctx context.Context, key string, data []byte, options PutOptions) (Object, bool, error) {
	same, err := SameContent(ctx, g, key, data)
	if errors.Is(err, ErrNotFound) {
		return Object{}, true, fmt.Errorf("the object that was in the way is gone: %w", &sessionError{cause: err})
	}
	if err != nil {
		return Object{}, false, err
	}
	if same { // invariant 8
		object, err := g.Stat(ctx, key)
		return object, false, err
	}
	if options.CreateOnly {
		return Object{}, false, ErrExists
	}
	return Object{}, true, errors.New("another writer replaced the object at the same time")
}

func gsObject(key string, attrs *gcs.ObjectAttrs) Object {
	return Object{Key: key, Size: attrs.Size, CRC32C: attrs.CRC32C, HasCRC32C: true, Modified: attrs.Updated}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
