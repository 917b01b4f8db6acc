package snapshot

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A tree blob is the JSON of one directory, {"nodes":[…]} and a newline, its nodes strictly ascending by the bytes of
// their names. The bytes are those that restic's encoding/json writes, so that equal directories have equal ids
// whichever program stored them.

// jsonTime keeps a time within the years that JSON can hold.
func jsonTime(t time.Time) time.Time {
	switch year := t.Year(); {
	case year < 0:
		return t.AddDate(-year, 0, 0)
	case year > 9999:
		return t.AddDate(9999-year, 0, 0)
	default:
		return t
	}
}

// decodeTree reads a tree and refuses whatever a well-behaved writer would not have written.
func decodeTree(plain []byte) ([]node, error) { return decodeTreeWithin(treeCost(), plain) }

func decodeTreeWithin(cost jsonCost, plain []byte) ([]node, error) {
	if len(plain) > maxTreeSize {
		return nil, fmt.Errorf("decoding a tree of %d bytes: %w", len(plain), ErrLimitExceeded)
	}
	if err := cost.check(plain); err != nil {
		return nil, err
	}
	// The names in it are quoted until normalise.
	nodes, ok := treeOf(plain)
	if !ok {
		var err error
		if nodes, err = unusualTree(cost, plain); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		if err := nodes[i].normalise(); err != nil {
			return nil, fmt.Errorf("decoding a tree, entry %d: %w", i, err)
		}
		if i > 0 && nodes[i-1].Name >= nodes[i].Name {
			return nil, fmt.Errorf("decoding a tree: entry %d is not in order, or there twice: %w", i, ErrDamaged)
		}
	}
	return nodes, nil
}

// unusualTree reads the nodes of a tree of any form.
func unusualTree(cost jsonCost, plain []byte) ([]node, error) {
	var wire struct {
		Nodes *[]node `json:"nodes"`
	}
	if err := decodeJSON(plain, cost, &wire); err != nil {
		return nil, err
	}
	if wire.Nodes == nil {
		return nil, fmt.Errorf("decoding a tree: it has no nodes: %w", ErrDamaged)
	}
	return *wire.Nodes, nil
}

// normalise turns the wire form of a node into the form in memory and checks it.
func (n *node) normalise() error {
	if len(n.Name) > 4*maxNameSize {
		return fmt.Errorf("a name of %d bytes: %w", len(n.Name), ErrLimitExceeded)
	}
	if !unescaped(n.Name) {
		name, err := strconv.Unquote(`"` + n.Name + `"`)
		if err != nil {
			return fmt.Errorf("a name is not quoted as it should be: %w: %w", ErrDamaged, err)
		}
		n.Name = name
	}
	name := n.Name
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("the name %q: %w", name, ErrUnsafePath)
	case len(name) > maxNameSize:
		return fmt.Errorf("a name of %d bytes: %w", len(name), ErrLimitExceeded)
	}
	if n.LinkTargetRaw != nil {
		n.LinkTarget, n.LinkTargetRaw = string(n.LinkTargetRaw), nil
	}
	if len(n.LinkTarget) > maxLinkTargetSize {
		return fmt.Errorf("a link target of %d bytes: %w", len(n.LinkTarget), ErrLimitExceeded)
	}
	switch n.Type {
	case "dir":
		if n.Subtree == nil {
			return fmt.Errorf("the directory %q has no tree: %w", name, ErrDamaged)
		}
	case "file":
		if n.Content == nil {
			return fmt.Errorf("the file %q has no list of content: %w", name, ErrDamaged)
		}
	case "symlink", "dev", "chardev", "fifo", "socket", "irregular":
	default:
		return fmt.Errorf("%q is of the unknown type %q: %w", name, n.Type, ErrDamaged)
	}
	return nil
}
