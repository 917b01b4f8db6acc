package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// packs compares what the index says with what the providers list, and with readData with what is in the packs.
func (c *checker) packs(ctx context.Context, readData bool) error {
	l, err := list(ctx, c.repository.store, packPrefix)
	if err != nil {
		return err
	}
	c.unlisted(l)
	indexed := c.indexedBlobs()
	sizes := map[blobID]int64{}
	for id, blobs := range indexed {
		c.report.Packs++
		c.report.Blobs += int64(len(blobs))
		sizes[id] = packSizeOf(blobs)
		c.layout(id, blobs)
		key := packKey(id)
		if len(l.objects[key]) == 0 {
			c.errors.add("pack %s: missing on every provider; the index has %d blobs in it", id, len(blobs))
			continue
		}
		held := map[string]bool{}
		for _, object := range l.objects[key] {
			held[object.provider] = true
			if object.Size != sizes[id] {
				c.errors.add("pack %s: on %s it has %d bytes instead of %d", id, object.provider, object.Size, sizes[id])
			}
		}
		c.missing(l, key, held)
	}
	for _, key := range slices.Sorted(maps.Keys(l.objects)) {
		id, isPack := parsePackKey(key)
		switch {
		case !isPack:
			c.hints.add("%s: not a file of a repository", quotePath(key))
		case indexed[id] == nil:
			c.hints.add("pack %s: no index names it (left by an interrupted backup; it does no harm)", id)
		}
	}
	if !readData {
		return nil
	}
	c.meter.total(int64(len(indexed)), 0)
	var read atomic.Int64
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(c.repository.options.Concurrency + 1)
	for _, id := range slices.SortedFunc(maps.Keys(indexed), blobID.compare) {
		if groupContext.Err() != nil {
			break
		}
		group.Go(func() error {
			bytes, err := c.readPack(groupContext, l, id, sizes[id], indexed[id])
			read.Add(bytes)
			return err
		})
	}
	err = group.Wait()
	c.report.Bytes += read.Load()
	return err
}

// indexedBlobs are the blobs of every pack that an index names, by their offset.
func (c *checker) indexedBlobs() map[blobID][]packedBlob {
	indexed := map[blobID][]packedBlob{}
	for _, pack := range c.repository.indexedPacks() {
		indexed[pack.id] = make([]packedBlob, 0, pack.blobs)
	}
	c.repository.eachBlob(func(b packedBlob) bool {
		indexed[b.location.pack] = append(indexed[b.location.pack], b)
		return true
	})
	for _, blobs := range indexed {
		slices.SortFunc(blobs, func(a, b packedBlob) int {
			return cmp.Or(cmp.Compare(a.location.offset, b.location.offset), cmp.Compare(a.location.length, b.location.length))
		})
	}
	return indexed
}

// layout checks that a pack's blobs lie one after another from its beginning, and that trees and data are apart.
func (c *checker) layout(id blobID, blobs []packedBlob) {
	at := int64(0)
	mixed := false
	for _, b := range blobs {
		if int64(b.location.offset) != at {
			c.errors.add("pack %s: by the index, blob %s begins at %d instead of %d", id, b.id, b.location.offset, at)
			return
		}
		at += int64(b.location.length)
		mixed = mixed || b.location.kind != blobs[0].location.kind
	}
	if mixed {
		c.hints.add("pack %s: holds both trees and data", id)
	}
}

// readPack reads every provider's copy of a pack. A copy whose hash is right is the pack that was written; what that
// holds is then compared with the index, once.
func (c *checker) readPack(ctx context.Context, l listing, id blobID, size int64, blobs []packedBlob) (read int64, err error) {
	var whole []byte
	for _, object := range l.objects[packKey(id)] {
		if object.Size > maxPackSize {
			continue // reported: no index can say so much
		}
		err := c.load(ctx, object.provider, packKey(id), object.Size, func(data []byte) error {
			if err := checkHash(id, data); err != nil {
				return err
			}
			whole = data
			return nil
		})
		if cause := context.Cause(ctx); cause != nil {
			return read, cause
		}
		if err != nil {
			c.errors.add("pack %s: damaged or unreadable on %s: %v", id, object.provider, err)
			continue
		}
		read += object.Size
	}
	c.meter.add(1, read, packKey(id))
	if whole != nil {
		c.contents(id, whole, size, blobs)
	}
	return read, nil
}

// openedBlob are buffers for one blob after the other.
type openedBlob struct{ packed, plain []byte }

// contents compares a pack that is what was written with the index, and opens every blob.
func (c *checker) contents(id blobID, data []byte, size int64, blobs []packedBlob) {
	header, err := c.headerOf(id, data)
	if err != nil {
		c.errors.add("pack %s: %v", id, err)
	} else if !slices.Equal(header, blobs) {
		c.errors.add("pack %s: its own header and the index do not name the same blobs", id)
	}
	opened, ok := c.opened.Get().(*openedBlob)
	if !ok {
		opened = &openedBlob{}
	}
	defer c.opened.Put(opened)
	for _, b := range blobs {
		end := int64(b.location.offset) + int64(b.location.length)
		if end > int64(len(data)) {
			c.errors.add("pack %s: by the index, blob %s ends at %d, beyond the pack", id, b.id, end)
			continue
		}
		plain, err := c.repository.openBlobThrough(&opened.packed, opened.plain[:0], data[b.location.offset:end], b.id, b.location)
		if err != nil {
			c.errors.add("pack %s: %s blob %s cannot be opened: %v", id, b.location.kind, b.id, err)
			continue
		}
		opened.plain = plain
	}
}

func (c *checker) headerOf(id blobID, data []byte) ([]packedBlob, error) {
	size := int64(len(data))
	if size < packTrailerSize {
		return nil, fmt.Errorf("it has only %d bytes: %w", size, ErrDamaged)
	}
	length, err := sealedHeaderSize(id, size, data[size-packTrailerSize:])
	if err != nil {
		return nil, err
	}
	return c.repository.openHeader(id, size, data[size-packTrailerSize-length:size-packTrailerSize])
}
