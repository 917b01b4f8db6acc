package snapshot

import (
	"context"
	"fmt"
	"strings"
)

// List calls each for the entries of a directory of a snapshot ("latest", an id or a prefix of one), in the order of
// their names, and with recursive for everything below, a directory before what is in it. A path that names something
// else than a directory gives that one entry. Paths are relative to the snapshot's root. It stops at the first error of
// each. Errors: ErrNoSnapshot, ErrNoPath, ErrDamaged, ErrLimitExceeded, and storage's.
func (r *Repository) List(ctx context.Context, snapshot, path string, recursive bool, each func(Entry) error) error {
	stored, err := r.resolveSnapshot(ctx, snapshot)
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	reader := newPackReader(r)
	found, err := reader.find(ctx, stored, path)
	if err == nil {
		if !found.isDir() {
			err = each(r.entry(found.path, found.node))
		} else {
			err = reader.walk(ctx, found.tree, found.path, func(path string, n *node) (bool, error) {
				return recursive, each(r.entry(path, n))
			})
		}
	}
	if err != nil {
		return fmt.Errorf("listing snapshot %s: %w", stored.id.short(), withCause(ctx, err))
	}
	return nil
}

// entry describes a node. A file's size is that of its content, as Restore and Dump take it, not what the node says.
func (r *Repository) entry(path string, n *node) Entry {
	e := Entry{
		Path: quoteUnlessUTF8(path), Type: n.Type, Mode: chmodBits(n.Mode), UID: n.UID, GID: n.GID, ModTime: n.ModTime,
		LinkTarget: quoteUnlessUTF8(n.LinkTarget),
	}
	for _, id := range n.Content {
		if locations := r.blobLocations(id, dataBlob); len(locations) > 0 {
			e.Size += locations[0].plainSize()
		}
	}
	return e
}

// walk calls visit for everything below a tree, a directory before what is in it; visit says whether to go into it.
func (p *packReader) walk(ctx context.Context, tree blobID, path string, visit func(path string, n *node) (bool, error)) error {
	type level struct {
		path  string
		nodes []node
	}
	nodes, err := p.tree(ctx, tree)
	if err != nil {
		return fmt.Errorf("reading the directory %s: %w", quotePath("/"+path), err)
	}
	stack := []level{{path, nodes}}
	for entries := int64(0); len(stack) > 0; {
		top := &stack[len(stack)-1]
		if len(top.nodes) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n := &top.nodes[0]
		top.nodes = top.nodes[1:]
		full := strings.TrimPrefix(top.path+"/"+n.Name, "/")
		if entries++; entries > defaultMaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrLimitExceeded, defaultMaxEntries)
		}
		into, err := visit(full, n)
		if err != nil {
			return err
		}
		if !into || n.Type != "dir" {
			continue
		}
		if len(stack) > maxDepth || len(full) > maxPathBytes {
			return fmt.Errorf("%w: directories are nested deeper than %d", ErrLimitExceeded, maxDepth)
		}
		below, err := p.tree(ctx, *n.Subtree)
		if err != nil {
			return fmt.Errorf("reading the directory %s: %w", quotePath("/"+shorten(full)), err)
		}
		stack = append(stack, level{full, below})
	}
	return nil
}
