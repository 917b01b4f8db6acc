package snapshot

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// treeToCheck is a tree and where it was met first.
type treeToCheck struct {
	id    blobID
	where string
	depth int
}

// trees reads every tree that a snapshot needs, each once, and looks every data blob up in the index.
func (c *checker) trees(ctx context.Context) error {
	snapshots, damaged, err := c.repository.snapshots(ctx)
	if err != nil {
		return err
	}
	c.report.Snapshots = int64(len(snapshots) + len(damaged))
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
				continue
			}
			below = append(below, c.tree(t, nodes[i], seen, missingBlobs)...)
		}
		waiting = append(waiting, below...)
	}
	return nil
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
			}
		}
		if n.Subtree == nil || seen[*n.Subtree] {
			continue
		}
		seen[*n.Subtree] = true
		if t.depth+1 > maxDepth {
			c.errors.add("%s: %v", quotePath(shorten(where)), fmt.Errorf("%w: nested deeper than %d", ErrLimitExceeded, maxDepth))
			continue
		}
		below = append(below, treeToCheck{id: *n.Subtree, where: where + "/", depth: t.depth + 1})
	}
	return below
}
