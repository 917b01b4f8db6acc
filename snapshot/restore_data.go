package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// blobUse is one place in one file where a blob belongs.
type blobUse struct {
	pack   int32 // number in the order of first use
	offset uint32
	entry  int32
	chunk  int32
	at     int64 // offset in the file
}

// packSpan is a part of one pack that is read at once, with the uses of the blobs in it.
type packSpan struct {
	pack       blobID
	begin, end int64
	uses       []blobUse
}

const (
	// maxSpan bounds how many stored bytes are read at once, unless one blob alone is larger.
	maxSpan = 8 << 20
	// maxGap is how many bytes nobody asked for are read rather than starting another request.
	maxGap = 256 << 10
)

// writeData writes the content of all files, pack by pack, each needed part of a pack once, whatever the order of the
// files. Memory is bounded by the spans in work.
func (s *restorer) writeData(ctx context.Context) error {
	spans, err := s.spans()
	if err != nil {
		return err
	}
	group, groupContext := errgroup.WithContext(ctx)
	// Two more than compute, so that reading from the provider and writing overlap.
	group.SetLimit(s.workers + 2)
	for i := range spans {
		if groupContext.Err() != nil {
			break
		}
		group.Go(func() error {
			w := &spanWriter{restorer: s, span: &spans[i], file: -1, fd: -1}
			return errors.Join(w.write(groupContext), w.closeFile())
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// spans sorts all uses of blobs by where these lie and cuts them into parts to be read at once.
func (s *restorer) spans() ([]packSpan, error) {
	var uses []blobUse
	var packs []blobID
	numbers := map[blobID]int32{}
	lengths := map[blobUseKey]uint32{}
	for i := range s.plan.entries {
		entry := &s.plan.entries[i]
		at := int64(0)
		for c, id := range entry.content {
			if s.has(int32(i), int32(c)) {
				at += int64(entry.sizes[c])
				continue
			}
			locations := s.repository.blobLocations(id, dataBlob)
			if len(locations) == 0 {
				return nil, fmt.Errorf("%w: no index names the data blob %s any more", ErrDamaged, id)
			}
			place := locations[0]
			number, known := numbers[place.pack]
			if !known {
				number = int32(len(packs))
				numbers[place.pack] = number
				packs = append(packs, place.pack)
			}
			uses = append(uses, blobUse{pack: number, offset: place.offset, entry: int32(i), chunk: int32(c), at: at})
			lengths[blobUseKey{number, place.offset}] = place.length
			at += int64(entry.sizes[c])
		}
	}
	slices.SortFunc(uses, func(a, b blobUse) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.offset, b.offset), cmp.Compare(a.entry, b.entry), cmp.Compare(a.at, b.at))
	})
	var spans []packSpan
	first := 0
	for i := range uses {
		begin := int64(uses[i].offset)
		end := begin + int64(lengths[blobUseKey{uses[i].pack, uses[i].offset}])
		if i > 0 && uses[i-1].pack == uses[i].pack {
			current := &spans[len(spans)-1]
			if uses[i-1].offset == uses[i].offset || begin <= current.end+maxGap && end <= current.begin+maxSpan {
				current.end = max(current.end, end)
				current.uses = uses[first : i+1]
				continue
			}
		}
		first = i
		spans = append(spans, packSpan{pack: packs[uses[i].pack], begin: begin, end: end, uses: uses[i : i+1]})
	}
	return spans, nil
}

type blobUseKey struct {
	pack   int32
	offset uint32
}

// spanWriter writes the blobs of one span to the files.
type spanWriter struct {
	restorer *restorer
	span     *packSpan
	mutex    sync.Mutex
	written  []bool // per use
	file     int32  // the file that fd is open on
	fd       int
	local    error // what the local disk said; no other provider would help
}

func (w *spanWriter) write(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	r := w.restorer.repository
	w.written = make([]bool, len(w.span.uses))
	// Each provider's bytes are taken as far as they are good: a blob is written once its hash is right, and the next
	// provider is asked only for what is still missing.
	_, err := r.loadPackPart(ctx, w.span.pack, w.span.begin, w.span.end-w.span.begin, func(data []byte) error {
		return w.take(ctx, data)
	})
	if w.local != nil {
		return w.local
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	// Blob by blob: other packs may hold it, and providers may be damaged in different places.
	for i := range w.span.uses {
		if w.written[i] {
			continue
		}
		id := w.blob(i)
		plain, err := r.loadBlob(ctx, id, dataBlob)
		if err != nil {
			return fmt.Errorf("the content of %s: %w", quotePath(w.restorer.plan.path(w.span.uses[i].entry)), err)
		}
		w.place(i, plain)
		if w.local != nil {
			return w.local
		}
	}
	return nil
}

func (w *spanWriter) blob(use int) blobID {
	u := &w.span.uses[use]
	return w.restorer.plan.entries[u.entry].content[u.chunk]
}

// take opens and writes all blobs that data holds undamaged; an error when one is not.
func (w *spanWriter) take(ctx context.Context, data []byte) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if int64(len(data)) != w.span.end-w.span.begin {
		return fmt.Errorf("%w: %d bytes of pack %s instead of %d", ErrDamaged, len(data), w.span.pack, w.span.end-w.span.begin)
	}
	var failure error
	var buffer []byte
	for i := 0; i < len(w.span.uses) && w.local == nil; i++ {
		if w.written[i] {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			w.local = err
			return nil
		}
		plain, err := w.open(buffer[:0], data, i)
		if err != nil {
			failure = cmp.Or(failure, err)
			continue
		}
		buffer = plain
		w.place(i, plain)
	}
	return failure
}

func (w *spanWriter) open(dst, data []byte, use int) ([]byte, error) {
	id := w.blob(use)
	for _, at := range w.restorer.repository.blobLocations(id, dataBlob) {
		if at.pack == w.span.pack && at.offset == w.span.uses[use].offset {
			begin := int64(at.offset) - w.span.begin
			if begin+int64(at.length) > int64(len(data)) {
				break
			}
			return w.restorer.repository.openBlob(dst, data[begin:begin+int64(at.length)], id, at)
		}
	}
	return nil, fmt.Errorf("%w: the index changed about the blob %s", ErrDamaged, id)
}

// place writes a blob wherever it is used from the given use on; its uses are next to each other.
func (w *spanWriter) place(use int, plain []byte) {
	offset := w.span.uses[use].offset
	id := w.blob(use)
	for i := use; i < len(w.span.uses) && w.span.uses[i].offset == offset; i++ {
		u := &w.span.uses[i]
		entry := &w.restorer.plan.entries[u.entry]
		if w.written[i] || entry.content[u.chunk] != id {
			continue
		}
		if len(plain) != int(entry.sizes[u.chunk]) {
			w.local = fmt.Errorf("%w: the blob %s has %d bytes, the index says %d", ErrDamaged, id, len(plain), entry.sizes[u.chunk])
			return
		}
		if w.local = w.openFile(u.entry); w.local != nil {
			return
		}
		if err := writeSparse(w.fd, plain, u.at); err != nil {
			w.local = localError("writing", w.restorer.plan.path(u.entry), err)
			return
		}
		w.written[i] = true
		if w.restorer.wrote != nil {
			w.restorer.wrote(w.restorer.plan.path(u.entry))
		}
		w.restorer.meter.add(0, int64(len(plain)), "")
	}
}

func (w *spanWriter) openFile(entry int32) error {
	if w.file == entry && w.fd >= 0 {
		return nil
	}
	if err := w.closeFile(); err != nil {
		return err
	}
	fd, err := w.restorer.target.openFile(w.restorer.plan.path(entry), unix.O_WRONLY)
	if err != nil {
		return err
	}
	w.file, w.fd = entry, fd
	return nil
}

func (w *spanWriter) closeFile() error {
	if w.fd < 0 {
		return nil
	}
	err := unix.Close(w.fd)
	w.fd = -1
	if err != nil {
		return localError("closing", w.restorer.plan.path(w.file), err)
	}
	return nil
}
