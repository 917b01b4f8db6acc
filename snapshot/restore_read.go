package snapshot

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/singleflight"
)

// packReader reads blobs one by one for work that goes through a tree in its own order, without asking the provider for
// each of them: a pack of which several blobs were wanted is read whole, once, and kept for a while. Neighbours in a
// directory are most often neighbours in a pack too.
type packReader struct {
	repository *Repository
	flight     singleflight.Group

	mutex sync.Mutex
	asked map[blobID]int
	kept  []keptPack // the most recently used last
}

type keptPack struct {
	id   blobID
	data []byte
}

const (
	// wholePackAfter is the number of single blobs after which a pack is read whole.
	wholePackAfter = 2
	// keptPackBytes bounds the packs in memory, and largestKeptPack a single one.
	keptPackBytes   = 64 << 20
	largestKeptPack = 32 << 20
)

func newPackReader(r *Repository) *packReader {
	return &packReader{repository: r, asked: map[blobID]int{}}
}

// blob returns a blob's plaintext, its hash verified.
func (p *packReader) blob(ctx context.Context, id blobID, kind blobType) ([]byte, error) {
	locations := p.repository.blobLocations(id, kind)
	if len(locations) > 0 {
		at := locations[0]
		if data := p.pack(ctx, at.pack); data != nil && int64(at.offset)+int64(at.length) <= int64(len(data)) {
			plain, err := p.repository.openBlob(nil, data[at.offset:at.offset+at.length], id, at)
			if err == nil {
				return plain, nil
			}
		}
	}
	// Not in a pack that could be had whole: this tries every provider and every pack for just these bytes.
	return p.repository.loadBlob(ctx, id, kind)
}

// tree returns a directory's nodes.
func (p *packReader) tree(ctx context.Context, id blobID) ([]node, error) {
	plain, err := p.blob(ctx, id, treeBlob)
	if err != nil {
		return nil, err
	}
	nodes, err := decodeTree(plain)
	if err != nil {
		return nil, fmt.Errorf("tree %s: %w", id, err)
	}
	return nodes, nil
}

// pack returns all bytes of a pack, or nil when it is not (yet) worth reading whole, or cannot be.
func (p *packReader) pack(ctx context.Context, id blobID) []byte {
	p.mutex.Lock()
	for i := range p.kept {
		if p.kept[i].id == id {
			found := p.kept[i]
			p.kept = append(append(p.kept[:i:i], p.kept[i+1:]...), found)
			p.mutex.Unlock()
			return found.data
		}
	}
	p.asked[id]++
	often := p.asked[id] > wholePackAfter
	p.mutex.Unlock()
	if !often {
		return nil
	}
	info, known := p.repository.indexedPack(id)
	if !known || info.size > largestKeptPack {
		return nil
	}
	data, err, _ := p.flight.Do(string(id[:]), func() (any, error) {
		data, err := p.repository.loadPackWhole(ctx, id, info.size)
		p.mutex.Lock()
		defer p.mutex.Unlock()
		if err != nil {
			p.asked[id] = -1000 // blob by blob, for a good while
			return nil, err
		}
		p.asked[id] = 0 // once it is dropped again, it has to earn its place anew
		p.kept = append(p.kept, keptPack{id, data})
		total := 0
		for i := len(p.kept) - 1; i >= 0; i-- {
			if total += len(p.kept[i].data); total > keptPackBytes && i < len(p.kept)-1 {
				p.kept = append([]keptPack(nil), p.kept[i+1:]...)
				break
			}
		}
		return data, nil
	})
	if err != nil {
		return nil
	}
	return data.([]byte)
}

// indexedPack is what the index knows of a pack.
func (r *Repository) indexedPack(id blobID) (packInfo, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.index.pack(id)
}

func (r *Repository) fallbacks() map[string]int64 { return r.store.fallbacks() }

// fallbacksSince are the providers that failed since the counts were before.
func (r *Repository) fallbacksSince(before map[string]int64) map[string]int64 {
	since := map[string]int64{}
	for url, count := range r.fallbacks() {
		if count > before[url] {
			since[url] = count - before[url]
		}
	}
	return since
}
