package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// inventory is what providers hold when a backup begins: one listing of each. From it follows which packs need not be
// stored again although no index names them (a backup was killed), which must be although an index does (they are
// lost), and which objects some provider lacks (it was down).
type inventory struct {
	r   *Repository
	all listing
	// lost are packs that an index names and no listed provider has with the right size and checksum.
	lost map[blobID]struct{}
	// whole is the right size of every object that belongs to the repository, as far as it can be told.
	whole map[string]int64

	mu   sync.Mutex
	owed map[string]error // providers that lack something, by URL
}

func (r *Repository) takeInventory(ctx context.Context) (*inventory, error) {
	all, err := list(ctx, r.store, "")
	if err != nil {
		return nil, fmt.Errorf("looking at what is stored: %w", err)
	}
	v := &inventory{r: r, all: all, lost: map[blobID]struct{}{}, whole: map[string]int64{}, owed: map[string]error{}}
	for url, err := range all.failed {
		v.owed[url] = fmt.Errorf("cannot be listed: %w", err)
	}
	if err := v.enough(); err != nil {
		return nil, fmt.Errorf("looking at what is stored: %w", err)
	}
	if err := v.rereadDamagedIndexes(ctx); err != nil {
		return nil, err
	}
	for _, pack := range r.indexedPacks() {
		key := packKey(pack.id)
		if slices.ContainsFunc(all.objects[key], func(o heldObject) bool {
			return o.Size == pack.size && (!pack.hasCRC || !o.HasCRC32C || o.CRC32C == pack.crc)
		}) {
			v.whole[key] = pack.size
		} else {
			v.lost[pack.id] = struct{}{}
			r.log.Warn("a pack that was stored is not there any more; what it held is stored again if it still exists", "pack", pack.id.String())
		}
	}
	return v, nil
}

// rereadDamagedIndexes builds the index anew when a file that it was built from is whole on no provider that can be
// listed: its packs, as far as they are there, are to be named by a new one.
func (v *inventory) rereadDamagedIndexes(ctx context.Context) error {
	v.r.mu.Lock()
	damaged := false
	for id, want := range v.r.indexFiles {
		damaged = damaged || !slices.ContainsFunc(v.all.objects[indexPrefix+id.String()], func(o heldObject) bool {
			return o.Size == want.size && (!o.HasCRC32C || o.CRC32C == want.crc)
		})
	}
	if damaged {
		v.r.index, v.r.indexFiles = newMemoryIndex(v.r.options.IndexMemory), map[blobID]storedFile{}
	}
	v.r.mu.Unlock()
	if !damaged {
		return nil
	}
	return v.r.refreshIndex(ctx)
}

// enough fails when more providers owe something than the policy allows.
func (v *inventory) enough() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	total := len(v.r.store.providers())
	if total-len(v.owed) >= v.r.store.policy().Count(total) {
		return nil
	}
	return &storage.MirrorError{Doing: "looking at", Key: "what is stored", Causes: v.owed}
}

func (v *inventory) owe(url string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.owed[url] == nil {
		v.owed[url] = err
	}
}

func (v *inventory) owes(url string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.owed[url] != nil
}

// adopt takes in the packs that no index file names, by the authenticated headers at their ends. They are what a backup
// that was killed, here or on another node, had stored since its last index.
func (v *inventory) adopt(ctx context.Context, p *packer) (adopted int, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(unpackedLoaders)
	for key := range v.all.objects {
		id, ok := parsePackKey(key)
		if !ok || key != packKey(id) {
			continue
		}
		v.r.mu.RLock()
		known, ok := v.r.index.pack(id)
		v.r.mu.RUnlock()
		if ok && known.indexed() {
			continue
		}
		group.Go(func() error {
			blobs, size, err := v.header(ctx, id, key)
			var crc *uint32
			if ok && known.hasCRC {
				crc = &known.crc
			} else if err == nil && size <= adoptedWhole {
				crc, err = v.checksum(ctx, id, size)
			}
			if err != nil {
				if !permanent(err) {
					return fmt.Errorf("taking in pack %s: %w", id, err)
				}
				v.r.log.Warn("a pack that no index names is damaged, and left alone", "pack", id.String(), "error", err)
				return nil
			}
			mu.Lock()
			v.whole[key] = size
			adopted++
			mu.Unlock()
			return p.stored(ctx, newIndexPack(id, blobs, crc))
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return adopted, nil
}

// adoptedWhole bounds what is read of a pack before it is taken in: no pack of ours is larger, some of four are in memory.
const adoptedWhole = 128 << 20

// checksum reads a pack whole and compares it with its name. What it should be is known nowhere else, so that later looks
// (invariant 1) would compare no more than its size; and blobs that are taken for stored are not stored again. There are few
// such packs: an index follows each Options.IndexEvery of them.
func (v *inventory) checksum(ctx context.Context, id blobID, size int64) (*uint32, error) {
	data, err := v.r.loadPackWhole(ctx, id, size)
	if err != nil {
		return nil, err
	}
	crc := storage.Checksum(data)
	return &crc, nil
}

// header tries the sizes that providers report for a pack: a copy that was cut short fails.
func (v *inventory) header(ctx context.Context, id blobID, key string) ([]packedBlob, int64, error) {
	failure := fmt.Errorf("it is too large: %w", ErrLimitExceeded)
	for _, size := range v.all.sizes(key, maxPackSize) {
		blobs, err := v.r.loadPackHeader(ctx, id, size)
		if err == nil {
			return blobs, size, nil
		}
		if !permanent(err) {
			return nil, 0, err
		}
		failure = err
	}
	return nil, 0, failure
}

// disputed reports whether some provider's checksum of an object is not the one that it should have, or, where that is
// not known, not the others'. Which copy is good, its hash says.
func (v *inventory) disputed(key string, holders []heldObject) bool {
	var sum *uint32
	v.r.mu.RLock()
	if known, ok := v.r.files[key]; ok {
		sum = &known.crc
	} else if id, ok := parsePackKey(key); ok {
		if pack, ok := v.r.index.pack(id); ok && pack.hasCRC {
			sum = &pack.crc
		}
	}
	v.r.mu.RUnlock()
	for i := range holders {
		switch {
		case !holders[i].HasCRC32C:
		case sum == nil:
			sum = &holders[i].CRC32C
		case *sum != holders[i].CRC32C:
			return true
		}
	}
	return false
}

// rightSize is the size of an object's whole copy; false for what is no part of the repository (locks, foreign files),
// and for packs that are damaged everywhere.
func (v *inventory) rightSize(key string, holders []heldObject) (int64, bool) {
	if strings.HasPrefix(key, packPrefix) {
		size, ok := v.whole[key]
		return size, ok
	}
	if key != configKey && !strings.HasPrefix(key, keyPrefix) && !strings.HasPrefix(key, indexPrefix) &&
		!strings.HasPrefix(key, snapshotPrefix) {
		return 0, false
	}
	v.r.mu.RLock()
	known, ok := v.r.files[key]
	v.r.mu.RUnlock()
	if ok {
		return known.size, true
	}
	// A copy that was cut short is smaller. The hash decides when it is read.
	size := int64(0)
	for _, held := range holders {
		size = max(size, held.Size)
	}
	return size, size <= maxUnpackedSize
}

// checkObject accepts the bytes of an object that is named after its hash, and a config that is this repository's.
func (r *Repository) checkObject(key string, data []byte) error {
	if key == configKey {
		plain, err := r.box.open(nil, data)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		config, err := decodeConfig(plain)
		if err == nil && config != r.config {
			err = fmt.Errorf("the config is another repository's: %w", ErrDamaged)
		}
		return err
	}
	id, err := parseID(key[strings.LastIndexByte(key, '/')+1:])
	if err != nil {
		return err
	}
	return checkHash(id, data)
}
