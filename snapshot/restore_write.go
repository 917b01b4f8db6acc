package snapshot

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// contentWriter writes files; each worker has its own.
type contentWriter struct {
	restorer *restorer
	opener   blobOpener
	home     []int32
	back     []byte // what was read back
	complete leaseQueue

	dir    *targetDir // the last one that something was written in
	number int32
}

func (w *contentWriter) leave() {
	if w.dir != nil {
		w.dir.close()
		w.dir = nil
	}
}

// write does a task: files that are all in the batch, from their creation to their metadata, or a blob of another file.
func (w *contentWriter) write(ctx context.Context, t *writeTask) error {
	for rest := t.uses; len(rest) > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		entry := t.use(rest[0]).entry
		n := 1
		for n < len(rest) && t.use(rest[n]).entry == entry {
			n++
		}
		if err := w.enter(w.restorer.plan.dirOf[entry]); err != nil {
			return err
		}
		var err error
		if w.home[entry] == noHome {
			err = w.mend(ctx, t, entry, rest[:n])
		} else {
			err = w.create(ctx, t, entry, rest[:n])
		}
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func (w *contentWriter) enter(number int32) error {
	if w.dir != nil && w.number == number {
		return nil
	}
	w.leave()
	dir, err := w.restorer.target.open(w.restorer.plan.dirs[number].path)
	if err != nil {
		return err
	}
	w.dir, w.number = dir, number
	return nil
}

// create makes a file with all of its content and metadata.
func (w *contentWriter) create(ctx context.Context, t *writeTask, number int32, uses []useAt) (err error) {
	entry := &w.restorer.plan.entries[number]
	path := w.dir.join(entry.name)
	fd, err := w.dir.createFile(entry.name, entry.meta.mode)
	if err != nil {
		return err
	}
	leased := w.restorer.witness.lease(fd)
	defer func() {
		if fd < 0 {
			return
		}
		if closeErr := unix.Close(fd); closeErr != nil && err == nil {
			err = localError("closing", path, closeErr)
		}
	}()
	for i, at := range uses {
		plain, err := w.blob(ctx, t, at)
		if err != nil {
			return err
		}
		// A file of one blob grows as it is written, unless it ends in a hole.
		if i == 0 && (len(uses) > 1 || bytes.HasSuffix(plain, []byte{0})) {
			if err := ftruncate(fd, entry.size); err != nil {
				return localError("setting the size of", path, err)
			}
		}
		if err := w.put(fd, plain, t.use(at).at, path); err != nil {
			return err
		}
	}
	if err := w.restorer.finishFile(w.dir, fd, entry); err != nil || !leased {
		return err
	}
	if _, linked := w.restorer.witness.linked[number]; linked {
		if w.restorer.witness.hold(number, fd) {
			fd = -1
		}
		return nil
	}
	open := fd
	fd = -1
	if err := w.complete.add(ctx, open, number); err != nil {
		return localError("closing", path, err)
	}
	return nil
}

// mend writes blobs of a file that is there already.
func (w *contentWriter) mend(ctx context.Context, t *writeTask, number int32, uses []useAt) (err error) {
	entry := &w.restorer.plan.entries[number]
	path := w.dir.join(entry.name)
	fd, held := w.restorer.witness.descriptor(number)
	if !held {
		if fd, err = w.dir.openFile(entry.name, unix.O_RDWR); err != nil {
			return err
		}
	}
	defer func() {
		if held {
			return
		}
		if closeErr := unix.Close(fd); closeErr != nil && err == nil {
			err = localError("closing", path, closeErr)
		}
	}()
	for _, at := range uses {
		plain, err := w.blob(ctx, t, at)
		if err != nil {
			return err
		}
		if err := w.put(fd, plain, t.use(at).at, path); err != nil {
			return err
		}
	}
	return nil
}

// blob is the plaintext of a blob, its hash verified and its length the one that the plan counts on. It is valid until
// the next call.
func (w *contentWriter) blob(ctx context.Context, t *writeTask, at useAt) ([]byte, error) {
	use := t.use(at)
	entry := &w.restorer.plan.entries[use.entry]
	id := entry.content[use.chunk]
	plain, err := w.opener.open(t.sealed(at), id, use)
	if err != nil {
		if plain, err = w.restorer.repository.loadBlob(ctx, id, dataBlob); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return nil, cause
			}
			return nil, fmt.Errorf("the content of %s: %w", quotePath(w.restorer.plan.path(use.entry)), err)
		}
	}
	if len(plain) != int(entry.sizes[use.chunk]) {
		return nil, fmt.Errorf("%w: the blob %s has %d bytes, the index says %d", ErrDamaged, id, len(plain), entry.sizes[use.chunk])
	}
	return plain, nil
}

// put writes a blob to its place in a file and reads it back (invariant 5): what the hash was right for is also what the
// file system gives, at the right place of the right file. Each byte of a file belongs to exactly one blob.
func (w *contentWriter) put(fd int, plain []byte, offset int64, path string) error {
	if err := writeSparse(fd, plain, offset); err != nil {
		return localError("writing", path, err)
	}
	if w.restorer.wrote != nil {
		w.restorer.wrote(path)
	}
	const piece = 256 << 10
	if w.back == nil {
		w.back = make([]byte, piece)
	}
	for rest := plain; len(rest) > 0; {
		n := min(piece, len(rest))
		if _, err := preadFull(fd, w.back[:n], offset); err != nil {
			return localError("reading back", path, err)
		}
		if !bytes.Equal(w.back[:n], rest[:n]) {
			return fmt.Errorf("%w: %q differs within %d bytes at %d", errNotAsWritten, path, n, offset)
		}
		rest, offset = rest[n:], offset+int64(n)
	}
	w.restorer.meter.add(0, int64(len(plain)), "")
	return nil
}

// blobOpener opens blobs into buffers of its own that are used again. The last one stays open: a run of zeros is one
// blob over and over.
type blobOpener struct {
	repository *Repository
	id         blobID
	plain      []byte // of id, unless empty
	packed     []byte
}

// open returns the plaintext of a sealed blob whose tag was found right when it was read, after its hash was too. It is
// valid until the next call.
func (o *blobOpener) open(sealed []byte, id blobID, use *blobUse) ([]byte, error) {
	if len(o.plain) > 0 && o.id == id {
		return o.plain, nil
	}
	o.id = id
	plain, err := o.decode(o.plain[:0], sealed, id, use)
	o.plain = plain
	return plain, err
}

func (o *blobOpener) decode(dst, sealed []byte, id blobID, use *blobUse) ([]byte, error) {
	at := blobLocation{kind: dataBlob, offset: use.offset, length: use.length, plain: use.plain}
	if err := at.validate(); err != nil {
		return dst[:0], err
	}
	var err error
	if use.plain == 0 {
		dst, err = o.repository.box.openAuthentic(dst, sealed)
	} else if o.packed, err = o.repository.box.openAuthentic(o.packed[:0], sealed); err == nil {
		dst, err = o.repository.codec.decompress(dst, o.packed, int(use.plain))
	}
	if err == nil {
		err = checkHash(id, dst)
	}
	if err != nil {
		return dst[:0], err
	}
	return dst, nil
}
