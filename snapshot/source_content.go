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
	// chunkerAlgorithm must use its key (the package's "ultracdc" ignores it), and must find its cuts again after an
	// insertion. "jc-v1.1.0" does not at these sizes: its masks are made for chunks of 8 KiB, so that it cuts almost at
	// fixed distances, and 5 KB inserted into 128 MB cost 31 to 47 MB of new chunks (measured; "jc-v1.0.0": 2 to 3 MB).
	chunkerAlgorithm = "jc-v1.0.0"
)

// contentReader stores the contents of files. Each goroutine of a backup has its own.
type contentReader struct {
	saver  *saver
	key    []byte
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

// cut stores one part of a file, chunk by chunk.
func (c *contentReader) cut(ctx context.Context, pieces *filePieces, part *fileReader) error {
	if part.offset >= part.size {
		return nil
	}
	chunker, err := c.chunks.takeChunker(ctx, part, c.key)
	if err != nil {
		return err
	}
	defer c.chunks.returnChunker(chunker)
	for {
		// The last chunk can come together with io.EOF.
		chunk, err := chunker.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(chunk) > 0 {
			if err := c.dispatch(ctx, pieces, chunk); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

// dispatch copies a chunk, whose bytes belong to the chunker, and has it stored by another goroutine.
func (c *contentReader) dispatch(ctx context.Context, pieces *filePieces, chunk []byte) error {
	buffer, err := c.chunks.take(ctx, chunk)
	if err != nil {
		return err
	}
	id := new(blobID)
	pieces.ids = append(pieces.ids, id)
	pieces.size += int64(len(chunk))
	pieces.group.Go(func() error {
		defer c.chunks.giveBack(buffer)
		var err error
		if *id, err = c.saver.save(ctx, dataBlob, buffer); err != nil {
			return &storeError{err}
		}
		return nil
	})
	return nil
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
