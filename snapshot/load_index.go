package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// refreshIndex takes in the index files that are new. When one that was taken in is gone (stock restic pruned), the
// index is built anew. Index files that no provider has whole are remembered in indexDamaged.
func (r *Repository) refreshIndex(ctx context.Context) error {
	r.refresh.Lock()
	defer r.refresh.Unlock()
	return r.refreshIndexLocked(ctx)
}

func (r *Repository) refreshIndexLocked(ctx context.Context) error {
	began := time.Now()
	l, err := list(ctx, r.store, indexPrefix)
	if err == nil {
		err = r.takeIndex(ctx, l, began, nil)
	}
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	return nil
}

// takeIndex takes in what a listing names that was begun at a time; ahead are files of it that were read already.
func (r *Repository) takeIndex(ctx context.Context, l listing, began time.Time, ahead map[string]aheadFile) error {
	present := map[blobID]string{}
	for key := range l.objects {
		if id, err := parseID(strings.TrimPrefix(key, indexPrefix)); err == nil {
			present[id] = key
		} else {
			r.log.Warn("a file in index/ is no index", "key", key)
		}
	}
	r.mu.RLock()
	index, known, anew := r.index, map[blobID]storedFile{}, false
	for id, file := range r.indexFiles {
		if _, there := present[id]; !there && len(l.failed) == 0 {
			anew = true
		}
		known[id] = file
	}
	r.mu.RUnlock()
	if anew {
		index, known = newMemoryIndex(r.options.IndexMemory), map[blobID]storedFile{}
	}

	var fresh []blobID
	for id := range present {
		if _, ok := known[id]; !ok {
			fresh = append(fresh, id)
		}
	}
	slices.SortFunc(fresh, blobID.compare)
	damaged := map[blobID]error{}
	add := func(id blobID, read indexRead) error {
		if read.err != nil {
			damaged[id] = read.err
			return nil
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, pack := range read.file.Packs {
			if err := index.add(pack, id); err != nil {
				return err
			}
		}
		known[id] = read.stored
		return nil
	}
	// A few at a time, so that a hostile number of large index files is not in memory at once; and each that is larger than
	// a writer makes them alone.
	for batch := range slices.Chunk(fresh, unpackedLoaders) {
		reads := make([]indexRead, len(batch))
		group, groupContext := errgroup.WithContext(ctx)
		for i, id := range batch {
			group.Go(func() (err error) {
				reads[i], err = r.readIndex(groupContext, l, id, ahead, ordinaryIndex)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i, id := range batch {
			if errors.Is(reads[i].err, errNotOrdinary) {
				var err error
				if reads[i], err = r.readIndex(ctx, l, id, ahead, anyIndex); err != nil {
					return err
				}
			}
			if err := add(id, reads[i]); err != nil {
				return err
			}
			reads[i] = indexRead{}
			delete(ahead, indexPrefix+id.String())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index, r.indexFiles, r.indexDamaged, r.unlisted = index, known, damaged, l.failure()
	r.refreshed = began
	for id, err := range damaged {
		r.log.Warn("an index file cannot be read", "index", id.String(), "error", err)
	}
	return nil
}

// indexRead is an index file, or why it cannot be had from any store.
type indexRead struct {
	file   indexFile
	stored storedFile
	err    error
}

// indexSize bounds an index file: its stored and its decompressed bytes, and what they become in memory.
type indexSize struct{ stored, plain, memory int64 }

var (
	// ordinaryIndex is twice what a file of indexBlobs blobs needs. Four such take 250 MB at most.
	ordinaryIndex = indexSize{8 << 20, 24 << 20, 24 << 20}
	// anyIndex is what is accepted at all.
	anyIndex = indexSize{maxUnpackedSize, maxUnpackedSize, maxIndexMemory}
)

// errNotOrdinary: an index file is beyond the size within which several are read at once.
var errNotOrdinary = errors.New("an index file of unusual size")

// readIndex reads one index file. What is wrong or absent is told in its err; the error is of a store that could not be
// reached.
func (r *Repository) readIndex(ctx context.Context, l listing, id blobID, ahead map[string]aheadFile, within indexSize) (indexRead, error) {
	key := indexPrefix + id.String()
	early, read := ahead[key]
	if sizes := l.sizes(key, maxUnpackedSize); !read && len(sizes) > 0 && sizes[0] > within.stored {
		return indexRead{err: errNotOrdinary}, nil
	}
	if !read {
		early.data, early.err = loadWhole(ctx, r.store, l, key, maxUnpackedSize, func(data []byte) error { return checkHash(id, data) })
	}
	if early.err != nil {
		if !permanent(early.err) {
			return indexRead{}, early.err
		}
		return indexRead{err: early.err}, nil
	}
	var file indexFile
	decoder := r.codec.bounded
	if within == ordinaryIndex {
		decoder = r.codec.ordinary
	}
	plain, err := r.openFile(decoder, early.data)
	if err == nil {
		if r.moments.decoding != nil {
			r.moments.decoding(plain)
		}
		cost := indexCost()
		cost.budget = within.memory
		file, err = decodeIndexWithin(cost, plain)
	}
	switch {
	case errors.Is(err, ErrLimitExceeded) && within != anyIndex:
		return indexRead{err: errNotOrdinary}, nil
	case err != nil:
		return indexRead{err: fmt.Errorf("reading %s: %w", key, err)}, nil
	}
	return indexRead{file: file, stored: r.rememberFile(key, id, early.data)}, nil
}
