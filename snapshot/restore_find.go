package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// foundPath is what a path within a snapshot names.
type foundPath struct {
	path string // cleaned, relative, "" for the root
	node *node  // nil for the root when the snapshot says nothing about it
	tree blobID // of a directory
}

func (f *foundPath) isDir() bool { return f.node == nil || f.node.Type == "dir" }

// find follows a slash-separated path through a snapshot's trees. "" and "/" are the root. No link is followed. A path
// that is not there is ErrNoPath.
func (p *packReader) find(ctx context.Context, stored *storedSnapshot, path string) (*foundPath, error) {
	found := &foundPath{tree: *stored.Tree}
	if stored.Holdfast != nil && stored.Holdfast.Root != nil {
		root := *stored.Holdfast.Root
		root.Type = "dir"
		found.node = &root
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if !found.isDir() {
			return nil, fmt.Errorf("%w: %s is a %s, not a directory", ErrNoPath, quotePath(found.path), found.node.Type)
		}
		nodes, err := p.tree(ctx, found.tree)
		if err != nil {
			return nil, fmt.Errorf("reading the directory %s: %w", quotePath("/"+found.path), err)
		}
		at, there := slices.BinarySearchFunc(nodes, name, func(n node, name string) int { return strings.Compare(n.Name, name) })
		full := strings.TrimPrefix(found.path+"/"+name, "/")
		if !there {
			return nil, fmt.Errorf("%w: %s", ErrNoPath, quotePath(shorten(full)))
		}
		found.path, found.node = full, &nodes[at]
		if found.node.Type == "dir" {
			found.tree = *found.node.Subtree
		}
	}
	return found, nil
}
