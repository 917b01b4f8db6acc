package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// snapshots reads all snapshot files, oldest first. Those that no provider has whole are in damaged.
func (r *Repository) snapshots(ctx context.Context) (found []storedSnapshot, damaged []error, err error) {
	found, damaged, _, err = r.listSnapshots(ctx)
	return found, damaged, err
}

func (r *Repository) listSnapshots(ctx context.Context) (found []storedSnapshot, damaged []error, l listing, err error) {
	l, err = r.listSnapshotFiles(ctx, "")
	if err != nil {
		return nil, nil, l, fmt.Errorf("reading the snapshots: %w", err)
	}
	keys := make([]string, 0, len(l.objects))
	for key := range l.objects {
		keys = append(keys, key)
	}
	if len(keys) > maxSnapshots {
		return nil, nil, l, fmt.Errorf("reading %d snapshots: %w", len(keys), ErrLimitExceeded)
	}
	slices.Sort(keys)
	outcomes := make([]*storedSnapshot, len(keys))
	failures := make([]error, len(keys))
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(unpackedLoaders)
	for i, key := range keys {
		group.Go(func() error {
			outcomes[i], failures[i] = r.loadSnapshot(groupContext, l, key)
			if failures[i] != nil && !permanent(failures[i]) {
				return failures[i]
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, l, fmt.Errorf("reading the snapshots: %w", err)
	}
	for i := range keys {
		if failures[i] != nil {
			damaged = append(damaged, failures[i])
		} else {
			found = append(found, *outcomes[i])
		}
	}
	sortSnapshots(found)
	return found, damaged, l, nil
}

// listSnapshotFiles lists the snapshots whose ids begin so. The index may be older than what is found now.
func (r *Repository) listSnapshotFiles(ctx context.Context, start string) (listing, error) {
	l, err := list(ctx, r.store, snapshotPrefix+start)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed = time.Now()
	return l, err
}

func (r *Repository) snapshotsListed() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.listed
}

func (r *Repository) loadSnapshot(ctx context.Context, l listing, key string) (*storedSnapshot, error) {
	id, err := parseID(strings.TrimPrefix(key, snapshotPrefix))
	if err != nil {
		return nil, fmt.Errorf("the file %q is no snapshot: %w", key, err)
	}
	r.mu.RLock()
	known := r.parsed[id]
	r.mu.RUnlock()
	if known != nil {
		return known, nil
	}
	plain, _, err := r.loadFile(ctx, l, key)
	if err != nil {
		return nil, err
	}
	file, err := decodeSnapshot(plain)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	s := &storedSnapshot{id: id, snapshotFile: file}
	r.mu.Lock()
	r.parsed[id] = s
	r.mu.Unlock()
	return s, nil
}

// resolveSnapshot finds a snapshot by "latest" (the newest by its own time), by its id, or by a prefix of one. What is
// not found while a provider could not be listed is that provider's error, not ErrNoSnapshot: an older answer is
// never given silently.
func (r *Repository) resolveSnapshot(ctx context.Context, text string) (*storedSnapshot, error) {
	if text == "latest" {
		found, damaged, l, err := r.listSnapshots(ctx)
		if err != nil {
			return nil, err
		}
		// The newest one could be among those that cannot be seen.
		if err := l.failure(); err != nil {
			return nil, fmt.Errorf("finding the latest snapshot (name one by its id instead): %w", err)
		}
		if len(damaged) > 0 {
			return nil, fmt.Errorf("finding the latest snapshot (name one by its id instead): %w", damaged[0])
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("finding the latest snapshot: %w", ErrNoSnapshot)
		}
		return &found[len(found)-1], nil
	}
	if text == "" || strings.Trim(text, "0123456789abcdef") != "" || len(text) > 64 {
		return nil, fmt.Errorf("finding snapshot %q: %w", text, ErrNoSnapshot)
	}
	l, err := r.listSnapshotFiles(ctx, text)
	if err != nil {
		return nil, fmt.Errorf("finding snapshot %s: %w", text, err)
	}
	switch {
	case len(l.objects) > 1:
		return nil, fmt.Errorf("finding snapshot %s: %d snapshots begin like that: %w", text, len(l.objects), ErrNoSnapshot)
	case len(l.objects) == 0 && l.failure() != nil:
		return nil, fmt.Errorf("finding snapshot %s: %w", text, l.failure())
	case len(l.objects) == 0:
		return nil, fmt.Errorf("finding snapshot %s: %w", text, ErrNoSnapshot)
	}
	for key := range l.objects {
		return r.loadSnapshot(ctx, l, key)
	}
	return nil, ErrNoSnapshot
}
