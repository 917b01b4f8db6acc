package snapshot

import (
	"context"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	// windowBytes bounds the stored bytes in memory: a batch that is written and one that is read meanwhile. A larger
	// batch, of one large blob, is in memory alone.
	windowBytes = 2 * batchBytes
	// batchReaders is how many batches are read at once, so that reading from the provider and writing overlap.
	batchReaders = 2
)

// loadedBatch is a batch in memory.
type loadedBatch struct {
	*batch
	data    [][]byte     // by span; nil for one that no provider gave undamaged
	pending atomic.Int64 // tasks that are not done
}

// writeTask is what one worker writes of a batch: files of one directory, or one blob of a file that is in several
// batches.
type writeTask struct {
	batch *loadedBatch
	uses  []useAt // in the order of the tree
}

// useAt is a use of a blob in a batch.
type useAt struct{ span, use int32 }

func (t *writeTask) use(at useAt) *blobUse { return &t.batch.spans[at.span].uses[at.use] }

// sealed are the bytes of a blob as they were read; nil when no provider gave them undamaged.
func (t *writeTask) sealed(at useAt) []byte {
	data := t.batch.data[at.span]
	if data == nil {
		return nil
	}
	use := t.use(at)
	begin := int64(use.offset) - t.batch.spans[at.span].begin
	return data[begin : begin+int64(use.length)]
}

// writeData writes the content of all files, batch by batch. A worker has a whole directory at a time: two that create
// in the same one wait for each other in the kernel.
func (s *restorer) writeData(ctx context.Context, l *layout) error {
	group, groupContext := errgroup.WithContext(ctx)
	window := semaphore.NewWeighted(windowBytes)
	tasks := make(chan writeTask)
	group.Go(func() error {
		defer close(tasks)
		return s.readBatches(groupContext, l, window, tasks)
	})
	for range s.workers {
		group.Go(func() error {
			w := &contentWriter{restorer: s, opener: blobOpener{repository: s.repository}, home: l.home, complete: s.newStateQueue()}
			defer w.leave()
			defer w.complete.close()
			for task := range tasks {
				if err := w.write(groupContext, &task); err != nil {
					return err
				}
				if task.batch.pending.Add(-1) == 0 {
					window.Release(min(task.batch.stored, windowBytes))
				}
			}
			return w.complete.drain(groupContext)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *restorer) readBatches(ctx context.Context, l *layout, window *semaphore.Weighted, tasks chan<- writeTask) error {
	readers, readContext := errgroup.WithContext(ctx)
	readers.SetLimit(batchReaders)
	for i := range l.batches {
		if err := window.Acquire(readContext, min(l.batches[i].stored, windowBytes)); err != nil {
			break // the cause is in the context
		}
		readers.Go(func() error {
			loaded := &loadedBatch{batch: &l.batches[i], data: make([][]byte, len(l.batches[i].spans))}
			if err := s.read(readContext, loaded); err != nil {
				return err
			}
			made := s.tasks(loaded, l.home)
			loaded.pending.Store(int64(len(made)))
			for _, task := range made {
				select {
				case tasks <- task:
				case <-readContext.Done():
					return context.Cause(readContext)
				}
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// read reads a batch's spans, each from the first provider that gives all wanted blobs of it authentic. A span that none
// has whole is left to be read blob by blob: other packs may hold a blob, and providers may be damaged in different
// places.
func (s *restorer) read(ctx context.Context, b *loadedBatch) error {
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i := range b.spans {
		group.Go(func() error {
			span := &b.spans[i]
			data, err := s.repository.loadPackPart(groupContext, span.pack, span.begin, span.end-span.begin, func(data []byte) error {
				return s.repository.authenticSpan(span, data)
			})
			if cause := context.Cause(groupContext); err != nil && cause != nil {
				return cause
			}
			if err == nil {
				b.data[i] = data
			}
			return nil
		})
	}
	return group.Wait()
}

// authenticSpan says whether bytes of a pack hold all blobs that are wanted of it as they were sealed. What they are,
// their hash says when they are opened.
func (r *Repository) authenticSpan(span *packSpan, data []byte) error {
	if int64(len(data)) != span.end-span.begin {
		return fmt.Errorf("%w: %d bytes of pack %s instead of %d", ErrDamaged, len(data), span.pack, span.end-span.begin)
	}
	for i := range span.uses {
		use := &span.uses[i]
		if i > 0 && span.uses[i-1].offset == use.offset {
			continue
		}
		begin := int64(use.offset) - span.begin
		if !r.box.authentic(data[begin : begin+int64(use.length)]) {
			return fmt.Errorf("the blob at %d of pack %s: %w: %w", use.offset, span.pack, ErrDamaged, errUnauthentic)
		}
	}
	return nil
}

// authentic reports whether a sealed message is as it was sealed.
func (e *envelope) authentic(sealed []byte) bool {
	if len(sealed) < envelopeOverhead {
		return false
	}
	end := len(sealed) - tagSize
	tag := e.tag(sealed[:vectorSize], sealed[vectorSize:end])
	return subtle.ConstantTimeCompare(tag[:], sealed[end:]) == 1
}

// tasks cuts a batch into what one worker does at a time.
func (s *restorer) tasks(b *loadedBatch, home []int32) []writeTask {
	var uses []useAt
	for i := range b.spans {
		for u := range b.spans[i].uses {
			uses = append(uses, useAt{int32(i), int32(u)})
		}
	}
	of := func(at useAt) *blobUse { return &b.spans[at.span].uses[at.use] }
	slices.SortFunc(uses, func(x, y useAt) int {
		a, b := of(x), of(y)
		if a.entry != b.entry {
			return int(a.entry) - int(b.entry)
		}
		return int(a.chunk) - int(b.chunk)
	})
	var tasks []writeTask
	for len(uses) > 0 {
		n := 1
		if entry := of(uses[0]).entry; home[entry] != noHome {
			for n < len(uses) && home[of(uses[n]).entry] != noHome && s.plan.dirOf[of(uses[n]).entry] == s.plan.dirOf[entry] {
				n++
			}
		}
		tasks = append(tasks, writeTask{b, uses[:n:n]})
		uses = uses[n:]
	}
	return tasks
}
