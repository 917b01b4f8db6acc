package snapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
)

// treeToCheck is a tree and where it was met first.
type treeToCheck struct {
	id    blobID
	where string
	depth int
}

// failedTree is a tree that could not be read from any provider, or is none.
type failedTree struct {
	treeToCheck
	err error
}

// trees reads every tree that a snapshot needs, each once, and looks every data blob up in the index.
func (c *checker) trees(ctx context.Context) error {
	snapshots, damaged, err := c.repository.snapshots(ctx)
	if err != nil {
		return err
	}
	c.snapshots = snapshots
	c.report.Snapshots = int64(len(snapshots) + len(damaged))
	fellBack := c.repository.fallbacks()
	var failed []failedTree
	for _, err := range damaged { // whichever provider, none has it whole
		c.errors.add("a snapshot cannot be read: %v", err)
	}
	for id, err := range c.repository.indexDamage() {
		c.errors.add("index %s: cannot be read from any provider: %v", id, err)
	}
	seen := map[blobID]bool{}
	var waiting []treeToCheck
	for i := range snapshots {
		s := &snapshots[i]
		if !seen[*s.Tree] {
			seen[*s.Tree] = true
			waiting = append(waiting, treeToCheck{id: *s.Tree, where: "snapshot " + s.id.short() + ":/"})
		}
	}
	missingBlobs := map[blobID]bool{}
	for len(waiting) > 0 {
		// The newest first, some at a time: memory stays with the depth of the trees, not their number.
		part := waiting[max(0, len(waiting)-4):]
		waiting = waiting[:len(waiting)-len(part)]
		nodes := make([][]node, len(part))
		failures := make([]error, len(part))
		group, groupContext := errgroup.WithContext(ctx)
		for i := range part {
			group.Go(func() error {
				nodes[i], failures[i] = c.reader.tree(groupContext, part[i].id)
				return context.Cause(groupContext)
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		var below []treeToCheck
		for i, t := range part {
			if failures[i] != nil {
				c.errors.add("tree %s (%s): %v", t.id, quotePath(shorten(t.where)), failures[i])
				failed = append(failed, failedTree{t, failures[i]})
				continue
			}
			below = append(below, c.tree(t, nodes[i], seen, missingBlobs)...)
		}
		waiting = append(waiting, below...)
	}
	if err := c.behindTrees(ctx, failed, c.repository.fallbacksSince(fellBack)); err != nil {
		return err
	}
	for _, t := range failed {
		c.treeFailed(t)
	}
	return nil
}

// behindTrees reads the packs in which trees lie that could not be read, and on providers that failed where another could give
// a tree, all packs with trees: which copies are damaged, only they can tell.
func (c *checker) behindTrees(ctx context.Context, failed []failedTree, fellBack map[string]int64) error {
	wanted := map[blobID]bool{}
	for _, t := range failed {
		for _, at := range c.repository.blobLocations(t.id, treeBlob) {
			wanted[at.pack] = true
		}
	}
	var copies []heldPack
	for _, id := range slices.SortedFunc(maps.Keys(c.indexed), blobID.compare) {
		trees := slices.ContainsFunc(c.indexed[id], func(b packedBlob) bool { return b.location.kind == treeBlob })
		for _, object := range c.packList.objects[packKey(id)] {
			if wanted[id] || trees && fellBack[object.provider] > 0 {
				copies = append(copies, heldPack{id, object})
			}
		}
	}
	return c.each(ctx, len(copies), func(ctx context.Context, i int) error {
		return c.readOther(ctx, copies[i])
	})
}

// tree checks the nodes of one tree and returns the trees below that are new.
func (c *checker) tree(t treeToCheck, nodes []node, seen, missingBlobs map[blobID]bool) (below []treeToCheck) {
	for i := range nodes {
		n := &nodes[i]
		where := t.where + n.Name
		for _, id := range n.Content {
			if !missingBlobs[id] && len(c.repository.blobLocations(id, dataBlob)) == 0 {
				missingBlobs[id] = true
				c.errors.add("%s: no index names its data blob %s", quotePath(shorten(where)), id)
				c.unnamedBlob()
			}
		}
		if n.Subtree == nil || seen[*n.Subtree] {
			continue
		}
		seen[*n.Subtree] = true
		if t.depth+1 > maxDepth {
			c.errors.add("%s: %v", quotePath(shorten(where)), fmt.Errorf("%w: nested deeper than %d", ErrLimitExceeded, maxDepth))
			c.badTree(*n.Subtree)
			continue
		}
		below = append(below, treeToCheck{id: *n.Subtree, where: where + "/", depth: t.depth + 1})
	}
	return below
}
