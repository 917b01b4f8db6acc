package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// VerifyStored looks whether providers hold everything that a snapshot needs: config, a key, the snapshot file, the
// index files that name its packs, and every pack, old ones included. It is invariant 1's look, made after the writing
// and apart from it: what the providers list now is compared with what there should be, by size, and by checksum where
// the provider has one and the right one is known (of packs that this package wrote it always is). Of a provider whose
// listing has no checksums, everything but the packs is read and compared.
//
// The map has an entry for every provider: nil says that it was listed to the end and holds everything; an error that
// wraps ErrNotStoredWhole says what it lacks; any other that it could not be looked at. The error result says that the
// snapshot itself could not be read, so that nothing is known.
func (r *Repository) VerifyStored(ctx context.Context, snapshot string) (_ map[string]error, err error) {
	ended := r.options.Metrics.began("verify")
	defer func() { ended(err) }()
	s, err := r.resolveSnapshot(ctx, snapshot)
	if err != nil {
		return nil, fmt.Errorf("verifying what is stored: %w", err)
	}
	if err := r.refreshIndex(ctx); err != nil {
		return nil, fmt.Errorf("verifying what is stored: %w", err)
	}
	needed, err := r.references(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("verifying what is stored of snapshot %s: %w", s.id, err)
	}
	all, err := list(ctx, r.store, "")
	if err != nil && len(all.failed) < len(r.store.providers()) {
		return nil, fmt.Errorf("verifying what is stored: %w", err)
	}
	alone, end, err := r.store.alone(false)
	if err != nil {
		return nil, fmt.Errorf("verifying what is stored: %w", err)
	}
	defer end()
	outcome := map[string]error{}
	for _, provider := range r.store.providers() {
		url := provider.URL()
		if failed := all.failed[url]; failed != nil {
			outcome[url] = fmt.Errorf("listing: %w", failed)
			continue
		}
		held := map[string]storage.Object{}
		for key, holders := range all.objects {
			for _, h := range holders {
				if h.provider == url {
					held[key] = h.Object
				}
			}
		}
		outcome[url] = needed.compare(ctx, alone[url], held)
	}
	return outcome, ctx.Err()
}

// references is everything that a snapshot needs.
type references struct {
	// files are the objects that are small: config, key, snapshot, with what is in them.
	files map[string]storedFile
	// packs are those of which each is the only one that has some blob; alternatives are the sets of which one pack is
	// enough.
	packs        map[blobID]packInfo
	alternatives [][]packInfo
	indexes      map[blobID]storedFile
}

// references reads all trees of a snapshot.
func (r *Repository) references(ctx context.Context, s *storedSnapshot) (*references, error) {
	walk := &referenceWalk{
		r: r, reader: newPackReader(r), seen: map[blobKey]struct{}{},
		found: &references{packs: map[blobID]packInfo{}, files: map[string]storedFile{}, indexes: map[blobID]storedFile{}},
		sets:  map[string]struct{}{},
	}
	if err := walk.tree(ctx, *s.Tree); err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, key := range []string{configKey, r.keyName, snapshotPrefix + s.id.String()} {
		file, ok := r.files[key]
		if !ok {
			return nil, fmt.Errorf("%s was never read whole", key)
		}
		walk.found.files[key] = file
	}
	for id, file := range r.indexFiles {
		walk.found.indexes[id] = file
	}
	return walk.found, nil
}

// referenceWalk goes through the trees of a snapshot, level by level, several at once.
type referenceWalk struct {
	r      *Repository
	reader *packReader

	mu    sync.Mutex
	seen  map[blobKey]struct{}
	sets  map[string]struct{} // alternatives, by the names of their packs
	found *references
}

func (w *referenceWalk) tree(ctx context.Context, root blobID) error {
	level := []blobID{root}
	if _, err := w.need(ctx, blobKey{root, treeBlob}); err != nil {
		return err
	}
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxDepth {
			return fmt.Errorf("directories nest deeper than %d: %w", maxDepth, ErrLimitExceeded)
		}
		var mu sync.Mutex
		var next []blobID
		group, groupContext := errgroup.WithContext(ctx)
		group.SetLimit(w.r.options.Concurrency)
		for _, id := range level {
			group.Go(func() error {
				nodes, err := w.reader.tree(groupContext, id)
				if err != nil {
					return err
				}
				below, err := w.nodes(ctx, nodes)
				mu.Lock()
				next = append(next, below...)
				mu.Unlock()
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		level = next
	}
	return nil
}

// nodes notes what a directory's entries need, and returns the directories among them that are new.
func (w *referenceWalk) nodes(ctx context.Context, nodes []node) ([]blobID, error) {
	var below []blobID
	for i := range nodes {
		for _, id := range nodes[i].Content {
			if _, err := w.need(ctx, blobKey{id, dataBlob}); err != nil {
				return nil, fmt.Errorf("%s: %w", quotePath(nodes[i].Name), err)
			}
		}
		if nodes[i].Subtree == nil {
			continue
		}
		fresh, err := w.need(ctx, blobKey{*nodes[i].Subtree, treeBlob})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", quotePath(nodes[i].Name), err)
		}
		if fresh {
			below = append(below, *nodes[i].Subtree)
		}
	}
	return below, nil
}

// need notes the packs of one blob; false when it was noted before.
func (w *referenceWalk) need(ctx context.Context, key blobKey) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.seen[key]; ok {
		return false, nil
	}
	w.seen[key] = struct{}{}
	locations, err := w.r.findBlob(ctx, key.id, key.kind)
	if err != nil {
		return false, err
	}
	if len(locations) == 1 {
		id := locations[0].pack
		if _, ok := w.found.packs[id]; !ok {
			info, _ := w.r.indexedPack(id)
			w.found.packs[id] = info
		}
		return true, nil
	}
	slices.SortFunc(locations, func(a, b blobLocation) int { return a.pack.compare(b.pack) })
	var name []byte
	var set []packInfo
	for _, l := range locations {
		name = append(name, l.pack[:]...)
		info, _ := w.r.indexedPack(l.pack)
		set = append(set, info)
	}
	if _, ok := w.sets[string(name)]; !ok {
		w.sets[string(name)] = struct{}{}
		w.found.alternatives = append(w.found.alternatives, set)
	}
	return true, nil
}

// compare says what a provider that holds these objects lacks; nil for nothing.
func (n *references) compare(ctx context.Context, provider store, held map[string]storage.Object) error {
	var lacking []error
	readBack := map[string]storedFile{}
	for key, want := range n.files {
		if err := n.file(key, want, held, readBack); err != nil {
			lacking = append(lacking, err)
		}
	}
	usedIndexes := map[blobID]struct{}{}
	pack := func(want packInfo) error {
		if err := wholePack(want, held); err != nil {
			return err
		}
		for _, id := range want.files {
			if err := sameObject(indexPrefix+id.String(), n.indexes[id], held); err == nil {
				usedIndexes[id] = struct{}{}
				return nil
			}
		}
		return fmt.Errorf("no index file that names pack %s", want.id)
	}
	for _, want := range n.packs {
		if err := pack(want); err != nil {
			lacking = append(lacking, err)
		}
	}
	for _, set := range n.alternatives {
		var failures []error
		for _, want := range set {
			if err := pack(want); err != nil {
				failures = append(failures, err)
			}
		}
		if len(failures) == len(set) {
			lacking = append(lacking, failures...)
		}
	}
	for id := range usedIndexes {
		if err := n.file(indexPrefix+id.String(), n.indexes[id], held, readBack); err != nil {
			lacking = append(lacking, err)
		}
	}
	if len(lacking) == 0 {
		unread, err := compareContent(ctx, provider, readBack)
		if unread != nil {
			return unread
		}
		if err != nil {
			lacking = append(lacking, err)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	const named = 5
	more := ""
	if len(lacking) > named {
		more = fmt.Sprintf(" (and %d more)", len(lacking)-named)
	}
	return fmt.Errorf("%w%s: %w", ErrNotStoredWhole, more, errors.Join(lacking[:min(len(lacking), named)]...))
}

// file compares a small object; one whose checksum the provider does not list is to be read.
func (n *references) file(key string, want storedFile, held map[string]storage.Object, readBack map[string]storedFile) error {
	if err := sameObject(key, want, held); err != nil {
		return err
	}
	if !held[key].HasCRC32C {
		readBack[key] = want
	}
	return nil
}

func sameObject(key string, want storedFile, held map[string]storage.Object) error {
	object, ok := held[key]
	switch {
	case !ok:
		return fmt.Errorf("%s is not there", key)
	case want.size == 0:
		return fmt.Errorf("%s was never read whole", key)
	case object.Size != want.size:
		return fmt.Errorf("%s has %d bytes instead of %d", key, object.Size, want.size)
	case object.HasCRC32C && object.CRC32C != want.crc:
		return fmt.Errorf("%s has another checksum than it should", key)
	}
	return nil
}

func wholePack(want packInfo, held map[string]storage.Object) error {
	key := packKey(want.id)
	object, ok := held[key]
	switch {
	case !ok:
		return fmt.Errorf("%s is not there", key)
	case object.Size != want.size:
		return fmt.Errorf("%s has %d bytes instead of %d", key, object.Size, want.size)
	case object.HasCRC32C && want.hasCRC && object.CRC32C != want.crc:
		return fmt.Errorf("%s has another checksum than it should", key)
	}
	return nil
}

// compareContent reads small objects of one provider. unread says that one could not be read, different that one is not
// what it should be.
func compareContent(ctx context.Context, provider store, files map[string]storedFile) (unread, different error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(unpackedLoaders)
	for key, want := range files {
		group.Go(func() error {
			_, err := provider.load(ctx, key, 0, want.size, func(data []byte) error { return checkHash(want.hash, data) })
			switch {
			case errors.Is(err, ErrDamaged):
				return fmt.Errorf("%s is not what it should be: %w: %w", key, ErrNotStoredWhole, err)
			case err != nil:
				return fmt.Errorf("reading %s: %w", key, err)
			}
			return nil
		})
	}
	err := group.Wait()
	if errors.Is(err, ErrNotStoredWhole) {
		return nil, err
	}
	return err, nil
}
