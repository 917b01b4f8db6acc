package storage

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Put sends the object in one request with its CRC32C, which the server compares before it stores anything, and
// compares the one that the server answers with.
func (p *s3Provider) Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error) {
	name, err := p.name(key)
	if err != nil {
		return Object{}, err
	}
	object := Object{Key: key, Size: int64(len(data)), CRC32C: Checksum(data), HasCRC32C: true, Modified: time.Now()}
	err = p.again(ctx, func() error {
		input := &s3.PutObjectInput{
			Bucket: &p.bucket, Key: name, Body: bytes.NewReader(data), ContentLength: aws.Int64(object.Size),
			ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumCRC32C: aws.String(encodeCRC32C(object.CRC32C)),
			ContentType: aws.String("application/octet-stream"),
		}
		if options.CreateOnly {
			input.IfNoneMatch = aws.String("*")
		}
		output, err := p.client.PutObject(ctx, input)
		if err != nil && options.CreateOnly && s3Status(err) == 0 && ctx.Err() == nil {
			// A server that refuses a create-only write does so before it has read the body, and the answer is lost when it
			// closes the connection on what is still being sent. Trying again would end the same way for ever.
			if _, headErr := p.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &p.bucket, Key: name}); headErr == nil {
				return fmt.Errorf("%w: %w", errS3Taken, err)
			}
		}
		if err != nil {
			return err
		}
		if output.ChecksumCRC32C == nil {
			// A server older than S3's checksums: it is believed when it gives the same bytes back.
			return p.readBack(ctx, key, data)
		}
		if sum, ok := decodeCRC32C(output.ChecksumCRC32C); !ok || sum != object.CRC32C {
			return fmt.Errorf("the server says that it stored CRC32C %q, sent was %q: %w", *output.ChecksumCRC32C, *input.ChecksumCRC32C, ErrIntegrity)
		}
		return nil
	})
	if errors.Is(err, errS3Taken) {
		same, compareErr := SameContent(ctx, p, key, data)
		switch {
		case compareErr != nil:
			return Object{}, fmt.Errorf("storing %s: %w", key, compareErr)
		case !same:
			return Object{}, fmt.Errorf("storing %s: %w", key, ErrExists)
		}
		return object, nil // invariant 8: it is our own, the answer was lost
	}
	if err != nil {
		return Object{}, fmt.Errorf("storing %s: %w", key, err)
	}
	return object, nil
}

func (p *s3Provider) readBack(ctx context.Context, key string, data []byte) error {
	stored, err := ReadAll(ctx, p, key, 0, -1)
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if !bytes.Equal(stored, data) {
		return fmt.Errorf("read back %d bytes that are not the %d sent: %w", len(stored), len(data), ErrIntegrity)
	}
	return nil
}

// encodeCRC32C writes a checksum as S3 does: base64 of the big-endian bytes.
func encodeCRC32C(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// decodeCRC32C reads it; false for what is none, such as the checksum of checksums ("…-3") of a multipart upload.
func decodeCRC32C(text *string) (uint32, bool) {
	raw, err := base64.StdEncoding.DecodeString(aws.ToString(text))
	if err != nil || len(raw) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(raw), true
}
