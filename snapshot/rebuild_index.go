package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// RebuildIndexOptions adjust a RebuildIndex.
type RebuildIndexOptions struct {
	// DryRun says what would be done, and locks nothing.
	DryRun bool
	// LockWait is how long to wait for others to end their work. Default: not at all.
	LockWait time.Duration
	Progress func(Progress)
}

// RebuildIndexReport is what a RebuildIndex found and did.
type RebuildIndexReport struct {
	Packs int64 `json:"packs"` // that the new index names
	Blobs int64 `json:"blobs"`
	// Added were in no index. Corrected were, but with other blobs than the pack itself says.
	Added     []string `json:"added,omitempty"`
	Corrected []string `json:"corrected,omitempty"`
	// Missing are packs that an index named and no provider has: the new one does not name them.
	Missing []string `json:"missing,omitempty"`
	// Damaged are packs whose own list of blobs cannot be read, with the reason. What the old index says of one is kept,
	// since its blobs may be whole; one that no index names stays where it is, unnamed.
	Damaged map[string]string `json:"damaged,omitempty"`
	// DamagedIndexes are index files that could not be read, with the reason. They are removed with the other old ones.
	DamagedIndexes map[string]string `json:"damaged_indexes,omitempty"`
	IndexesBefore  int               `json:"indexes_before"`
	IndexesWritten int               `json:"indexes_written"` // 0: the index was right, and was left alone
	IndexesRemoved int               `json:"indexes_removed"`
	DryRun         bool              `json:"dry_run,omitempty"`
	Seconds        float64           `json:"duration_seconds"`
}

// RebuildIndex makes the index anew from what the packs themselves say, on whichever provider they are. It removes no
// pack. The old index files, damaged ones too, go only when the new ones are on every provider and were read again there; so
// whenever it is interrupted, the repository is no less than it was, and running it again goes on.
//
// ErrLocked while anybody works on the repository; an error of a provider while not all can be listed and written. A
// pack that cannot be read for such a reason stops it; one that is damaged is in the report.
func (r *Repository) RebuildIndex(ctx context.Context, options RebuildIndexOptions) (_ *RebuildIndexReport, err error) {
	ended := r.options.Metrics.began("rebuild-index")
	defer func() { ended(err) }()
	start := time.Now()
	m, err := r.beginMaintenance(ctx, options.DryRun, options.LockWait)
	if err != nil {
		return nil, fmt.Errorf("rebuilding the index: %w", withCause(ctx, err))
	}
	defer m.end()
	b := &indexRebuild{maintenance: m, report: &RebuildIndexReport{Damaged: map[string]string{}, DamagedIndexes: map[string]string{}, DryRun: options.DryRun}}
	if err := b.run(ctx, newMeter(options.Progress)); err != nil {
		return b.report, fmt.Errorf("rebuilding the index: %w", withCause(ctx, err))
	}
	b.report.Seconds = time.Since(start).Seconds()
	if b.report.IndexesWritten > 0 {
		if err := r.refreshIndex(ctx); err != nil {
			return b.report, fmt.Errorf("reading the index that was rebuilt: %w", withCause(ctx, err))
		}
	}
	return b.report, nil
}

type indexRebuild struct {
	*maintenance
	report *RebuildIndexReport
}

func (b *indexRebuild) run(ctx context.Context, meter *meter) error {
	packs, err := b.readHeaders(ctx, meter)
	if err != nil {
		return err
	}
	meter.done()
	b.report.IndexesBefore = len(b.oldIndexes())
	for id, err := range b.r.indexDamage() {
		b.report.DamagedIndexes[id.String()] = err.Error()
	}
	packs = b.compare(packs)
	r := b.report
	right := len(r.Added)+len(r.Corrected)+len(r.Missing)+len(r.DamagedIndexes) == 0
	if right || r.DryRun {
		return nil
	}
	if err := b.writeIndexes(ctx, packs); err != nil {
		b.discard(ctx)
		return err
	}
	b.report.IndexesWritten = len(b.indexes)
	if err := b.lastLook(ctx, packs); err != nil {
		return err
	}
	if err := b.removeOldIndexes(ctx); err != nil {
		return fmt.Errorf("the new index is whole; removing the old one: %w", err)
	}
	b.report.IndexesRemoved = b.report.IndexesBefore
	return nil
}

// readHeaders reads what every pack says of itself.
func (b *indexRebuild) readHeaders(ctx context.Context, meter *meter) ([]indexPack, error) {
	var keys []string
	for key := range b.all.objects {
		if id, ok := parsePackKey(key); ok && key == packKey(id) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	meter.total(int64(len(keys)), 0)
	v := &inventory{r: b.r, all: b.all}
	var mu sync.Mutex
	var packs []indexPack
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(2 * unpackedLoaders)
	for _, key := range keys {
		group.Go(func() error {
			id, _ := parsePackKey(key)
			blobs, _, err := v.header(groupContext, id, key)
			if err != nil && !permanent(err) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			meter.add(1, 0, key)
			if err != nil {
				b.report.Damaged[id.String()] = err.Error()
				return nil
			}
			packs = append(packs, newIndexPack(id, blobs, nil))
			return nil
		})
	}
	return packs, group.Wait()
}

// compare sets the packs beside what the old index says, fills the report, and adds to the packs what only the old index
// knows.
func (b *indexRebuild) compare(packs []indexPack) []indexPack {
	before := map[blobID]indexPack{}
	for _, pack := range packsOf(b.r.index, nil) {
		before[pack.ID] = pack
	}
	for i := range packs {
		old, known := before[packs[i].ID]
		switch {
		case !known:
			b.report.Added = append(b.report.Added, packs[i].ID.String())
		case !slices.Equal(old.Blobs, packs[i].Blobs):
			b.report.Corrected = append(b.report.Corrected, packs[i].ID.String())
		}
		packs[i].CRC32C = old.CRC32C
		delete(before, packs[i].ID)
	}
	for _, id := range slices.SortedFunc(maps.Keys(before), blobID.compare) {
		if _, damaged := b.report.Damaged[id.String()]; damaged {
			packs = append(packs, before[id])
		} else {
			b.report.Missing = append(b.report.Missing, id.String())
		}
	}
	for i := range packs {
		b.report.Packs++
		b.report.Blobs += int64(len(packs[i].Blobs))
	}
	slices.Sort(b.report.Added)
	slices.Sort(b.report.Corrected)
	return packs
}

// lastLook compares what was written with what there was to write, and what is stored with what was there.
func (b *indexRebuild) lastLook(ctx context.Context, packs []indexPack) error {
	written := packsOf(b.written, nil)
	byID := func(a, b indexPack) int { return cmp.Compare(a.ID.String(), b.ID.String()) }
	slices.SortFunc(written, byID)
	slices.SortFunc(packs, byID)
	if !slices.EqualFunc(written, packs, func(a, b indexPack) bool { return a.ID == b.ID && slices.Equal(a.Blobs, b.Blobs) }) {
		return fmt.Errorf("the new index does not say what was to be written: %w", ErrDamaged)
	}
	l, err := b.list(ctx, "")
	if err != nil {
		return err
	}
	if err := b.indexesAre(l, true); err != nil {
		return err
	}
	for key := range b.all.objects {
		if _, ok := parsePackKey(key); ok && len(l.objects[key]) == 0 {
			return changed("%s is gone: %w", key, ErrLocked)
		}
	}
	for key := range l.objects {
		if _, ok := parsePackKey(key); ok && len(b.all.objects[key]) == 0 {
			return changed("%s is new: %w", key, ErrLocked)
		}
	}
	return nil
}
