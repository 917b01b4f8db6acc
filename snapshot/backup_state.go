package snapshot

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// This file is the backup's part in the state file: what it takes from the one that is there, and what it notes for the
// next. Every entry is still listed and looked at with lstat, by the rules of today; only what did not change is not read,
// encoded or asked of the store again.

// backupState is the state file in a backup; without one, nothing.
type backupState struct {
	old    *stateFile   // nil when there is none that can be used
	writer *stateWriter // nil when none is wanted
	// current: old describes the parent snapshot, which therefore knows nothing more.
	current bool
	// sameNames: users and groups have the names that the nodes in old's trees have.
	sameNames bool

	mu       sync.Mutex
	doubtful map[string]struct{} // directories of which something could not be read, or changed meanwhile
	tells    map[uint64]bool     // by device: see changeTimesTell
}

// recalledDir is what the state file knows of a directory.
type recalledDir struct {
	known *knownDir // nil when nothing
	tells bool      // changeTimesTell
	self  bool      // the directory itself is what it was
	// same: all its entries but directories are what they were, and there are the same directories.
	same bool
	// below is set when something of one of the directories changed.
	below atomic.Bool
}

// openState opens the state file, when one is wanted.
func (b *backup) openState() {
	if b.options.StateFile == "" {
		return
	}
	s := &b.state
	s.doubtful, s.tells = map[string]struct{}{}, map[uint64]bool{}
	old, err := b.r.openState(b.options.StateFile)
	switch {
	case err == nil:
		s.old = old
		s.current = b.parent != nil && *b.parent.Tree == old.footer.tree
		s.sameNames = b.sameNames(&old.footer)
	case errors.Is(err, errNoState):
		b.r.log.Debug("there is no state file; what changed is found with the parent snapshot", "error", err)
	default:
		b.r.log.Warn("the state file cannot be read; what changed is found with the parent snapshot", "error", err)
	}
	s.writer = b.r.newStateWriter(b.options.StateFile, s.old)
}

func (b *backup) sameNames(f *stateFooter) bool {
	for id, name := range f.users {
		if b.names.user(id) != name {
			return false
		}
	}
	for id, name := range f.groups {
		if b.names.group(id) != name {
			return false
		}
	}
	return true
}

// writeState puts the new state file in place, after the snapshot was stored.
func (b *backup) writeState() {
	if b.state.writer == nil {
		return
	}
	if err := b.state.writer.finish(b.rootTree, &b.names); err != nil {
		b.r.log.Warn("the state file cannot be written; the next backup takes longer", "error", err)
	}
}

func (b *backup) closeState() {
	if b.state.writer != nil {
		b.state.writer.abandon()
	}
	if b.state.old != nil {
		b.state.old.close()
	}
}

// doubt notes that what is at path is not all there is, so that the next backup looks again: in the directory it is in,
// and in itself when it is a directory.
func (s *backupState) doubt(path string) {
	if s.writer == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubtful[path] = struct{}{}
	s.doubtful[path[:max(0, strings.LastIndexByte(path, '/'))]] = struct{}{}
}

func (s *backupState) doubted(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, doubtful := s.doubtful[path]
	return doubtful
}

// changeTimesTell reports whether the file system that an open directory is on gives a file a new ctime when one of its
// extended attributes is changed. Where that is not known they are read each time.
func (b *backup) changeTimesTell(device uint64, fd int) bool {
	s := &b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	tells, known := s.tells[device]
	if !known {
		var fs unix.Statfs_t
		err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &fs) })
		tells = err == nil && changeTimesTell(int64(fs.Type)) && !b.r.moments.untold
		s.tells[device] = tells
	}
	return tells
}

func changeTimesTell(fsType int64) bool {
	switch fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	case unix.TMPFS_MAGIC: // since Linux 6.2, and some distributions' kernels before
		var name unix.Utsname
		if unix.Uname(&name) != nil {
			return false
		}
		return kernelSince(unix.ByteSliceToString(name.Release[:]), 6, 6)
	}
	return false
}

// recallDir finds a directory in the state file.
func (b *backup) recallDir(d *scanDir, fd int) {
	if b.state.writer == nil {
		return
	}
	r := &d.recalled
	if b.state.old == nil || b.reread {
		return
	}
	if r.known = b.state.old.find(d.path); r.known == nil {
		return
	}
	r.tells = b.changeTimesTell(d.stat.device, fd)
	stored := d.stat.stored()
	r.self = r.tells && bytes.Equal(r.known.stat, stored[:])
}

// recallEntries takes over what did not change since the state file was written, and reports whether that is every file.
func (b *backup) recallEntries(d *scanDir) (all bool) {
	if d.recalled.known == nil {
		return len(d.entries) == 0
	}
	d.recalled.same = d.recalled.known.tree != nil && b.state.sameNames
	all = true
	for e, known := range d.knownEntries() {
		switch {
		case e == nil: // it is gone
			d.recalled.same = false
		case known == nil: // it is new
			d.recalled.same = false
			all = all && e.dir
		default:
			e.there = true
			if !b.recallEntry(d, e, known) {
				d.recalled.same = false
				all = all && (e.recalled || e.node != nil || e.stat.kind() != unix.S_IFREG)
			}
		}
	}
	return all
}

// recallEntry takes over one entry, and reports whether the directory's tree has it as it is.
func (b *backup) recallEntry(d *scanDir, e *scanEntry, known *knownEntry) bool {
	kind := e.stat.kind()
	switch {
	case kind != known.kind():
		return false
	case kind == unix.S_IFDIR, nodeType(kind) == "": // the former say themselves what they are; of the latter there is no node
		return true
	case known.stat == nil:
		return false
	}
	stored := e.stat.stored()
	if !bytes.Equal(stored[:], known.stat) || !b.saver.holds(known.content) {
		return false
	}
	if known.attributes != nil && d.recalled.tells && e.stat.device == d.stat.device {
		e.recalled = true
		b.files.Add(1)
		if kind == unix.S_IFREG {
			b.oldFiles.Add(1)
			b.bytes.Add(e.stat.size)
		}
		return true
	}
	if kind == unix.S_IFREG {
		e.node = &node{Content: idsOf(known.content)} // the rest is to be found out
	}
	return false
}

// knownEntries yields the entries of a directory with what the state file knows of them, in order; one of the two is nil
// where the other has no counterpart.
func (d *scanDir) knownEntries() func(func(*scanEntry, *knownEntry) bool) {
	return func(yield func(*scanEntry, *knownEntry) bool) {
		records := d.recalled.known.entries
		known, more := records.next()
		for i := range d.entries {
			e := &d.entries[i]
			for more && string(known.name) < e.name {
				if !yield(nil, &known) {
					return
				}
				known, more = records.next()
			}
			if !more || string(known.name) != e.name {
				if !yield(e, nil) {
					return
				}
				continue
			}
			if !yield(e, &known) {
				return
			}
			known, more = records.next()
		}
		for ; more; known, more = records.next() {
			if !yield(nil, &known) {
				return
			}
		}
	}
}

// askParent reports whether the parent snapshot may know files of a directory that the state file does not.
func (b *backup) askParent(d *scanDir) bool {
	return b.state.old == nil || !b.state.current || b.state.old.incomplete() || (d.recalled.known != nil && d.recalled.known.tooLarge)
}

// recalledTree is the tree of a directory of which nothing changed, nor of what is below it, if the repository has it.
func (b *backup) recalledTree(d *scanDir) (id blobID, same bool) {
	r := &d.recalled
	if !r.same || r.below.Load() || b.state.doubted(d.path) {
		return id, false
	}
	for i := range d.entries {
		if d.entries[i].gone {
			return id, false
		}
	}
	copy(id[:], r.known.tree)
	return id, b.saver.has(id, treeBlob)
}

// nodes are those of a directory's tree.
func (b *backup) nodes(d *scanDir) []node {
	nodes := make([]node, 0, len(d.entries))
	if d.recalled.known == nil {
		for i := range d.entries {
			if e := &d.entries[i]; !e.gone && e.node != nil {
				nodes = append(nodes, *e.node)
			}
		}
		return nodes
	}
	for e, known := range d.knownEntries() {
		switch {
		case e == nil || e.gone:
		case e.recalled:
			nodes = append(nodes, b.recalledNode(e, known))
		case e.node != nil:
			nodes = append(nodes, *e.node)
		}
	}
	return nodes
}

func (b *backup) recalledNode(e *scanEntry, known *knownEntry) node {
	n := b.newNode(e.name, nodeType(e.stat.kind()), &e.stat)
	n.ExtendedAttributes = decodeAttributes(known.attributes)
	switch e.stat.kind() {
	case unix.S_IFLNK:
		n.LinkTarget = string(known.text)
	case unix.S_IFREG:
		n.Content, n.Size = idsOf(known.content), uint64(e.stat.size)
	}
	return n
}

// remember notes a directory for the next backup, and tells the one above whether its tree can stay.
func (b *backup) remember(d *scanDir, tree blobID, same bool) {
	if b.state.writer == nil {
		return
	}
	r := &d.recalled
	unchanged := r.self && (same || bytes.Equal(r.known.tree, tree[:]))
	if d.parent != nil && !unchanged {
		d.parent.recalled.below.Store(true)
	}
	if same && r.self {
		b.state.writer.keep(r.known.index)
		return
	}
	b.state.writer.add(d.path, b.record(d, tree))
}
