package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/storage"
)

// RepairOptions adjust Repair.
type RepairOptions struct {
	// Progress is called after each object that some provider lacked.
	Progress func(storage.RepairProgress)
}

// Repair makes the providers of the repository alike, as RepairMirror does, under a lock that keeps prunes away, those of
// stock restic too. ErrLocked while one runs. Backups go on beside it.
func (r *Repository) Repair(ctx context.Context, options RepairOptions) (report storage.RepairReport, err error) {
	ended := r.options.Metrics.began("repair")
	defer func() { ended(err) }()
	lock, err := r.lock(ctx)
	if err != nil {
		return report, fmt.Errorf("repairing: %w", withCause(ctx, err))
	}
	defer lock.release(ctx)
	report, err = RepairMirror(ctx, r.store.mirror, options.Progress)
	if err != nil {
		return report, fmt.Errorf("repairing: %w", withCause(ctx, err))
	}
	return report, nil
}

// RepairMirror copies what some providers lack of a repository, as ciphertext: no password is needed and nothing is
// encrypted again. What is referenced comes before what references it, so that a copy that is cut never makes a
// repository that promises what it does not have. Locks are neither copied nor looked at: who prunes must be kept away
// by the caller. It goes on where one that was cut ended.
//
// Providers with different repositories are ErrOtherRepository, and nothing is copied.
//
// The report adds up all parts, also when there is an error. Objects that differ and of which nothing says which is
// right, and objects without any good copy, are ErrDamaged; all else has been copied then, but nothing that references
// them.
func RepairMirror(ctx context.Context, mirror *storage.Mirror, progress func(storage.RepairProgress)) (storage.RepairReport, error) {
	total := storage.RepairReport{Copied: map[string]int{}, Bytes: map[string]int64{}}
	if err := sameRepository(ctx, mirror); err != nil {
		return total, err
	}
	// What a backup beside this one adds is its own affair. Copying a snapshot that came after the packs were listed
	// would promise packs that were not copied.
	before, err := referencing(ctx, mirror)
	if err != nil {
		return total, err
	}
	for _, part := range []string{"config", "keys/", packPrefix, indexPrefix, snapshotPrefix} {
		report, err := mirror.Repair(ctx, part, storage.RepairOptions{
			// Every name but config's is the SHA-256 of the object (docs/snapshot-format.md, section "Envelope").
			Verify: func(key string) bool { return key != "config" },
			Only: func(key string) bool {
				return before[key] || !strings.HasPrefix(key, indexPrefix) && !strings.HasPrefix(key, snapshotPrefix)
			},
			Progress: progress,
		})
		total.Objects += report.Objects
		total.Replaced += report.Replaced
		total.Conflicts = append(total.Conflicts, report.Conflicts...)
		total.Lost = append(total.Lost, report.Lost...)
		total.Held = append(total.Held, report.Held...)
		for provider, objects := range report.Copied {
			total.Copied[provider] += objects
			total.Bytes[provider] += report.Bytes[provider]
		}
		if err != nil {
			return total, fmt.Errorf("copying what stores lack of %s: %w", part, err)
		}
		if !report.Complete() {
			return total, fmt.Errorf("copying what stores lack of %s: no good copy of %v, differing objects %v: %w", part, report.Lost, report.Conflicts, ErrDamaged)
		}
	}
	return total, nil
}

// sameRepository compares what every provider that has a config has there. Its name says nothing of its content, its size
// is always the same, and not every listing has checksums.
func sameRepository(ctx context.Context, mirror *storage.Mirror) error {
	var first []byte
	var where string
	for _, p := range mirror.Providers() {
		alone, err := storage.NewMirror([]storage.Provider{p}, storage.MirrorOptions{})
		if err != nil {
			return err
		}
		config, err := alone.Load(ctx, "config", 0, -1, nil)
		switch _ = alone.Close(); { // it wrote nothing
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			return fmt.Errorf("comparing the stores: %w", err)
		case first == nil:
			first, where = config, p.URL()
		case !bytes.Equal(first, config):
			return fmt.Errorf("%w: the config of %s is not that of %s", ErrOtherRepository, p.URL(), where)
		}
	}
	return nil
}

// referencing lists what references packs, on any provider: snapshots first, since a backup writes them last. A provider
// that cannot be listed is the repair's to report.
func referencing(ctx context.Context, mirror *storage.Mirror) (map[string]bool, error) {
	keys := map[string]bool{}
	for _, part := range []string{snapshotPrefix, indexPrefix} {
		listings, failed := mirror.ListAll(ctx, part)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("listing %s: %w", part, err)
		}
		if len(listings) == 0 {
			return nil, fmt.Errorf("listing %s: %w", part, &storage.MirrorError{Doing: "listing", Key: part, Causes: failed})
		}
		for _, objects := range listings {
			for _, object := range objects {
				keys[object.Key] = true
			}
		}
	}
	return keys, nil
}
