package snapshot

import (
	"context"
	"math"
	"slices"
)

// This file finds out what damage means: which paths of which snapshots need what is damaged, and whether some store still
// has it. It goes through the trees once more, and only when there is damage.

const (
	maxNeedSnapshots = 10
	maxNeedPaths     = 10
)

// effect is what is known of a blob that some copy lacks.
type effect struct {
	broken []*brokenObject
	// lacking are the stores, by their number among those that could be listed, that have it in no pack. Lost: none has.
	lacking uint64
	lost    bool
}

// affectedTree is a tree with something damaged in it or below.
type affectedTree struct {
	entries []affectedEntry
	// lost and exposed count paths in it and below, lacking are the stores that lack something of it.
	lost, exposed int64
	lacking       uint64
	// above is by how many paths of snapshots it is reached.
	above int64
	// seen is the last root from which it was gone through.
	seen int32
}

// affectedEntry is a file, or a directory, that needs something damaged, or a directory above such.
type affectedEntry struct {
	name   string
	dir    bool
	lost   bool
	broken []*brokenObject
	below  *affectedTree
}

// meaning is the state of that search.
type meaning struct {
	c       *checker
	listed  []string
	all     uint64 // all that are listed, as in effect.lacking
	effects map[blobKey]*effect
	trees   map[blobID]*affectedTree // nil: nothing is damaged in it
	order   []*affectedTree          // what is below comes first
}

// meaning fills in the report.
func (c *checker) meaning(ctx context.Context) error {
	m := &meaning{c: c, effects: map[blobKey]*effect{}, trees: map[blobID]*affectedTree{}}
	for _, url := range c.packList.listed {
		if c.unlistedStores[url] == nil && len(m.listed) < 64 {
			m.all |= 1 << len(m.listed)
			m.listed = append(m.listed, url)
		}
	}
	for _, broken := range c.broken {
		broken.finish(m.listed)
	}
	roots := map[blobID]*affectedTree{}
	if len(c.broken) > 0 {
		m.findEffects()
		for i := range c.snapshots {
			id := *c.snapshots[i].Tree
			if _, done := roots[id]; done {
				continue
			}
			root, err := m.root(ctx, id)
			if err != nil {
				return err
			}
			roots[id] = root
		}
		m.needs(roots)
	}
	c.verdicts(m, roots)
	c.damages()
	return nil
}

// findEffects gathers the blobs that some store lacks, and leaves out those that every store has in another pack.
func (m *meaning) findEffects() {
	for _, pack := range m.c.repository.indexedPacks() {
		broken := m.c.brokenByKey[packKey(pack.id)]
		lost := m.unfound(pack)
		for _, b := range m.c.indexed[pack.id] {
			var causes []*brokenObject
			if broken != nil && slices.ContainsFunc(broken.Stores, func(d DamagedCopy) bool {
				return m.c.copies[copyID{pack.id, d.Store}].lacks(b.key())
			}) {
				broken.Blobs++
				causes = append(causes, broken)
			}
			causes = append(causes, lost...)
			if len(causes) > 0 {
				e := m.effects[b.key()]
				if e == nil {
					e = &effect{}
					m.effects[b.key()] = e
				}
				e.broken = append(e.broken, causes...)
			}
		}
	}
	for key, e := range m.effects {
		for i, url := range m.listed {
			if !m.has(url, key) {
				e.lacking |= 1 << i
			}
		}
		if e.lost = e.lacking == m.all; e.lacking == 0 {
			delete(m.effects, key)
		}
	}
}

// unfound are the damaged index files for which some store names a pack in none.
func (m *meaning) unfound(pack packInfo) (causes []*brokenObject) {
	if len(m.c.brokenIndexes) == 0 {
		return nil
	}
	for _, url := range m.listed {
		if m.finds(url, pack) {
			continue
		}
		for _, file := range pack.files {
			if broken := m.c.brokenIndexes[file]; broken != nil && !slices.Contains(causes, broken) {
				causes = append(causes, broken)
			}
		}
	}
	return causes
}

// finds reports whether a store by itself has an index that names a pack.
func (m *meaning) finds(url string, pack packInfo) bool {
	return !pack.indexed() || slices.ContainsFunc(pack.files, func(file blobID) bool {
		broken := m.c.brokenIndexes[file]
		return broken == nil || !slices.ContainsFunc(broken.Stores, func(d DamagedCopy) bool { return d.Store == url })
	})
}

// has reports whether a store by itself can give a blob.
func (m *meaning) has(url string, key blobKey) bool {
	for _, at := range m.c.repository.blobLocations(key.id, key.kind) {
		info, _ := m.c.repository.indexedPack(at.pack)
		if !m.c.copies[copyID{at.pack, url}].lacks(key) && m.finds(url, info) {
			return true
		}
	}
	return false
}

// of is what is known of a blob; nil when nothing is wrong with it.
func (m *meaning) of(key blobKey) *effect {
	if key.kind == treeBlob {
		if bad := m.c.badTrees[key.id]; bad != nil {
			return &effect{broken: []*brokenObject{bad}, lacking: m.all, lost: true}
		}
	}
	if e := m.effects[key]; e != nil {
		return e
	}
	if m.c.unnamed != nil && len(m.c.repository.blobLocations(key.id, key.kind)) == 0 {
		return &effect{broken: []*brokenObject{m.c.unnamed}, lacking: m.all, lost: true}
	}
	return nil
}

// root is a snapshot's top directory as if it were in one above; nil when nothing is damaged in it.
func (m *meaning) root(ctx context.Context, id blobID) (*affectedTree, error) {
	e := m.of(blobKey{id, treeBlob})
	if e == nil || !e.lost {
		if err := m.walk(ctx, id); err != nil {
			return nil, err
		}
	}
	top := &affectedTree{seen: -1}
	if top.add(affectedEntry{dir: true, below: m.trees[id]}, e); len(top.entries) == 0 {
		return nil, nil
	}
	return top, nil
}

// add takes in an entry and what it needs, unless nothing of that is damaged.
func (t *affectedTree) add(entry affectedEntry, effects ...*effect) {
	for _, e := range effects {
		if e != nil {
			entry.lost = entry.lost || e.lost
			t.lacking |= e.lacking
			for _, broken := range e.broken {
				if !slices.Contains(entry.broken, broken) {
					entry.broken = append(entry.broken, broken)
				}
			}
		}
	}
	switch {
	case entry.lost:
		t.lost = plus(t.lost, 1)
	case len(entry.broken) > 0:
		t.exposed = plus(t.exposed, 1)
	case entry.below == nil:
		return
	}
	if entry.below != nil {
		t.lost, t.exposed = plus(t.lost, entry.below.lost), plus(t.exposed, entry.below.exposed)
		t.lacking |= entry.below.lacking
	}
	t.entries = append(t.entries, entry)
}

// plus adds counts of paths, of which a hostile repository can have any number.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// openTree is a directory that is being gone through.
type openTree struct {
	id    blobID
	nodes []node
	tree  affectedTree
}

// walk goes through a tree and all below, each once, what is below first.
func (m *meaning) walk(ctx context.Context, id blobID) error {
	var stack []*openTree
	open := func(id blobID) error {
		nodes, err := m.c.reader.tree(ctx, id)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			nodes = nil // it was readable just now: what is below is not known to be damaged
		}
		stack = append(stack, &openTree{id: id, nodes: nodes, tree: affectedTree{seen: -1}})
		return nil
	}
	if _, done := m.trees[id]; done {
		return nil
	}
	if err := open(id); err != nil {
		return err
	}
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		if len(top.nodes) == 0 {
			stack = stack[:len(stack)-1]
			m.trees[top.id] = nil
			if len(top.tree.entries) > 0 {
				m.trees[top.id] = &top.tree
				m.order = append(m.order, &top.tree)
			}
			continue
		}
		n := &top.nodes[0]
		if n.Subtree == nil {
			var effects []*effect
			for _, id := range n.Content {
				if e := m.of(blobKey{id, dataBlob}); e != nil {
					effects = append(effects, e)
				}
			}
			if len(effects) > 0 {
				top.tree.add(affectedEntry{name: n.Name}, effects...)
			}
			top.nodes = top.nodes[1:]
			continue
		}
		e := m.of(blobKey{*n.Subtree, treeBlob})
		below, done := m.trees[*n.Subtree]
		if !done && (e == nil || !e.lost) && len(stack) <= maxDepth {
			if err := open(*n.Subtree); err != nil { // and then this entry again
				return err
			}
			continue
		}
		top.tree.add(affectedEntry{name: n.Name, dir: true, below: below}, e)
		top.nodes = top.nodes[1:]
	}
	return nil
}

// needs says of everything that is damaged who needs it: counts all, names some, of the newest snapshots.
func (m *meaning) needs(roots map[blobID]*affectedTree) {
	groups := map[*affectedTree][]*storedSnapshot{}
	var tops []*affectedTree
	for i := len(m.c.snapshots) - 1; i >= 0; i-- {
		s := &m.c.snapshots[i]
		if top := roots[*s.Tree]; top != nil {
			if groups[top] == nil {
				tops = append(tops, top)
			}
			groups[top] = append(groups[top], s)
			top.above++
		}
	}
	for _, t := range append(slices.Clone(tops), reversed(m.order)...) {
		for _, entry := range t.entries {
			for _, broken := range entry.broken {
				broken.Paths = plus(broken.Paths, t.above)
			}
			if entry.below != nil {
				entry.below.above = plus(entry.below.above, t.above)
			}
		}
	}
	for i, top := range tops {
		m.name(int32(i), top, groups[top])
	}
	for id, broken := range m.c.badSnapshots {
		broken.Snapshots, broken.Paths = 1, 1
		need := Need{Snapshot: id.String(), Paths: []NeededPath{{Path: "/", Lost: broken.Lost}}}
		if at := slices.IndexFunc(m.c.snapshots, func(s storedSnapshot) bool { return s.id == id }); at >= 0 {
			need.Time = m.c.snapshots[at].Time
		}
		broken.NeededBy = []Need{need}
	}
}

func reversed(trees []*affectedTree) []*affectedTree {
	trees = slices.Clone(trees)
	slices.Reverse(trees)
	return trees
}

// name goes through what is damaged in snapshots that are alike, each tree once, in the order of the paths.
func (m *meaning) name(number int32, top *affectedTree, snapshots []*storedSnapshot) {
	type level struct {
		tree *affectedTree
		path string
		at   int
	}
	found := map[*brokenObject]*Need{}
	stack := []level{{top, "", 0}}
	for len(stack) > 0 {
		l := &stack[len(stack)-1]
		if l.at == len(l.tree.entries) {
			stack = stack[:len(stack)-1]
			continue
		}
		entry := &l.tree.entries[l.at]
		l.at++
		path := l.path + entry.name
		if entry.dir {
			path += "/"
		}
		for _, broken := range entry.broken {
			need := found[broken]
			if need == nil {
				need = &Need{}
				found[broken] = need
			}
			if len(need.Paths) < maxNeedPaths && len(broken.NeededBy) < maxNeedSnapshots {
				need.Paths = append(need.Paths, NeededPath{Path: quoteUnlessUTF8(shorten(path)), Lost: entry.lost})
			}
		}
		if entry.below != nil && entry.below.seen != number {
			entry.below.seen = number
			stack = append(stack, level{entry.below, path, 0})
		}
	}
	for broken, need := range found {
		broken.Snapshots += int64(len(snapshots))
		for _, s := range snapshots[:min(len(snapshots), max(maxNeedSnapshots-len(broken.NeededBy), 0))] {
			named := *need
			named.Snapshot, named.Time = s.id.String(), s.Time
			broken.NeededBy = append(broken.NeededBy, named)
		}
	}
}
