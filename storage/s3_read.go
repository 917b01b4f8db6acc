package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Get opens a part of an object. Of whole objects the SDK compares the checksum at the end, where the server has one.
func (p *s3Provider) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	name, err := p.name(key)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("reading %s from %d: %w", key, offset, ErrInvalid)
	}
	if length == 0 {
		return p.nothing(ctx, key, offset) // a range of no bytes cannot be asked for
	}
	input := &s3.GetObjectInput{Bucket: &p.bucket, Key: name}
	switch {
	case length > 0:
		input.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		input.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	default:
		input.ChecksumMode = types.ChecksumModeEnabled
	}
	var output *s3.GetObjectOutput
	err = p.again(ctx, func() error {
		output, err = p.client.GetObject(ctx, input)
		if s3Status(err) == http.StatusRequestedRangeNotSatisfiable {
			return fmt.Errorf("%w: %w", errRange, err)
		}
		return err
	})
	if errors.Is(err, errRange) {
		if length < 0 {
			return p.nothing(ctx, key, offset)
		}
		return nil, fmt.Errorf("reading %s: %d bytes from %d: %w", key, length, offset, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	want := int64(-1)
	if output.ContentLength != nil {
		want = *output.ContentLength
	}
	switch {
	case input.Range != nil && !strings.HasPrefix(aws.ToString(output.ContentRange), fmt.Sprintf("bytes %d-", offset)):
		err = fmt.Errorf("the server answered with range %q: %w", aws.ToString(output.ContentRange), ErrIntegrity)
	case length > 0 && want >= 0 && want < length:
		err = fmt.Errorf("the object ends %d bytes early: %w", length-want, io.ErrUnexpectedEOF)
	case length > 0:
		want = length
	}
	if err != nil {
		_ = output.Body.Close() // nothing of it is used
		return nil, fmt.Errorf("reading %s: %d bytes from %d: %w", key, length, offset, err)
	}
	return &body{ctx: ctx, source: output.Body, want: want, key: key, explain: p.explainBody}, nil
}

// explainBody is explain for what reading a body fails with. The SDK has no type for a checksum that differs.
func (p *s3Provider) explainBody(err error) error {
	if strings.Contains(err.Error(), "checksum did not match") {
		return fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	return p.explain(err)
}

// errRange is the answer to a range that begins at or beyond the end. It is not worth another try.
var errRange = fmt.Errorf("%w: the range is beyond the end", ErrInvalid)

// nothing is what there is to read at the end of an object, when it is there and that long.
func (p *s3Provider) nothing(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	object, err := p.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if offset > object.Size {
		return nil, fmt.Errorf("reading %s from %d of %d: %w", key, offset, object.Size, io.ErrUnexpectedEOF)
	}
	return io.NopCloser(bytes.NewReader(nil)), nil
}

// Stat describes one object.
func (p *s3Provider) Stat(ctx context.Context, key string) (Object, error) {
	name, err := p.name(key)
	if err != nil {
		return Object{}, err
	}
	var output *s3.HeadObjectOutput
	err = p.again(ctx, func() error {
		output, err = p.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &p.bucket, Key: name, ChecksumMode: types.ChecksumModeEnabled})
		return err
	})
	if errors.Is(err, ErrNotFound) {
		err = p.missing(ctx, err)
	}
	if err != nil {
		return Object{}, fmt.Errorf("looking at %s: %w", key, err)
	}
	object := Object{Key: key, Size: aws.ToInt64(output.ContentLength), Modified: aws.ToTime(output.LastModified)}
	if output.ChecksumType != types.ChecksumTypeComposite {
		object.CRC32C, object.HasCRC32C = decodeCRC32C(output.ChecksumCRC32C)
	}
	return object, nil
}

// missing says whether it is the object that is not there, or the whole bucket: an answer to HEAD has no body to say.
func (p *s3Provider) missing(ctx context.Context, notFound error) error {
	if p.seen.Load() {
		return notFound
	}
	err := p.again(ctx, func() error {
		_, err := p.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &p.bucket})
		return err
	})
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrBucketNotFound):
		return fmt.Errorf("s3://%s: %w", p.bucket, ErrBucketNotFound)
	case err != nil && !errors.Is(err, ErrPermission): // who may not look at the bucket may still have been told the truth
		return fmt.Errorf("looking whether the bucket is there: %w", err)
	default:
		return notFound
	}
}

// Delete removes an object.
func (p *s3Provider) Delete(ctx context.Context, key string) error {
	name, err := p.name(key)
	if err != nil {
		return err
	}
	err = p.again(ctx, func() error {
		_, err := p.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &p.bucket, Key: name})
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}

// List goes through the pages. Each page is tried again by itself; the order is checked, since there are servers that
// do not keep it and callers that rely on it.
func (p *s3Provider) List(ctx context.Context, prefix string, each func(Object) error) error {
	if err := ValidatePrefix(prefix); err != nil {
		return err
	}
	input := &s3.ListObjectsV2Input{Bucket: &p.bucket, Prefix: aws.String(p.prefix + prefix)}
	last := ""
	for {
		var page *s3.ListObjectsV2Output
		err := p.again(ctx, func() (err error) {
			page, err = p.client.ListObjectsV2(ctx, input)
			return err
		})
		if err != nil {
			return fmt.Errorf("listing %s: %w", p.URL(), err)
		}
		for _, found := range page.Contents {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("listing %s: %w", p.URL(), err)
			}
			name := aws.ToString(found.Key)
			key, ok := strings.CutPrefix(name, p.prefix)
			if !ok || ValidateKey(key) != nil {
				continue // what a console keeps as a "folder", and other objects that are not ours
			}
			if key <= last {
				return fmt.Errorf("listing %s: %q came after %q: %w", p.URL(), key, last, ErrIntegrity)
			}
			last = key
			if err := each(Object{Key: key, Size: aws.ToInt64(found.Size), Modified: aws.ToTime(found.LastModified)}); err != nil {
				return err
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		if aws.ToString(page.NextContinuationToken) == "" || aws.ToString(page.NextContinuationToken) == aws.ToString(input.ContinuationToken) {
			return fmt.Errorf("listing %s: there is more, and the server does not say where: %w", p.URL(), ErrIntegrity)
		}
		input.ContinuationToken = page.NextContinuationToken
	}
}
