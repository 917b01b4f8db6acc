package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/iterator"
)

// Get implements Provider.
func (g *gsProvider) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	name, err := g.name(key)
	if err != nil {
		return nil, err
	}
	doing := fmt.Sprintf("reading %s/%s", g.URL(), key)
	if offset < 0 {
		return nil, fmt.Errorf("%s from %d: %w", doing, offset, ErrInvalid)
	}
	if length == 0 { // the client would fetch the whole object to give nothing of it
		return g.getNothing(ctx, key, offset)
	}
	b := g.budget()
	r, err := g.handle(name, b).NewRangeReader(context.WithValue(ctx, budgetKey{}, b), offset, length)
	if gsCode(err) == http.StatusRequestedRangeNotSatisfiable {
		if length < 0 {
			return g.getNothing(ctx, key, offset)
		}
		return nil, fmt.Errorf("%s from %d, beyond its end: %w", doing, offset, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, g.explain(ctx, doing, err)
	}
	want := length
	if length < 0 {
		want = r.Remain()
	}
	return &body{
		ctx: ctx, source: &gsReader{r, b}, want: want, key: key,
		explain: func(err error) error { return g.explain(ctx, "from "+g.URL(), err) },
	}, nil
}

// gsReader tells the budget that bytes came in, so that a long download may be resumed many times.
type gsReader struct {
	*gcs.Reader
	budget *gsBudget
}

func (r *gsReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.budget.progress()
	}
	return n, err
}

// getNothing is an empty range, which must still lie within the object.
func (g *gsProvider) getNothing(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	object, err := g.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if offset > object.Size {
		return nil, fmt.Errorf("reading %s/%s from %d of %d bytes: %w", g.URL(), key, offset, object.Size, io.ErrUnexpectedEOF)
	}
	return io.NopCloser(bytes.NewReader(nil)), nil
}

// Stat implements Provider.
func (g *gsProvider) Stat(ctx context.Context, key string) (Object, error) {
	name, err := g.name(key)
	if err != nil {
		return Object{}, err
	}
	attrs, err := g.handle(name, g.budget()).Attrs(ctx)
	if err != nil {
		return Object{}, g.explain(ctx, fmt.Sprintf("looking at %s/%s", g.URL(), key), err)
	}
	return gsObject(key, attrs), nil
}

// List implements Provider. Objects in the bucket whose names no Put could have made (such as the "directories" that
// some tools create) are passed over.
func (g *gsProvider) List(ctx context.Context, prefix string, each func(Object) error) error {
	if err := ValidatePrefix(prefix); err != nil {
		return err
	}
	doing := fmt.Sprintf("listing %s/%s", g.URL(), prefix)
	query := &gcs.Query{Prefix: g.prefix + prefix, Projection: gcs.ProjectionNoACL}
	if err := query.SetAttrSelection([]string{"Name", "Size", "CRC32C", "Updated"}); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	b := g.budget()
	objects := g.client.Bucket(g.bucket).Retryer(b.options()...).Objects(ctx, query)
	last := ""
	for {
		attrs, err := objects.Next()
		if errors.Is(err, iterator.Done) {
			return nil
		}
		if err == nil {
			err = ctx.Err() // a page may hold a thousand more
		}
		if err != nil {
			return g.explain(ctx, doing, err)
		}
		b.progress()
		if attrs.Name <= last || !strings.HasPrefix(attrs.Name, query.Prefix) {
			return fmt.Errorf("%s: %q came after %q: %w", doing, attrs.Name, last, ErrIntegrity)
		}
		last = attrs.Name
		key := strings.TrimPrefix(attrs.Name, g.prefix)
		if ValidateKey(key) != nil {
			continue
		}
		if err := each(gsObject(key, attrs)); err != nil {
			return err
		}
	}
}

// Delete implements Provider.
func (g *gsProvider) Delete(ctx context.Context, key string) error {
	name, err := g.name(key)
	if err != nil {
		return err
	}
	err = g.handle(name, g.budget()).Delete(ctx)
	err = g.explain(ctx, fmt.Sprintf("deleting %s/%s", g.URL(), key), err)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
