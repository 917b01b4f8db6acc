package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/storage"
)

// RepairOptions adjust Repair.
type RepairOptions struct {
	// ReadData reads every copy of everything on every store. A copy that is damaged although the listings show no difference
	// is replaced from a store whose copy is what its name says.
	ReadData bool
	// Progress is called after each object that some provider lacked; with ReadData, after each object.
	Progress func(storage.RepairProgress)
}

// Repair makes the providers of the repository alike, as RepairMirror does, under a lock that keeps prunes away, those of
// stock restic too. ErrLocked while one runs. Backups go on beside it. A config that is damaged on some provider is replaced
// too: the key tells which is right.
func (r *Repository) Repair(ctx context.Context, options RepairOptions) (report storage.RepairReport, err error) {
	ended := r.options.Metrics.began("repair")
	defer func() { ended(err) }()
	lock, err := r.lock(ctx)
	if err != nil {
		return report, fmt.Errorf("repairing: %w", withCause(ctx, err))
	}
	defer lock.release(ctx)
	report = newRepairReport()
	if err = r.onlyDamagedConfigs(ctx); err == nil {
		err = repairParts(ctx, r.store.mirror, storage.RepairOptions{
			Verify: func(string) bool { return true }, Check: r.checkObject, ReadAll: options.ReadData, Progress: options.Progress,
		}, &report)
	}
	if err != nil {
		return report, fmt.Errorf("repairing: %w", withCause(ctx, err))
	}
	return report, nil
}

// onlyDamagedConfigs is ErrOtherRepository when the config of some provider is not ours, and the provider does not have the
// key that this repository was opened with either: then it may be another repository's, and nothing is written over it.
func (r *Repository) onlyDamagedConfigs(ctx context.Context) error {
	configs, err := list(ctx, r.store, configKey)
	if err != nil {
		return fmt.Errorf("comparing the stores: %w", err)
	}
	keys, err := list(ctx, r.store, r.keyName)
	if err != nil {
		return fmt.Errorf("comparing the stores: %w", err)
	}
	alone, end, err := r.store.alone(false)
	if err != nil {
		return err
	}
	defer end()
	for _, held := range configs.objects[configKey] {
		if slices.ContainsFunc(keys.objects[r.keyName], func(key heldObject) bool { return key.provider == held.provider }) {
			continue
		}
		_, err := alone[held.provider].load(ctx, configKey, 0, min(held.Size, maxConfigSize), func(data []byte) error { return r.checkObject(configKey, data) })
		switch {
		case errors.Is(err, ErrDamaged):
			return fmt.Errorf("%w: %s has a config that is not that of the others, and no key of theirs: %w", ErrOtherRepository, held.provider, err)
		case err != nil:
			return fmt.Errorf("comparing the stores: %w", err)
		}
	}
	return nil
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
	report := newRepairReport()
	if err := sameRepository(ctx, mirror); err != nil {
		return report, err
	}
	// Every name but config's is the SHA-256 of the object (docs/snapshot-format.md, section "Envelope").
	err := repairParts(ctx, mirror, storage.RepairOptions{Verify: func(key string) bool { return key != configKey }, Progress: progress}, &report)
	return report, err
}

func newRepairReport() storage.RepairReport {
	return storage.RepairReport{Copied: map[string]int{}, Bytes: map[string]int64{}}
}

// repairParts repairs what is referenced before what references it. Of what references something that no provider has whole,
// nothing is copied any more, and damaged copies are still replaced.
func repairParts(ctx context.Context, mirror *storage.Mirror, options storage.RepairOptions, total *storage.RepairReport) error {
	// What a backup beside this one adds is its own affair. Copying a snapshot that came after the packs were listed
	// would promise packs that were not copied.
	before, err := referencing(ctx, mirror)
	if err != nil {
		return err
	}
	options.Only = func(key string) bool {
		switch {
		case !isObject(key):
			return false
		case strings.HasPrefix(key, indexPrefix), strings.HasPrefix(key, snapshotPrefix):
			return before[key]
		}
		return true
	}
	var incomplete error
	for _, part := range []string{configKey, keyPrefix, packPrefix, indexPrefix, snapshotPrefix} {
		these := options
		these.ReadAll = options.ReadAll || part == configKey && options.Verify(configKey) // it is small, and its size never differs
		report, err := mirror.Repair(ctx, part, these)
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
			return fmt.Errorf("copying what stores lack of %s: %w", part, err)
		}
		if !report.Complete() {
			if incomplete == nil {
				incomplete = fmt.Errorf("copying what stores lack of %s: no good copy of %v, differing objects %v: %w", part, report.Lost, report.Conflicts, ErrDamaged)
			}
			options.OnlyReplace = true
		}
	}
	return incomplete
}

// isObject is false for what is no part of a repository: a person's file, or one that stock restic was still writing.
func isObject(key string) bool {
	if _, pack := parsePackKey(key); pack || key == configKey {
		return true
	}
	for _, prefix := range []string{keyPrefix, indexPrefix, snapshotPrefix} {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			_, err := parseID(name)
			return err == nil
		}
	}
	return false
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
