package snapshot

import (
	"cmp"
	"fmt"
	"slices"
)

// blobUse is one place in one file where a blob belongs, and where the blob lies.
type blobUse struct {
	pack                  int32 // number in the order of first use
	entry, chunk          int32
	offset, length, plain uint32 // as in blobLocation
	at                    int64  // offset in the file
}

// packSpan is a part of one pack that is read at once, with the uses of the blobs in it.
type packSpan struct {
	pack       blobID
	begin, end int64
	uses       []blobUse
}

// batch is some spans that are in memory together: those that lie next to each other in the tree. A backup fills two
// packs at once, so the files of a directory are in both; together they are written by one worker, directory by
// directory.
type batch struct {
	spans  []packSpan
	stored int64 // bytes
}

const (
	// maxSpan bounds how many stored bytes are read at once, unless one blob alone is larger.
	maxSpan = 4 << 20
	// maxGap is how many bytes nobody asked for are read rather than starting another request.
	maxGap = 256 << 10
	// batchBytes bounds the stored bytes of a batch of more than one span.
	batchBytes = 8 << 20
)

// layout is how the content is read: each needed part of a pack once, whatever the order of the files.
type layout struct {
	batches []batch
	// home is the batch that has all of a file's missing blobs; noHome when there is none, or more than one.
	home []int32
}

const noHome = -1

// layOut plans the reading of all blobs that are not there yet.
func (s *restorer) layOut() (*layout, error) {
	spans, err := s.spans()
	if err != nil {
		return nil, err
	}
	first := func(span *packSpan) int32 {
		entry := span.uses[0].entry
		for i := range span.uses {
			entry = min(entry, span.uses[i].entry)
		}
		return entry
	}
	order := make([]struct{ first, span int32 }, len(spans))
	for i := range spans {
		order[i].first, order[i].span = first(&spans[i]), int32(i)
	}
	slices.SortFunc(order, func(a, b struct{ first, span int32 }) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.span, b.span))
	})
	l := &layout{home: make([]int32, len(s.plan.entries))}
	for i := range l.home {
		l.home[i] = noHome
	}
	for _, next := range order {
		span := spans[next.span]
		size := span.end - span.begin
		if n := len(l.batches); n == 0 || l.batches[n-1].stored+size > batchBytes {
			l.batches = append(l.batches, batch{})
		}
		last := &l.batches[len(l.batches)-1]
		last.spans = append(last.spans, span)
		last.stored += size
	}
	const several = -2
	for number := range l.batches {
		for _, span := range l.batches[number].spans {
			for i := range span.uses {
				switch home := &l.home[span.uses[i].entry]; *home {
				case noHome:
					*home = int32(number)
				case int32(number):
				default:
					*home = several
				}
			}
		}
	}
	for i := range l.home {
		if _, kept := s.have[int32(i)]; kept {
			l.home[i] = noHome // the file is there and is only mended
		}
		l.home[i] = max(l.home[i], noHome)
	}
	return l, nil
}

// spans sorts all uses of missing blobs by where these lie and cuts them into parts to be read at once.
func (s *restorer) spans() ([]packSpan, error) {
	var uses []blobUse
	var packs []blobID
	numbers := map[blobID]int32{}
	for i := range s.plan.entries {
		entry := &s.plan.entries[i]
		at := int64(0)
		for c, id := range entry.content {
			if s.has(int32(i), int32(c)) {
				at += int64(entry.sizes[c])
				continue
			}
			locations := s.repository.blobLocations(id, dataBlob)
			if len(locations) == 0 {
				return nil, fmt.Errorf("%w: no index names the data blob %s any more", ErrDamaged, id)
			}
			place := locations[0]
			number, known := numbers[place.pack]
			if !known {
				number = int32(len(packs))
				numbers[place.pack] = number
				packs = append(packs, place.pack)
			}
			uses = append(uses, blobUse{
				pack: number, entry: int32(i), chunk: int32(c), offset: place.offset, length: place.length, plain: place.plain, at: at,
			})
			at += int64(entry.sizes[c])
		}
	}
	slices.SortFunc(uses, func(a, b blobUse) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.offset, b.offset), cmp.Compare(a.entry, b.entry), cmp.Compare(a.at, b.at))
	})
	var spans []packSpan
	first := 0
	for i := range uses {
		begin := int64(uses[i].offset)
		end := begin + int64(uses[i].length)
		if i > 0 && uses[i-1].pack == uses[i].pack {
			current := &spans[len(spans)-1]
			if uses[i-1].offset == uses[i].offset || begin <= current.end+maxGap && end <= current.begin+maxSpan {
				current.end = max(current.end, end)
				current.uses = uses[first : i+1]
				continue
			}
		}
		first = i
		spans = append(spans, packSpan{pack: packs[uses[i].pack], begin: begin, end: end, uses: uses[i : i+1]})
	}
	return spans, nil
}
