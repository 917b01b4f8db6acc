package snapshot

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// entryKind is a kind of file. Only these are restored.
type entryKind uint8

const (
	kindFile entryKind = iota
	kindDir
	kindSymlink
	kindBlock
	kindChar
	kindFIFO
)

var entryKinds = map[string]entryKind{
	"file": kindFile, "dir": kindDir, "symlink": kindSymlink, "dev": kindBlock, "chardev": kindChar, "fifo": kindFIFO,
}

// stMode is the type in st_mode.
func (k entryKind) stMode() uint32 {
	return [...]uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO}[k]
}

// plannedEntry is one entry to be restored: a node without what is not needed for that.
type plannedEntry struct {
	name string
	kind entryKind
	made bool // false for a device that this user may not make
	// finished is set for a file when its content and its metadata are complete.
	finished bool
	sameAs   int32 // the earlier entry that this one is another name of, or -1
	subdir   int32 // a directory's number in dirs
	meta     metadata
	text     string   // of a symbolic link
	device   uint64   // of a device
	content  []blobID // of a file
	sizes    []uint32 // of the blobs in content
	size     int64    // the sum of sizes
}

// plannedDir is a directory; its entries are next to each other in entries, sorted by name.
type plannedDir struct {
	path        string // relative to the target, "" for it
	first, last int32  // entries[first:last]
	kept        bool   // an earlier attempt made it
}

// plan is everything that one restore creates, known before anything is created. Parents come before children in dirs.
type plan struct {
	dirs     []plannedDir
	levels   []int32 // where each level of depth begins in dirs
	entries  []plannedEntry
	dirOf    []int32 // an entry's directory
	rootMeta *metadata
	files    int64
	bytes    int64
}

// planner reads the trees, level by level, a few at a time.
type planner struct {
	repository *Repository
	reader     *packReader
	warnings   *warningList
	plan       *plan
	maxEntries int64
	seen       atomic.Int64 // entries decoded, kept or not
	links      map[inodeKey]int32
	ids        []blobID // room for contents
	sizes      []uint32 // and for sizes
}

// expect makes room for as many entries as the snapshot says that it has, within reason: growing to them would leave more
// behind than they are.
func (p *planner) expect(summary *snapshotSummary) {
	if summary == nil {
		return
	}
	const most = 1 << 18
	n := min(most, summary.TotalFilesProcessed) + min(most, summary.DirsNew) + min(most, summary.DirsChanged) + min(most, summary.DirsUnmodified)
	p.plan.entries, p.plan.dirOf = make([]plannedEntry, 0, n), make([]int32, 0, n)
}

// carve cuts n elements off room, which is made anew when it is too small: a hundred thousand small slices cost as many
// allocations, and what decoding left in them.
func carve[T any](room *[]T, n int) []T {
	const several = 4096
	if n > several/4 {
		return make([]T, n)
	}
	if len(*room) < n {
		*room = make([]T, several)
	}
	part := (*room)[:n:n]
	*room = (*room)[n:]
	return part
}

// planTrees reads everything below a tree.
func (p *planner) planTrees(ctx context.Context, root blobID) error {
	p.plan.dirs = []plannedDir{{}}
	subtrees := []blobID{root}
	for level := 0; len(subtrees) > 0; level++ {
		if level > maxDepth {
			return fmt.Errorf("%w: directories are nested deeper than %d", ErrLimitExceeded, maxDepth)
		}
		first := len(p.plan.dirs) - len(subtrees)
		p.plan.levels = append(p.plan.levels, int32(first))
		var below []blobID
		// The results of a part wait in memory until their turn.
		for part := range slices.Chunk(subtrees, 64) {
			listed := make([][]node, len(part))
			group, groupContext := errgroup.WithContext(ctx)
			group.SetLimit(max(4, p.repository.options.Concurrency))
			for i, id := range part {
				group.Go(func() (err error) {
					if listed[i], err = p.reader.tree(groupContext, id); err != nil {
						return err
					}
					if p.seen.Add(int64(len(listed[i]))) > p.maxEntries {
						return fmt.Errorf("%w: more than %d entries", ErrLimitExceeded, p.maxEntries)
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				return fmt.Errorf("reading the directories: %w", err)
			}
			for i := range listed {
				added, err := p.addDir(int32(first), listed[i])
				if err != nil {
					return err
				}
				below = append(below, added...)
				first++
			}
		}
		subtrees = below
	}
	return nil
}

// addDir takes in one directory's nodes and returns the trees of the directories among them.
func (p *planner) addDir(number int32, nodes []node) (below []blobID, err error) {
	dir := &p.plan.dirs[number]
	dir.first = int32(len(p.plan.entries))
	path := dir.path
	previous := ""
	for i := range nodes {
		n := &nodes[i]
		// Trees are checked when they are decoded; what would leave the target is worth a second look.
		if err := checkName(n.Name); err != nil {
			return nil, fmt.Errorf("in the directory %q: %w", shorten(path), err)
		}
		if i > 0 && n.Name <= previous {
			return nil, fmt.Errorf("%w: the directory %q has the name %q twice, or not in order", ErrDamaged, shorten(path), n.Name)
		}
		previous = n.Name
		full := n.Name
		if path != "" {
			full = path + "/" + n.Name
		}
		kind, restorable := entryKinds[n.Type]
		if !restorable {
			p.warnings.add("%s: not restored: it is of the kind %q", quotePath(full), n.Type)
			continue
		}
		entry := plannedEntry{name: n.Name, kind: kind, sameAs: -1, subdir: -1, meta: metadataOf(n), made: true}
		switch kind {
		case kindDir:
			if n.Subtree == nil {
				return nil, fmt.Errorf("%w: the directory %q has no tree", ErrDamaged, shorten(full))
			}
			if len(full) > maxPathBytes {
				return nil, fmt.Errorf("%w: a path of %d bytes", ErrLimitExceeded, len(full))
			}
			entry.subdir = int32(len(p.plan.dirs))
			p.plan.dirs = append(p.plan.dirs, plannedDir{path: full})
			below = append(below, *n.Subtree)
		case kindFile:
			if err := p.planContent(&entry, n, full); err != nil {
				return nil, err
			}
			p.plan.files++
		case kindSymlink:
			entry.text = n.LinkTarget
			p.plan.files++
		default:
			entry.device = n.Device
			p.plan.files++
		}
		if kind != kindDir && n.Links > 1 && n.Inode != 0 {
			p.planLink(&entry, n, full)
		}
		if kind == kindFile && entry.sameAs < 0 {
			if entry.size > math.MaxInt64-p.plan.bytes {
				return nil, fmt.Errorf("%w: the files are larger than any disk", ErrLimitExceeded)
			}
			p.plan.bytes += entry.size
		}
		p.plan.entries = append(p.plan.entries, entry)
		p.plan.dirOf = append(p.plan.dirOf, number)
	}
	p.plan.dirs[number].last = int32(len(p.plan.entries))
	return below, nil
}

// planContent finds the sizes of a file's blobs. Their sum is the file's size, whatever the node says.
func (p *planner) planContent(entry *plannedEntry, n *node, path string) error {
	if n.Content == nil && n.Size > 0 {
		return fmt.Errorf("%w: the file %q has no list of content", ErrDamaged, shorten(path))
	}
	entry.content, entry.sizes = carve(&p.ids, len(n.Content)), carve(&p.sizes, len(n.Content))
	copy(entry.content, n.Content)
	for i, id := range n.Content {
		locations := p.repository.blobLocations(id, dataBlob)
		if len(locations) == 0 {
			return fmt.Errorf("%w: no index names the data blob %s of %q", ErrDamaged, id, shorten(path))
		}
		size := locations[0].plainSize()
		if size < 0 || size > maxBlobSize {
			return fmt.Errorf("%w: a data blob of %d bytes", ErrLimitExceeded, size)
		}
		entry.sizes[i] = uint32(size)
		entry.size += size
	}
	if uint64(entry.size) != n.Size {
		p.warnings.add("%s: the snapshot says %d bytes, its content has %d", quotePath(path), n.Size, entry.size)
	}
	return nil
}

// planLink makes an entry another name of the entry that had the same inode, when they are really alike: inode numbers
// are what a repository says, and content is never given up for them.
func (p *planner) planLink(entry *plannedEntry, n *node, path string) {
	key := inodeKey{n.DeviceID, n.Inode}
	number, known := p.links[key]
	if !known {
		p.links[key] = int32(len(p.plan.entries))
		return
	}
	first := &p.plan.entries[number]
	if first.kind != entry.kind || first.text != entry.text || first.device != entry.device ||
		first.size != entry.size || !slices.Equal(first.content, entry.content) {
		p.warnings.add("%s: has the inode of another file with other content; restored on its own", quotePath(path))
		return
	}
	entry.sameAs = number
	entry.content, entry.sizes = nil, nil
}

// level is the range of the directories at one depth.
func (p *plan) level(depth int) (first, last int32) {
	if depth+1 < len(p.levels) {
		return p.levels[depth], p.levels[depth+1]
	}
	return p.levels[depth], int32(len(p.dirs))
}

func (p *plan) hasSubdirs(dir int32) bool {
	return slices.ContainsFunc(p.entries[p.dirs[dir].first:p.dirs[dir].last], func(e plannedEntry) bool { return e.kind == kindDir })
}

// path is where an entry is, relative to the target.
func (p *plan) path(entry int32) string {
	dir := p.dirs[p.dirOf[entry]].path
	if dir == "" {
		return p.entries[entry].name
	}
	return dir + "/" + p.entries[entry].name
}
