package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// This file is what Prune and RebuildIndex share: a view of what is really stored, and the exchange of all indexes.

// maintenance is one run of either. It works on what the providers show now, all of them, whatever this process
// remembers of before.
type maintenance struct {
	r     *Repository      // the view, with everything read anew
	lock  *heldLock        // nil in a dry run
	all   listing          // everything that is stored
	own   string           // the key of our lock file in that listing; empty in a dry run
	alone map[string]store // each provider by itself, by URL
	close []func()
	// allowed, when set, is asked before every allowedRemovals removals of what was there before.
	allowed func(context.Context) error
	// indexes are the index files that were written, and what they say as it was read again.
	indexes map[blobID]bool
	written *memoryIndex
	// begun are the keys of all index files and packs whose writing was begun.
	begunIndexes, begunPacks []string
}

// beginMaintenance locks the repository for this program alone, unless it is a dry run, and looks at everything.
func (r *Repository) beginMaintenance(ctx context.Context, dryRun bool, lockWait time.Duration) (*maintenance, error) {
	if r.mixed != nil {
		return nil, r.mixed
	}
	m := &maintenance{indexes: map[blobID]bool{}, r: &Repository{
		store: r.store, options: r.options, log: r.log, config: r.config, keyName: r.keyName, box: r.box, codec: r.codec,
		chunkerKey: r.chunkerKey, index: newMemoryIndex(r.options.IndexMemory), indexFiles: map[blobID]storedFile{}, indexDamaged: map[blobID]error{},
		files: map[string]storedFile{}, parsed: map[blobID]*storedSnapshot{},
	}}
	if err := m.everywhere(); err != nil {
		return nil, err
	}
	if !dryRun {
		var err error
		if m.lock, err = m.r.lockExclusive(ctx, lockWait); err != nil {
			return nil, err
		}
		m.close = append(m.close, func() { m.lock.release(ctx) })
	}
	if err := m.look(ctx); err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

func (m *maintenance) look(ctx context.Context) (err error) {
	// Without tries in place: what a look at one copy finds wrong stops everything.
	alone, end, err := m.r.store.alone(true)
	if err != nil {
		return err
	}
	m.close = append(m.close, end)
	m.alone = alone
	if err := m.r.refreshIndex(ctx); err != nil {
		return err
	}
	if m.lock != nil {
		m.lock.renewing.Lock() // the file keeps its name until it is listed
		defer m.lock.renewing.Unlock()
		m.own = lockPrefix + m.lock.id.String()
	}
	m.all, err = m.list(ctx, "")
	return err
}

// end releases the lock.
func (m *maintenance) end() {
	for _, close := range slices.Backward(m.close) {
		close()
	}
}

// list lists all providers, or fails.
func (m *maintenance) list(ctx context.Context, prefix string) (listing, error) {
	l, err := list(ctx, m.r.store, prefix)
	if err != nil {
		return l, err
	}
	if err := l.failure(); err != nil {
		return l, fmt.Errorf("not all providers can be listed: %w", err)
	}
	return l, nil
}

// everywhere fails when a provider missed a write.
func (m *maintenance) everywhere() error {
	for _, url := range m.r.store.behind() {
		return fmt.Errorf("%s does not take what is written: %w", url, m.r.store.mirror.BehindError(url))
	}
	return nil
}

// on reports whether every provider holds an object with this size.
func (m *maintenance) on(l listing, key string, size int64) error {
	held := map[string]int64{}
	for _, object := range l.objects[key] {
		held[object.provider] = object.Size
	}
	for _, p := range m.r.store.providers() {
		switch got, ok := held[p.URL()]; {
		case !ok:
			return fmt.Errorf("%s lacks %s: %w", p.URL(), key, ErrNotStoredWhole)
		case got != size:
			return fmt.Errorf("%s has %d bytes of %s instead of %d: %w", p.URL(), got, key, size, ErrNotStoredWhole)
		}
	}
	return nil
}

// readEverywhere reads every provider's copy of an object and has it checked.
func (m *maintenance) readEverywhere(ctx context.Context, key string, size int64, check func([]byte) error) error {
	for _, url := range slices.Sorted(maps.Keys(m.alone)) {
		if _, err := m.alone[url].load(ctx, key, 0, size, check); err != nil {
			return fmt.Errorf("the copy on %s: %w", url, err)
		}
	}
	return nil
}

// writeIndexes stores index files that name exactly these packs, everywhere, and takes what they say from what is read
// of them again.
func (m *maintenance) writeIndexes(ctx context.Context, packs []indexPack) error {
	m.written = newMemoryIndex(m.r.options.IndexMemory)
	slices.SortFunc(packs, func(a, b indexPack) int { return a.ID.compare(b.ID) })
	for len(packs) > 0 {
		n, blobs := 0, 0
		for n < len(packs) && (n == 0 || blobs+len(packs[n].Blobs) <= indexBlobs) {
			blobs += len(packs[n].Blobs)
			n++
		}
		id, stored, err := m.r.storeFile(ctx, indexPrefix, indexFile{Packs: packs[:n]})
		m.begunIndexes = append(m.begunIndexes, indexPrefix+id.String())
		if err == nil {
			err = m.everywhere()
		}
		if err != nil {
			return fmt.Errorf("storing an index: %w", err)
		}
		m.indexes[id] = true
		var read indexFile
		err = m.readEverywhere(ctx, indexPrefix+id.String(), stored.size, func(sealed []byte) error {
			read, err = m.r.openIndex(id, sealed)
			return err
		})
		for i := 0; i < len(read.Packs) && err == nil; i++ {
			err = m.written.add(read.Packs[i], id)
		}
		if err != nil {
			return fmt.Errorf("reading the new index %s again: %w", id, err)
		}
		packs = packs[n:]
	}
	return nil
}

// openIndex reads the stored bytes of an index file.
func (r *Repository) openIndex(id blobID, sealed []byte) (indexFile, error) {
	if err := checkHash(id, sealed); err != nil {
		return indexFile{}, err
	}
	framed, err := r.box.open(nil, sealed)
	if err != nil {
		return indexFile{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	plain, err := r.codec.unpackFile(framed)
	if err != nil {
		return indexFile{}, err
	}
	return decodeIndex(plain)
}

// oldIndexes are the keys of all index files that were there at the beginning, damaged ones too.
func (m *maintenance) oldIndexes() (keys []string) {
	for key := range m.all.objects {
		if _, err := parseID(strings.TrimPrefix(key, indexPrefix)); err == nil && strings.HasPrefix(key, indexPrefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// indexesAre fails unless exactly these index files are there: the new ones, on every provider, and perhaps the old ones.
func (m *maintenance) indexesAre(l listing, old bool) error {
	allowed := map[string]bool{}
	for id := range m.indexes {
		key := indexPrefix + id.String()
		allowed[key] = true
		if err := m.on(l, key, m.r.files[key].size); err != nil {
			return err
		}
	}
	for _, key := range m.oldIndexes() {
		if allowed[key] = old; !old && len(l.objects[key]) > 0 {
			return fmt.Errorf("%s is still there: %w", key, ErrNotStoredWhole)
		}
	}
	for key := range l.objects {
		if _, err := parseID(strings.TrimPrefix(key, indexPrefix)); err == nil && strings.HasPrefix(key, indexPrefix) && !allowed[key] {
			return fmt.Errorf("somebody wrote %s meanwhile: %w", key, ErrLocked)
		}
	}
	return nil
}

// removeOldIndexes removes the indexes of before, and looks whether they are gone: only then may a pack go that one
// of them names.
func (m *maintenance) removeOldIndexes(ctx context.Context) error {
	if err := m.remove(ctx, m.oldIndexes()); err != nil {
		return err
	}
	l, err := m.list(ctx, indexPrefix)
	if err != nil {
		return err
	}
	return m.indexesAre(l, false)
}

const (
	// removalBatch is how many objects are removed after one look at the lock, and removals how many at once.
	removalBatch = 64
	removals     = 8
	// allowedRemovals is removalBatch for an operation that somebody else has to allow.
	allowedRemovals = 16
)

// remove removes objects from all providers. The first failure stops it.
func (m *maintenance) remove(ctx context.Context, keys []string) error {
	size := removalBatch
	if m.allowed != nil {
		size = allowedRemovals
	}
	for batch := range slices.Chunk(keys, size) {
		if err := m.lock.stillSole(ctx); err != nil {
			return err
		}
		if m.allowed != nil {
			if err := m.allowed(ctx); err != nil {
				return err
			}
		}
		group, groupContext := errgroup.WithContext(ctx)
		group.SetLimit(removals)
		for _, key := range batch {
			group.Go(func() error { return m.r.store.remove(groupContext, key) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// discard removes, as far as that is possible, what was written by a run that ends before anything old was removed: the
// indexes, and only then the packs that they name. Who stops for a damaged pack would otherwise leave as much again with
// every try, and an index that was stored wrong would stop the next one.
func (m *maintenance) discard(ctx context.Context) (done bool) {
	if len(m.begunIndexes)+len(m.begunPacks) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	m.allowed = nil // it is its own
	err := m.remove(ctx, m.begunIndexes)
	if err == nil && len(m.begunPacks) > 0 {
		var l listing
		if l, err = m.list(ctx, indexPrefix); err == nil {
			clear(m.indexes)
			if err = m.indexesAre(l, true); err == nil {
				err = m.remove(ctx, m.begunPacks)
			}
		}
	}
	if err != nil {
		m.r.log.Warn("what was written cannot be removed again; it does no harm", "packs", len(m.begunPacks), "indexes", len(m.begunIndexes), "error", err)
	}
	return err == nil
}

// packsOf turns what an index knows into what a new index file is to say, except for packs that are left out.
func packsOf(index *memoryIndex, leaveOut func(number int) bool) []indexPack {
	packs := make([]indexPack, len(index.packs))
	for i := range index.packs {
		info := &index.packs[i]
		packs[i] = indexPack{ID: info.id, Blobs: make([]indexBlob, 0, info.blobs)}
		if info.hasCRC {
			crc := info.crc
			packs[i].CRC32C = &crc
		}
	}
	for i := range index.entries.len() {
		e := index.entries.at(i)
		packs[e.pack].Blobs = append(packs[e.pack].Blobs, indexBlob{ID: e.id, Type: e.kind, Offset: e.offset, Length: e.length, Plain: e.plain})
	}
	var kept []indexPack
	for i := range packs {
		if leaveOut == nil || !leaveOut(i) {
			slices.SortFunc(packs[i].Blobs, func(a, b indexBlob) int { return int(int64(a.Offset) - int64(b.Offset)) })
			kept = append(kept, packs[i])
		}
	}
	return kept
}

// changed is the error for a repository that is not what it was when the work began.
func changed(format string, arguments ...any) error {
	return fmt.Errorf("the repository changed meanwhile: %w", fmt.Errorf(format, arguments...))
}

// errRefused says why a repository is left as it is.
var errRefused = errors.New("nothing was changed")
