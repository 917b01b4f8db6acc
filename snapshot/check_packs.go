package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
)

// packs compares what the index says with what the providers list, and reads the packs that it was asked to.
func (c *checker) packs(ctx context.Context) error {
	l, err := list(ctx, c.repository.store, packPrefix)
	if err != nil {
		return err
	}
	c.unlisted(l)
	c.packList, c.indexed = l, c.indexedBlobs()
	ids := slices.SortedFunc(maps.Keys(c.indexed), blobID.compare)
	sizes := map[blobID]int64{}
	var suspicious []heldPack
	for _, id := range ids {
		blobs := c.indexed[id]
		c.report.Packs++
		c.report.Blobs += int64(len(blobs))
		sizes[id] = packSizeOf(blobs)
		c.layout(id, blobs)
		suspicious = append(suspicious, c.listed(id, sizes[id], len(blobs))...)
	}
	for _, key := range slices.Sorted(maps.Keys(l.objects)) {
		id, isPack := parsePackKey(key)
		switch {
		case !isPack:
			c.hints.add("%s: not a file of a repository", quotePath(key))
		case c.indexed[id] == nil:
			c.hints.add("pack %s: no index names it (left by an interrupted backup; it does no harm)", id)
		}
	}
	chosen := c.options.toRead(ids, sizes)
	c.meter.total(int64(len(chosen)), 0)
	if err := c.each(ctx, len(chosen), func(ctx context.Context, i int) error { return c.readPack(ctx, chosen[i]) }); err != nil {
		return err
	}
	// What is in a copy of the wrong size, only that copy can tell.
	if err := c.each(ctx, len(suspicious), func(ctx context.Context, i int) error {
		return c.readOther(ctx, suspicious[i])
	}); err != nil {
		return err
	}
	read := map[blobID]bool{}
	for _, id := range chosen {
		read[id] = true
	}
	c.report.Read = CheckRead{Data: ReadNone, Subset: c.options.Subset.String(), Packs: int64(len(chosen))}
	switch {
	case c.options.ReadData:
		c.report.Read.Data = ReadAll
	case !c.options.Subset.isZero():
		c.report.Read.Data = ReadSubset
	}
	for _, id := range ids {
		if !read[id] {
			c.report.Read.UnreadPacks++
			c.report.Read.UnreadBytes += sizes[id]
		}
	}
	return nil
}

// each does n things, some at a time.
func (c *checker) each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(c.repository.options.Concurrency + 1)
	for i := range n {
		if groupContext.Err() != nil {
			break
		}
		group.Go(func() error { return do(groupContext, i) })
	}
	return group.Wait()
}

// heldPack is one provider's copy of a pack.
type heldPack struct {
	id blobID
	heldObject
}

// listed compares a pack's copies with the index by their sizes, and gives those that are there with a wrong one.
func (c *checker) listed(id blobID, size int64, blobs int) (suspicious []heldPack) {
	l, key := c.packList, packKey(id)
	if len(l.objects[key]) == 0 {
		c.errors.add("pack %s: missing on every provider; the index has %d blobs in it", id, blobs)
	}
	for _, object := range l.objects[key] {
		if object.Size != size {
			c.errors.add("pack %s: on %s it has %d bytes instead of %d", id, object.provider, object.Size, size)
			c.breaks(l, key, id, object.provider, ProblemDamaged, fmt.Sprintf("it has %d bytes instead of %d", object.Size, size))
			suspicious = append(suspicious, heldPack{id, object})
		}
	}
	for _, url := range l.listed {
		if !slices.ContainsFunc(l.objects[key], func(o heldObject) bool { return o.provider == url }) {
			if len(l.objects[key]) > 0 {
				c.errors.add("%s: missing on %s", key, url)
			}
			c.breaks(l, key, id, url, ProblemMissing, "it is not there")
			c.spoils(copyID{id, url}, &badCopy{all: true})
		}
	}
	return suspicious
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
func (c *checker) readPack(ctx context.Context, id blobID) error {
	var whole []byte
	var read int64
	for _, object := range c.packList.objects[packKey(id)] {
		data, err := c.readCopy(ctx, heldPack{id, object})
		if err != nil {
			return err
		}
		if data != nil {
			whole = data
			read += object.Size
		}
	}
	c.meter.add(1, read, packKey(id))
	if whole != nil {
		c.contents(id, whole, c.indexed[id])
	}
	return nil
}

// openedBlob are buffers for one blob after the other.
type openedBlob struct{ packed, plain []byte }

// contents compares a pack that is what was written with the index, and opens every blob.
func (c *checker) contents(id blobID, data []byte, blobs []packedBlob) {
	header, err := c.headerOf(id, data)
	if err != nil {
		c.errors.add("pack %s: %v", id, err)
	} else if !slices.Equal(header, blobs) {
		c.errors.add("pack %s: its own header and the index do not name the same blobs", id)
	}
	bad := c.unopened(data, blobs)
	for _, b := range blobs {
		if err := bad[b.key()]; err != nil {
			c.errors.add("pack %s: %s blob %s cannot be opened: %v", id, b.location.kind, b.id, err)
		}
	}
	if len(bad) == 0 {
		return
	}
	for _, object := range c.packList.objects[packKey(id)] { // written so: whatever copy
		c.breaks(c.packList, packKey(id), id, object.provider, ProblemDamaged, fmt.Sprintf("%d blobs in it were written wrong", len(bad)))
		c.spoils(copyID{id, object.provider}, &badCopy{blobs: bad})
	}
}

// unopened are the blobs of a pack, or of what is left of it, that are not what the index says.
func (c *checker) unopened(data []byte, blobs []packedBlob) map[blobKey]error {
	opened, ok := c.opened.Get().(*openedBlob)
	if !ok {
		opened = &openedBlob{}
	}
	defer c.opened.Put(opened)
	var bad map[blobKey]error
	for _, b := range blobs {
		end := int64(b.location.offset) + int64(b.location.length)
		var err error
		if end > int64(len(data)) {
			err = fmt.Errorf("by the index it ends at %d, beyond the pack", end)
		} else {
			var plain []byte
			plain, err = c.repository.openBlobThrough(&opened.packed, opened.plain[:0], data[b.location.offset:end], b.id, b.location)
			if err == nil {
				opened.plain = plain
			}
		}
		if err != nil {
			if bad == nil {
				bad = map[blobKey]error{}
			}
			bad[b.key()] = err
		}
	}
	return bad
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
