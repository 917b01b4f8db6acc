package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"
)

// Files are cut into chunks where their content says so, so that a change in one place leaves the other chunks as they
// were. A file of up to minChunkSize is one chunk. Least and average are restic's; the most is half of restic's, because
// memory goes by it and few chunks come near it.
const (
	minChunkSize     = 512 << 10
	averageChunkSize = 1 << 20
	maxChunkSize     = 4 << 20
)

// contentReader stores the contents of files. Each goroutine of a backup has its own.
type contentReader struct {
	saver  *saver
	chunks *chunkSlots
	small  []byte // for files of one chunk
}

// content stores the first size bytes of an open file and returns its blobs and how many bytes there were: fewer when
// the file became shorter.
func (c *contentReader) content(ctx context.Context, fd int, size int64) ([]blobID, int64, error) {
	switch {
	case size == 0:
		return []blobID{}, 0, nil
	case size <= minChunkSize:
		return c.oneChunk(ctx, fd, int(size))
	default:
		return c.manyChunks(ctx, fd, size)
	}
}

func (c *contentReader) oneChunk(ctx context.Context, fd int, size int) ([]blobID, int64, error) {
	if c.small == nil {
		c.small = make([]byte, minChunkSize)
	}
	n, err := io.ReadFull(&fileReader{fd: fd, size: int64(size)}, c.small[:size])
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return []blobID{}, 0, nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, 0, err
	}
	id, err := c.saver.save(ctx, dataBlob, c.small[:n])
	if err != nil {
		return nil, 0, &storeError{err}
	}
	return []blobID{id}, int64(n), nil
}

// storeError marks an error of storing, which ends the backup, unlike one of reading.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// manyChunks reads in this goroutine and compresses in others. A long hole is not read: it becomes chunks of zeros, and
// what is between holes is cut on its own.
func (c *contentReader) manyChunks(ctx context.Context, fd int, size int64) ([]blobID, int64, error) {
	group, groupContext := errgroup.WithContext(ctx)
	pieces := &filePieces{group: group}
	err := c.pieces(groupContext, pieces, fd, size)
	// A chunk that could not be stored is the cause of what went wrong here after it.
	if storing := group.Wait(); storing != nil {
		return nil, 0, storing
	}
	if err != nil {
		return nil, 0, err
	}
	content := make([]blobID, len(pieces.ids))
	for i, id := range pieces.ids {
		content[i] = *id
	}
	return content, pieces.size, nil
}

// filePieces are the chunks of one file, in order; their ids are set when group is done.
type filePieces struct {
	group *errgroup.Group
	ids   []*blobID
	size  int64
}

func (c *contentReader) pieces(ctx context.Context, pieces *filePieces, fd int, size int64) error {
	var at int64
	for _, h := range holesOf(fd, size, maxChunkSize) {
		if err := c.cut(ctx, pieces, &fileReader{fd: fd, offset: at, size: h.from}); err != nil {
			return err
		}
		for at = h.from; h.to-at >= maxChunkSize; at += maxChunkSize {
			id, err := c.saver.zeros(ctx)
			if err != nil {
				return &storeError{err}
			}
			pieces.ids = append(pieces.ids, &id)
			pieces.size += maxChunkSize
		}
	}
	return c.cut(ctx, pieces, &fileReader{fd: fd, offset: at, size: size})
}

// cut stores one part of a file, chunk by chunk, in other goroutines.
func (c *contentReader) cut(ctx context.Context, pieces *filePieces, part *fileReader) error {
	if part.offset >= part.size {
		return nil
	}
	return c.chunks.cut(ctx, part, func(chunk []byte, done func()) {
		id := new(blobID)
		pieces.ids = append(pieces.ids, id)
		pieces.size += int64(len(chunk))
		pieces.group.Go(func() error {
			defer done()
			var err error
			if *id, err = c.saver.save(ctx, dataBlob, chunk); err != nil {
				return &storeError{err}
			}
			return nil
		})
	})
}

// zeros stores the chunk that holes are made of, once, and returns its name.
func (s *saver) zeros(ctx context.Context) (blobID, error) {
	s.zeroOnce.Do(func() {
		zeros := make([]byte, maxChunkSize)
		s.zeroID = sha256.Sum256(zeros)
		s.zeroErr = s.saveAs(ctx, s.zeroID, dataBlob, zeros)
	})
	return s.zeroID, s.zeroErr
}
