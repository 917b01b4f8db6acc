package snapshot

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
)

// This file finds what the snapshots need, and refuses wherever that cannot be told for certain.

// findUsed reads all snapshots and all their trees, and marks every blob that they need.
func (p *prune) findUsed(ctx context.Context) error {
	for id, err := range p.r.indexDamage() {
		return fmt.Errorf("the index %s cannot be read (RebuildIndex mends that; %w): %w", id, errRefused, err)
	}
	snapshots, damaged, l, err := p.r.listSnapshots(ctx)
	if err != nil {
		return err
	}
	if err := l.failure(); err != nil {
		return err
	}
	if err := unreadable(l, damaged); err != nil {
		return fmt.Errorf("%w (%w)", err, errRefused)
	}
	if len(snapshots) == 0 {
		return fmt.Errorf("there is no snapshot, so that nothing says what is needed (%w): %w", errRefused, ErrNoSnapshot)
	}
	p.snapshots = map[blobID]bool{}
	for i := range snapshots {
		// What one listing shows and another does not was not listed to its end, whatever the provider says.
		key := snapshotPrefix + snapshots[i].id.String()
		if err := p.on(p.all, key, p.r.files[key].size); err != nil {
			return fmt.Errorf("a snapshot is not whole everywhere (%s; %w): %w", mendOwed, errRefused, err)
		}
		p.snapshots[snapshots[i].id] = true
	}
	for key := range p.all.objects {
		if _, err := parseID(strings.TrimPrefix(key, snapshotPrefix)); err == nil && len(l.objects[key]) == 0 && strings.HasPrefix(key, snapshotPrefix) {
			return fmt.Errorf("%s comes and goes in the listings (%w): %w", key, errRefused, ErrNotStoredWhole)
		}
	}
	p.used = make([]bool, p.r.index.len())
	p.report.Snapshots = len(snapshots)
	return p.walkTrees(ctx, snapshots)
}

// walkTrees goes through all trees, each once, some at a time: memory stays with the depth of the trees, not their
// number.
func (p *prune) walkTrees(ctx context.Context, snapshots []storedSnapshot) error {
	var waiting []treeToCheck
	for i := range snapshots {
		where := "snapshot " + snapshots[i].id.short() + ":/"
		fresh, err := p.need(blobKey{*snapshots[i].Tree, treeBlob}, where)
		if err != nil {
			return err
		}
		if fresh {
			waiting = append(waiting, treeToCheck{id: *snapshots[i].Tree, where: where})
		}
	}
	reader := newPackReader(p.r)
	for len(waiting) > 0 {
		part := waiting[max(0, len(waiting)-4):]
		waiting = waiting[:len(waiting)-len(part)]
		nodes := make([][]node, len(part))
		group, groupContext := errgroup.WithContext(ctx)
		for i := range part {
			group.Go(func() (err error) {
				if nodes[i], err = reader.tree(groupContext, part[i].id); err != nil {
					return fmt.Errorf("the directory %s (%w): %w", quotePath(shorten(part[i].where)), errRefused, err)
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		var below []treeToCheck
		for i := range part {
			found, err := p.needNodes(part[i], nodes[i])
			if err != nil {
				return err
			}
			below = append(below, found...)
		}
		waiting = append(waiting, below...)
	}
	return nil
}

// needNodes marks what the entries of a directory need, and gives the directories among them that are new.
func (p *prune) needNodes(t treeToCheck, nodes []node) (below []treeToCheck, err error) {
	if t.depth > maxDepth {
		return nil, fmt.Errorf("%s: %w: nested deeper than %d (%w)", quotePath(shorten(t.where)), ErrLimitExceeded, maxDepth, errRefused)
	}
	for i := range nodes {
		n := &nodes[i]
		for _, id := range n.Content {
			if _, err := p.need(blobKey{id, dataBlob}, t.where+n.Name); err != nil {
				return nil, err
			}
		}
		if n.Subtree == nil {
			continue
		}
		fresh, err := p.need(blobKey{*n.Subtree, treeBlob}, t.where+n.Name)
		if err != nil {
			return nil, err
		}
		if fresh {
			below = append(below, treeToCheck{id: *n.Subtree, where: t.where + n.Name + "/", depth: t.depth + 1})
		}
	}
	return below, nil
}

// need marks a blob wherever it lies; false when it was marked before.
func (p *prune) need(key blobKey, where string) (fresh bool, err error) {
	found := false
	for i := range p.r.index.numbers(key) {
		found = true
		fresh = fresh || !p.used[i]
		p.used[i] = true
	}
	if !found {
		return false, fmt.Errorf("%s: no index names the %s blob %s (%w): %w", quotePath(shorten(where)), key.kind, key.id, errRefused, ErrDamaged)
	}
	return fresh, nil
}

// numbers yields the numbers of a blob's entries.
func (x *memoryIndex) numbers(key blobKey) func(func(int) bool) {
	return func(yield func(int) bool) {
		at, ok := x.first[binary.LittleEndian.Uint64(key.id[:8])]
		for ; ok && at != noEntry; at = x.entries.at(int(at)).next {
			if e := x.entries.at(int(at)); e.id == key.id && e.kind == key.kind && !yield(int(at)) {
				return
			}
		}
	}
}
