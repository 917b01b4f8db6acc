package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/storage"
)

// DefaultPruneGrace is the default of PruneOptions.Grace.
const DefaultPruneGrace = 72 * time.Hour

// PruneOptions adjust a Prune. The zero value is useful.
type PruneOptions struct {
	// MaxUnused is how many bytes that nothing needs may stay in packs that are partly needed, given how many bytes are
	// needed. Default: 5 % of what stays, as restic has it. See ParseMaxUnused.
	MaxUnused func(used int64) int64
	// MaxRepack is how many bytes of packs that are partly needed, or small, are written anew at most. 0: no limit.
	MaxRepack int64
	// Grace is how old a pack must be, by the clocks of the providers, before it is removed or written anew, whoever names
	// it or not: younger ones may be what a backup that was cut off goes on with. Default DefaultPruneGrace; below 0
	// none.
	Grace time.Duration
	// DryRun says what would be done, and locks nothing.
	DryRun bool
	// LockWait is how long to wait for others to end their work. Default: not at all.
	LockWait time.Duration
	Progress func(Progress)
	// Allowed, when set, is asked before every few removals of what was there; its error ends the Prune, which leaves a whole
	// repository.
	Allowed func(ctx context.Context) error
}

func (o *PruneOptions) applyDefaults() {
	if o.MaxUnused == nil {
		o.MaxUnused = percentUnused(5)
	}
	if o.Grace == 0 {
		o.Grace = DefaultPruneGrace
	}
}

// ParseMaxUnused reads "unlimited", a share like "5%", or a size in bytes with an optional suffix K, M, G or T (of 1024).
func ParseMaxUnused(text string) (func(used int64) int64, error) {
	if text == "unlimited" {
		return func(int64) int64 { return 1 << 62 }, nil
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(share, 64)
		if err != nil || !(percent >= 0 && percent < 100) {
			return nil, fmt.Errorf("%q is no share from 0%% to below 100%%: %w", text, storage.ErrInvalid)
		}
		return percentUnused(percent), nil
	}
	size, err := ParseSize(text)
	if err != nil {
		return nil, err
	}
	return func(int64) int64 { return size }, nil
}

// percentUnused allows so much that it is this share of everything.
func percentUnused(percent float64) func(int64) int64 {
	return func(used int64) int64 { return int64(percent / (100 - percent) * float64(used)) }
}

// ParseSize reads a number of bytes with an optional suffix K, M, G or T (of 1024).
func ParseSize(text string) (int64, error) {
	digits, shift := text, 0
	if text != "" {
		if at := strings.IndexByte("KMGT", text[len(text)-1]&^0x20); at >= 0 {
			digits, shift = text[:len(text)-1], 10*(at+1)
		}
	}
	size, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || size < 0 || size > 1<<62>>shift {
		return 0, fmt.Errorf("%q is no size: want a number with K, M, G or T: %w", text, storage.ErrInvalid)
	}
	return size << shift, nil
}

// PruneReport is what a Prune found and did. In a dry run, what it would do; what it would write is then not known.
type PruneReport struct {
	Snapshots int   `json:"snapshots"`
	Packs     int64 `json:"packs"` // before
	Blobs     int64 `json:"blobs"`
	// UsedBytes are stored bytes that some snapshot needs, UnusedBytes all others in packs, second copies included.
	UsedBytes   int64 `json:"used_bytes"`
	UnusedBytes int64 `json:"unused_bytes"`
	// Removed packs held nothing that is needed. Repacked ones did, and what is needed of them is in Written ones.
	PacksRemoved  int64 `json:"packs_removed"`
	PacksRepacked int64 `json:"packs_repacked"`
	PacksWritten  int64 `json:"packs_written"`
	BytesRemoved  int64 `json:"bytes_removed"` // of removed and repacked packs
	BytesRepacked int64 `json:"bytes_repacked"`
	BytesWritten  int64 `json:"bytes_written"`
	// PacksYoung are those that would have been removed or repacked if they were older.
	PacksYoung int64 `json:"packs_young"`
	// UnusedLeft are unneeded bytes that stay: below the threshold, beyond the limit of repacking, or young.
	UnusedLeft     int64   `json:"unused_left"`
	IndexesRemoved int     `json:"indexes_removed"`
	IndexesWritten int     `json:"indexes_written"`
	DryRun         bool    `json:"dry_run,omitempty"`
	Seconds        float64 `json:"duration_seconds"`
}

// Prune removes what no snapshot needs.
//
// It first makes sure that everything which the snapshots need is there: every index and every snapshot can be read,
// every tree too, every blob is in the index, and every pack with such a blob is whole in the listing of every
// provider. If anything is not, ErrDamaged or ErrNotStoredWhole says what, and nothing is changed. ErrLocked while anybody works
// on the repository; an error of a provider while not all can be listed and written.
//
// Then, in this order: what is needed of packs that are partly needed, or small, is written to new packs; new indexes
// are written; both are read again on every provider; what the new indexes say is compared with what is needed, and
// what is stored with what was there; the old indexes are removed; their packs are removed. So whenever it is
// interrupted the repository is whole, and running it again, or the next backup, goes on with what there is.
//
// The report is also given with an error, and says what had been done.
func (r *Repository) Prune(ctx context.Context, options PruneOptions) (_ *PruneReport, err error) {
	ended := r.options.Metrics.began("prune")
	defer func() { ended(err) }()
	options.applyDefaults()
	start := time.Now()
	m, err := r.beginMaintenance(ctx, options.DryRun, options.LockWait)
	if err != nil {
		return nil, fmt.Errorf("pruning: %w", withCause(ctx, err))
	}
	defer m.end()
	m.allowed = options.Allowed
	p := &prune{maintenance: m, options: options, meter: newMeter(options.Progress), report: &PruneReport{DryRun: options.DryRun}}
	defer func() { r.options.Metrics.pruned(p.report) }()
	if err := p.run(ctx); err != nil {
		return p.report, fmt.Errorf("pruning: %w", withCause(ctx, err))
	}
	p.meter.done()
	p.report.Seconds = time.Since(start).Seconds()
	if p.report.IndexesWritten > 0 {
		if err := r.refreshIndex(ctx); err != nil {
			return p.report, fmt.Errorf("reading the index after pruning: %w", withCause(ctx, err))
		}
	}
	return p.report, nil
}

// prune is one running Prune.
type prune struct {
	*maintenance
	options PruneOptions
	meter   *meter
	report  *PruneReport

	snapshots map[blobID]bool
	// used says of every entry of the index whether a snapshot needs the blob; home, whether this is the place where it
	// stays: each needed blob has one.
	used, home []bool
	packs      []prunePack // as in the index
	orphans    []string    // keys of packs that no index names and that are old enough to go

	writtenPacks []indexPack
}

func (p *prune) run(ctx context.Context) error {
	if err := p.findUsed(ctx); err != nil {
		return err
	}
	if err := p.plan(); err != nil {
		return err
	}
	if p.options.DryRun || !p.anything() {
		return nil
	}
	if err := p.replace(ctx); err != nil {
		return err
	}
	return p.removePacks(ctx)
}

// anything reports whether there is something to do: packs to remove, or indexes to put together.
func (p *prune) anything() bool {
	gone := slices.ContainsFunc(p.packs, func(pack prunePack) bool { return pack.fate != fateKeep })
	return gone || len(p.orphans) > 0 || len(p.r.indexFiles) > 8+2*(p.r.index.len()/indexBlobs)
}

// replace writes everything new, makes sure of it, and removes the old indexes.
func (p *prune) replace(ctx context.Context) error {
	err := p.verifyHomes(ctx)
	if err == nil {
		err = p.repack(ctx)
	}
	if err == nil {
		// All indexes are written anew, also when only packs without an index are removed: a process that took such a
		// pack for its own sees that an index is gone, and begins with what there is.
		err = p.writeIndexes(ctx, append(packsOf(p.r.index, func(n int) bool { return p.packs[n].fate != fateKeep }), p.writtenPacks...))
	}
	if err != nil {
		if p.discard(ctx) {
			p.report.PacksWritten, p.report.BytesWritten = 0, 0
		}
		return err
	}
	p.report.IndexesWritten = len(p.indexes)
	if err := p.lastLook(ctx); err != nil {
		return err
	}
	if err := p.removeOldIndexes(ctx); err != nil {
		return err
	}
	p.report.IndexesRemoved = len(p.oldIndexes())
	return nil
}

// lastLook is the look before anything is removed: everything that is needed must be where only the new indexes say it is,
// and nothing may have been written by anybody else.
func (p *prune) lastLook(ctx context.Context) error {
	l, err := p.list(ctx, "")
	if err != nil {
		return err
	}
	if err := p.indexesAre(l, true); err != nil {
		return changed("%w", err)
	}
	present := 0
	for key := range l.objects {
		id, err := parseID(strings.TrimPrefix(key, snapshotPrefix))
		if err != nil || !strings.HasPrefix(key, snapshotPrefix) {
			continue
		}
		if !p.snapshots[id] {
			return changed("snapshot %s is new: %w", id.short(), ErrLocked)
		}
		present++
	}
	if present != len(p.snapshots) {
		return changed("of %d snapshots %d are left: %w", len(p.snapshots), present, ErrLocked)
	}
	whole := map[blobID]bool{}
	for i := range p.written.packs {
		info := &p.written.packs[i]
		whole[info.id] = p.on(l, packKey(info.id), info.size) == nil
	}
	for i := range p.r.index.entries.len() {
		if !p.used[i] {
			continue
		}
		e := p.r.index.entries.at(i)
		key := blobKey{e.id, e.kind}
		if !slices.ContainsFunc(p.written.locations(key), func(at blobLocation) bool { return whole[at.pack] }) {
			return fmt.Errorf("by the new index the %s blob %s would be lost: %w", e.kind, e.id, ErrNotStoredWhole)
		}
	}
	return p.lock.stillSole(ctx)
}

// removePacks removes the packs that no index names any more.
func (p *prune) removePacks(ctx context.Context) error {
	keys := slices.Clone(p.orphans)
	for i := range p.packs {
		if p.packs[i].fate != fateKeep {
			keys = append(keys, packKey(p.r.index.packs[i].id))
		}
	}
	for _, key := range keys {
		// What the new index names never goes, whatever was planned.
		if id, _ := parsePackKey(key); p.isWritten(id) {
			return fmt.Errorf("pack %s was to be removed, and the new index names it: %w", id, ErrDamaged)
		}
	}
	slices.Sort(keys)
	if err := p.remove(ctx, keys); err != nil {
		return fmt.Errorf("removing packs that nothing names any more: %w", err)
	}
	for i := range p.packs {
		switch pack := &p.packs[i]; pack.fate {
		case fateRemove:
			p.report.PacksRemoved++
			p.report.BytesRemoved += p.r.index.packs[i].size
		case fateRepack:
			p.report.PacksRepacked++
			p.report.BytesRemoved += p.r.index.packs[i].size
		}
	}
	for _, key := range p.orphans {
		p.report.PacksRemoved++
		p.report.BytesRemoved += p.all.objects[key][0].Size
	}
	return nil
}

func (p *prune) isWritten(id blobID) bool {
	_, ok := p.written.pack(id)
	return ok
}
