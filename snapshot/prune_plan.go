package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// fate is what becomes of a pack.
type fate uint8

const (
	fateKeep   fate = iota
	fateRepack      // what is needed of it goes to a new pack
	fateRemove      // nothing of it is needed
)

const (
	// smallPack is the share of a pack's intended size below which it is small, and manySmall how many of a kind make it
	// worthwhile to write them anew as few large ones.
	smallPack = 4
	manySmall = 8
)

// prunePack is what a prune knows of a pack besides the index.
type prunePack struct {
	fate  fate
	young bool
	sound bool  // it is on every provider, with its size
	kind  int   // the blobType of all its blobs, or mixedPack
	needs int64 // bytes of blobs that are needed, with their entries in the header, wherever else they are too
	homes int64 // the same, of those whose home is here
	// vouches: this pack stays, and something that has its home here has other copies that go.
	vouches bool
	// list has the entries whose home is here, in the pack's order, when they are to be read.
	list []int
}

const mixedPack = -1

// mendOwed is what a person can do about a provider that lacks something.
const mendOwed = "a backup or `holdfast snapshot repair` (RepairMirror) copies what a provider lacks"

// unused is how many bytes of a pack are not needed, or are second copies.
func (p *prune) unused(i int) int64 {
	return p.r.index.packs[i].size - packFrameSize - p.packs[i].homes
}

// plan decides what becomes of every pack.
func (p *prune) plan() error {
	x := p.r.index
	p.packs = make([]prunePack, len(x.packs))
	for i := range x.packs {
		info, pack := &x.packs[i], &p.packs[i]
		key := packKey(info.id)
		if len(p.all.objects[key]) == 0 {
			return fmt.Errorf("pack %s is named by an index and is on no provider (RebuildIndex mends that; %w): %w", info.id, errRefused, ErrDamaged)
		}
		pack.sound = p.on(p.all, key, info.size) == nil && p.sameChecksum(info)
		pack.young = p.isYoung(key)
	}
	seen := make([]bool, len(x.packs))
	for i := range x.entries.len() {
		e := x.entries.at(i)
		pack := &p.packs[e.pack]
		if seen[e.pack] && pack.kind != int(e.kind) {
			pack.kind = mixedPack
		} else {
			pack.kind = int(e.kind)
		}
		seen[e.pack] = true
		if p.used[i] {
			pack.needs += storedBytes(e)
		}
	}
	if err := p.findHomes(); err != nil {
		return err
	}
	p.decide()
	p.findVouchers()
	p.listHomes()
	p.findOrphans()
	return nil
}

// storedBytes is what a blob adds to its pack.
func storedBytes(e *indexEntry) int64 {
	return int64(e.length) + blobLocation{plain: e.plain}.headerSize()
}

// sameChecksum is false when a provider lists another checksum than that which the index has for the pack.
func (p *prune) sameChecksum(info *packInfo) bool {
	return !slices.ContainsFunc(p.all.objects[packKey(info.id)], func(o heldObject) bool {
		return info.hasCRC && o.HasCRC32C && o.CRC32C != info.crc
	})
}

// isYoung reports whether a provider has had a pack for less than the grace period, by its own clock, which our lock file
// shows, or by this host's in a dry run. When that cannot be told, it is young.
func (p *prune) isYoung(key string) bool {
	if p.options.Grace < 0 {
		return false
	}
	for _, held := range p.all.objects[key] {
		if held.Modified.IsZero() {
			return true
		}
	}
	return unrenewed(p.all, key, p.own, time.Now()) < p.options.Grace
}

// findHomes chooses for each needed blob the one place where it stays, if it is in several packs: rather a pack that is
// whole everywhere, that stays anyhow, and that is needed most. A blob without a whole pack stops everything.
func (p *prune) findHomes() error {
	x := p.r.index
	p.home = make([]bool, x.len())
	better := func(a, b int) bool { // of two entries, by their packs
		pa, pb := &p.packs[x.entries.at(a).pack], &p.packs[x.entries.at(b).pack]
		if pa.sound != pb.sound {
			return pa.sound
		}
		if pa.young != pb.young {
			return pa.young
		}
		return cmp.Or(cmp.Compare(pa.needs, pb.needs), x.packs[x.entries.at(b).pack].id.compare(x.packs[x.entries.at(a).pack].id), b-a) > 0
	}
	for i := range x.entries.len() {
		e := x.entries.at(i)
		if !p.used[i] {
			continue
		}
		best := i
		for other := range x.numbers(blobKey{e.id, e.kind}) {
			if better(other, best) {
				best = other
			}
		}
		if best != i {
			continue
		}
		pack := &x.packs[e.pack]
		if !p.packs[e.pack].sound {
			err := p.on(p.all, packKey(pack.id), pack.size)
			if err == nil {
				err = fmt.Errorf("pack %s has another checksum than it should: %w", pack.id, ErrNotStoredWhole)
			}
			return fmt.Errorf("what snapshots need is not whole everywhere (%s; %w): %w", mendOwed, errRefused, err)
		}
		p.home[i] = true
		p.packs[e.pack].homes += storedBytes(e)
		p.report.UsedBytes += int64(e.length)
	}
	return nil
}

// decide says of every pack what becomes of it.
func (p *prune) decide() {
	x := p.r.index
	var partly []int
	left := int64(0) // unneeded bytes that would stay
	for i := range p.packs {
		pack := &p.packs[i]
		unused := p.unused(i)
		p.report.Packs++
		p.report.Blobs += int64(x.packs[i].blobs)
		p.report.UnusedBytes += unused
		switch {
		case pack.young:
			if unused > 0 {
				p.report.PacksYoung++
				p.report.UnusedLeft += unused
			}
		case pack.homes == 0:
			pack.fate = fateRemove
		case unused > 0:
			partly = append(partly, i)
			left += unused
		}
	}
	share := func(i int) float64 { return float64(p.unused(i)) / float64(x.packs[i].size) }
	slices.SortFunc(partly, func(a, b int) int {
		return cmp.Or(cmp.Compare(share(b), share(a)), x.packs[a].id.compare(x.packs[b].id))
	})
	allowed := p.options.MaxUnused(p.report.UsedBytes)
	for _, i := range partly {
		if left > allowed && p.repackable(i) {
			left -= p.unused(i)
		}
	}
	p.report.UnusedLeft += left
	for kind := range []blobType{dataBlob, treeBlob} {
		var small []int
		for i := range p.packs {
			if pack := &p.packs[i]; pack.kind == kind && pack.fate == fateKeep && !pack.young && x.packs[i].size < int64(p.r.options.PackSize/smallPack) {
				small = append(small, i)
			}
		}
		for _, i := range small {
			if len(small) >= manySmall && p.repackable(i) {
				p.report.UnusedLeft -= p.unused(i)
			}
		}
	}
}

// repackable marks a pack to be written anew, unless that would be more than the limit allows.
func (p *prune) repackable(i int) bool {
	size := p.r.index.packs[i].size
	if p.options.MaxRepack > 0 && p.report.BytesRepacked+size > p.options.MaxRepack {
		return false
	}
	p.packs[i].fate = fateRepack
	p.report.BytesRepacked += size
	return true
}

// findVouchers marks the packs that stay and are to be the only ones with some blob, of which other copies go. Such a
// copy may be there because this one was found damaged.
func (p *prune) findVouchers() {
	x := p.r.index
	for i := range x.entries.len() {
		e := x.entries.at(i)
		if !p.home[i] || p.packs[e.pack].fate != fateKeep {
			continue
		}
		for other := range x.numbers(blobKey{e.id, e.kind}) {
			if p.packs[x.entries.at(other).pack].fate != fateKeep {
				p.packs[e.pack].vouches = true
			}
		}
	}
}

// listHomes lists what is to be read of the packs that are to be read.
func (p *prune) listHomes() {
	x := p.r.index
	for i := range x.entries.len() {
		if pack := &p.packs[x.entries.at(i).pack]; p.home[i] && (pack.vouches || pack.fate == fateRepack) {
			pack.list = append(pack.list, i)
		}
	}
	for i := range p.packs {
		slices.SortFunc(p.packs[i].list, func(a, b int) int { return cmp.Compare(x.entries.at(a).offset, x.entries.at(b).offset) })
	}
}

// findOrphans lists the packs that no index names. A file that is not where a pack of its name belongs is nobody's.
func (p *prune) findOrphans() {
	for key, held := range p.all.objects {
		id, ok := parsePackKey(key)
		if !ok || key != packKey(id) {
			continue
		}
		if _, indexed := p.r.index.pack(id); indexed {
			continue
		}
		p.report.Packs++
		p.report.UnusedBytes += held[0].Size
		if p.isYoung(key) {
			p.report.PacksYoung++
			p.report.UnusedLeft += held[0].Size
			continue
		}
		p.orphans = append(p.orphans, key)
	}
	slices.Sort(p.orphans)
}
