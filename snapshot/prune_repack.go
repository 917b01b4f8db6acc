package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"

	"holdfast/storage"
)

// verifyHomes reads the packs that are to be the only ones with something, of which other copies go, on every provider.
func (p *prune) verifyHomes(ctx context.Context) error {
	for i := range p.packs {
		if !p.packs[i].vouches {
			continue
		}
		info := &p.r.index.packs[i]
		err := p.readEverywhere(ctx, packKey(info.id), info.size, func(data []byte) error {
			if err := checkHash(info.id, data); err != nil {
				return err
			}
			return p.eachHome(data, p.packs[i].list, func(*indexEntry, []byte) error { return nil })
		})
		if err != nil {
			return fmt.Errorf("pack %s, of whose content other copies were to go, is not whole (%w): %w", info.id, errRefused, err)
		}
		p.meter.add(1, info.size, packKey(info.id))
	}
	return nil
}

// eachHome opens blobs of a pack, and hands on those that are what their names say, as they are sealed.
func (p *prune) eachHome(data []byte, homes []int, visit func(e *indexEntry, sealed []byte) error) error {
	var buffer []byte
	for _, i := range homes {
		e := p.r.index.entries.at(i)
		end := int64(e.offset) + int64(e.length)
		if end > int64(len(data)) {
			return fmt.Errorf("by the index blob %s ends beyond the pack: %w", e.id, ErrDamaged)
		}
		sealed := data[e.offset:end]
		plain, err := p.r.openBlob(buffer[:0], sealed, e.id, p.r.index.location(e))
		if err != nil {
			return err
		}
		buffer = plain
		if err := visit(e, sealed); err != nil {
			return err
		}
	}
	return nil
}

// repack writes what is needed of packs to new ones, as it is sealed, and reads the new packs again everywhere. Each data
// blob goes to a random one of several open packs, as in a backup.
func (p *prune) repack(ctx context.Context) error {
	var open [2][]*packBuilder
	open[dataBlob], open[treeBlob] = make([]*packBuilder, openDataPacks), make([]*packBuilder, 1)
	for i := range p.packs {
		if p.packs[i].fate != fateRepack {
			continue
		}
		info := &p.r.index.packs[i]
		data, err := p.r.loadPackWhole(ctx, info.id, info.size)
		if err != nil {
			return fmt.Errorf("%w (%w)", err, errRefused)
		}
		err = p.eachHome(data, p.packs[i].list, func(e *indexEntry, sealed []byte) error {
			slot := rand.IntN(len(open[e.kind]))
			b := open[e.kind][slot]
			if b != nil && (b.sizeWith(len(sealed), e.plain) > p.r.options.PackSize || !b.fits(len(sealed))) {
				if err := p.writePack(ctx, b); err != nil {
					return err
				}
				b = nil
			}
			if b == nil {
				b = newPackBuilder(e.kind, nil) // new memory: a slow provider may still read the last one's
				open[e.kind][slot] = b
			}
			b.add(e.id, sealed, e.plain)
			return nil
		})
		if err != nil {
			return fmt.Errorf("writing pack %s anew: %w", info.id, err)
		}
		p.meter.add(1, info.size, packKey(info.id))
	}
	for _, builders := range open {
		for _, b := range builders {
			if b == nil {
				continue
			}
			if err := p.writePack(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// writePack stores a pack on every provider, and reads it again from each.
func (p *prune) writePack(ctx context.Context, b *packBuilder) error {
	id, data, blobs := b.finish(p.r.box)
	key := packKey(id)
	p.begunPacks = append(p.begunPacks, key)
	err := p.r.store.put(ctx, key, data, true)
	if err == nil {
		err = p.everywhere()
	}
	if err != nil {
		return fmt.Errorf("storing pack %s: %w", id, err)
	}
	size := int64(len(data))
	if err := p.readEverywhere(ctx, key, size, func(data []byte) error { return checkHash(id, data) }); err != nil {
		return fmt.Errorf("reading the new pack %s again: %w", id, err)
	}
	crc := storage.Checksum(data)
	p.writtenPacks = append(p.writtenPacks, newIndexPack(id, blobs, &crc))
	p.report.PacksWritten++
	p.report.BytesWritten += size
	return nil
}
