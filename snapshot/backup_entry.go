package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the backup's part in a scan: what becomes of each entry.

// readAttempts is how often a file that changes while it is read is read.
const readAttempts = 3

// enter makes the directory's own node and finds what the state file knows of it.
func (b *backup) enter(_ context.Context, d *scanDir, fd int) error {
	d.node = b.newNode(lastName(d.path), "dir", &d.stat)
	b.recallDir(d, fd)
	if d.recalled.self {
		d.node.ExtendedAttributes = decodeAttributes(d.recalled.known.attributes)
	} else {
		d.node.ExtendedAttributes = b.attributes(d.path, func() ([]extendedAttribute, error) { return descriptorXattrs(fd) })
	}
	return nil
}

// previously finds what the parent snapshot has of a directory, which takes the trees of those above it too. Nothing when
// it has none.
func (b *backup) previously(ctx context.Context, d *scanDir) error {
	d.lookUp.Lock()
	defer d.lookUp.Unlock()
	if d.lookedUp || b.parent == nil || b.reread || b.parentFailed.Load() {
		return nil
	}
	d.lookedUp = true
	tree := b.parent.Tree
	if d.parent != nil {
		if err := b.previously(ctx, d.parent); err != nil {
			return err
		}
		previous := d.parent.previousNode(lastName(d.path))
		if previous == nil || previous.Type != "dir" {
			return nil
		}
		tree = previous.Subtree
	}
	nodes, err := b.parents.tree(ctx, *tree)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Only time is lost: files are read again.
		b.r.log.Warn("the parent snapshot cannot be read; files are read again", "error", err)
		b.parentFailed.Store(true)
		return nil
	}
	d.previous = nodes
	return nil
}

func lastName(path string) string {
	if path == "" {
		return "."
	}
	return path[strings.LastIndexByte(path, '/')+1:]
}

func (d *scanDir) previousNode(name string) *node {
	at, found := slices.BinarySearchFunc(d.previous, name, func(n node, name string) int { return strings.Compare(n.Name, name) })
	if !found {
		return nil
	}
	return &d.previous[at]
}

// leave stores the directory's tree, unless it is the one that the state file names, and puts its node into the directory
// above.
func (b *backup) leave(ctx context.Context, d *scanDir) error {
	b.checkRules(d)
	id, same := b.recalledTree(d)
	if !same {
		var err error
		if id, err = b.storeTree(ctx, d); err != nil {
			return err
		}
	}
	if d.node.Type == "" { // it could not be opened
		d.node = b.newNode(lastName(d.path), "dir", &d.stat)
	}
	b.remember(d, id, same)
	for i := range d.entries {
		d.entries[i].node = nil
	}
	b.dirs.Add(1)
	if d.parent == nil {
		b.rootTree, b.rootNode = id, d.node
		b.rootNode.ModTime = jsonTime(b.rootNode.ModTime)
		b.rootNode.AccessTime, b.rootNode.ChangeTime = b.rootNode.ModTime, jsonTime(b.rootNode.ChangeTime)
		return nil
	}
	d.node.Subtree = &id
	d.parent.entries[d.slot].node = &d.node
	return nil
}

func (b *backup) storeTree(ctx context.Context, d *scanDir) (blobID, error) {
	encoded, err := encodeTree(b.nodes(d))
	if err != nil {
		return blobID{}, fmt.Errorf("the directory %s: %w", quotePath("/"+d.path), err)
	}
	id, err := b.saver.save(ctx, treeBlob, encoded)
	if err != nil {
		return blobID{}, fmt.Errorf("storing the directory %s: %w", quotePath("/"+d.path), err)
	}
	return id, nil
}

func (b *backup) omit(path string, kind OmissionKind, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.omissions = append(b.omissions, Omission{Path: omissionPath(path), Kind: kind, Reason: reason})
	if kind == OmissionUnreadable {
		b.unreadable.Add(1)
	}
	if kind != OmissionUnsupported {
		b.state.doubt(path)
	}
}

// vanished: in a live directory things come and go. In one that nothing writes to, a name that was listed and is gone
// says that something does.
func (b *backup) vanished(path string) {
	if b.options.Kind != Live {
		b.omit(path, OmissionChanged, "it vanished while the directory was read")
	}
}

// listed takes what did not change from the state file; for the rest it asks the parent snapshot, where that may know more.
func (b *backup) listed(ctx context.Context, d *scanDir) error {
	if b.r.moments.listed != nil {
		b.r.moments.listed(d.path)
	}
	b.current.Store(&d.path)
	if b.recallEntries(d) || !b.askParent(d) {
		return nil
	}
	return b.previously(ctx, d)
}

// entry makes the node of anything but a directory.
func (b *backup) entry(ctx context.Context, worker int, d *scanDir, fd int, e *scanEntry) error {
	if e.recalled {
		return nil
	}
	for range readAttempts {
		err := b.entryOnce(ctx, worker, d, fd, e)
		if !errors.Is(err, errChangedKind) && !errors.Is(err, errReplaced) {
			return err
		}
		var stat unix.Stat_t
		if err := fstatat(fd, e.name, &stat); err != nil {
			return b.unreadableEntry(d, e, err)
		}
		e.stat, e.node = recordOf(&stat), nil
		if e.stat.kind() == unix.S_IFDIR {
			break // too late: directories were given out
		}
	}
	e.gone = true
	b.omit(d.join(e.name), OmissionChanged, errChangedKind.Error())
	return nil
}

func (b *backup) entryOnce(ctx context.Context, worker int, d *scanDir, fd int, e *scanEntry) error {
	path := d.join(e.name)
	b.current.Store(&path)
	switch e.stat.kind() {
	case unix.S_IFREG:
		return b.file(ctx, worker, d, fd, e)
	case unix.S_IFSOCK:
		b.omit(path, OmissionUnsupported, "a socket")
		return nil
	case unix.S_IFLNK, unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO:
	default:
		b.omit(path, OmissionUnsupported, fmt.Sprintf("of kind %o", e.stat.kind()))
		return nil
	}
	e.doubtful = !e.stat.settled()
	n := b.newNode(e.name, nodeType(e.stat.kind()), &e.stat)
	if e.stat.kind() == unix.S_IFLNK {
		var err error
		if n.LinkTarget, err = readlink(fd, e.name); errors.Is(err, unix.EINVAL) {
			return errChangedKind
		} else if err != nil {
			return b.unreadableEntry(d, e, err)
		}
	}
	n.ExtendedAttributes = b.attributes(path, func() ([]extendedAttribute, error) { return sortXattrs(readXattrs(fd, e.name)) })
	// What was read by name must be of the entry whose record is kept.
	var after unix.Stat_t
	if err := fstatat(fd, e.name, &after); err != nil {
		return b.unreadableEntry(d, e, err)
	}
	if record := recordOf(&after); !e.stat.sameContent(&record) {
		return errChangedKind
	}
	e.node = &n
	b.files.Add(1)
	return nil
}

// nodeType is what nodes call a kind of file.
func nodeType(kind uint32) string {
	switch kind {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFBLK:
		return "dev"
	case unix.S_IFCHR:
		return "chardev"
	case unix.S_IFIFO:
		return "fifo"
	}
	return ""
}

// unreadableEntry leaves an entry out, and says so unless it is simply gone.
func (b *backup) unreadableEntry(d *scanDir, e *scanEntry, err error) error {
	switch {
	case exhausted(err):
		return fmt.Errorf("reading %s: %w", quotePath(d.join(e.name)), err)
	case errors.Is(err, unix.ENOENT):
		e.gone = true
		b.vanished(d.join(e.name))
	default:
		b.omit(d.join(e.name), OmissionUnreadable, err.Error())
	}
	return nil
}

// file makes the node of a regular file.
func (b *backup) file(ctx context.Context, worker int, d *scanDir, dir int, e *scanEntry) error {
	if e.node != nil { // the state file knows its content
		b.takeOver(d, dir, e, e.node.Content)
		return nil
	}
	previous := d.previousNode(e.name)
	if b.unchanged(previous, &e.stat) {
		b.takeOver(d, dir, e, previous.Content)
		return nil
	}
	fd, stat, err := openRegular(b.descriptors, dir, e.name)
	if errors.Is(err, errChangedKind) {
		return err
	}
	if err != nil {
		return b.unreadableEntry(d, e, err)
	}
	defer unix.Close(fd)
	e.stat = stat
	if previous == nil && !e.there {
		b.newFiles.Add(1)
	} else {
		b.changedFiles.Add(1)
	}
	return b.readFile(ctx, worker, d, dir, fd, e)
}

// takeOver makes the node of a file whose content is known and in the repository.
func (b *backup) takeOver(d *scanDir, dir int, e *scanEntry, content []blobID) {
	e.doubtful = !e.stat.settled() // before the attributes are read: what changes them later then moves the ctime
	n := b.newNode(e.name, "file", &e.stat)
	n.ExtendedAttributes = b.attributes(d.join(e.name), func() ([]extendedAttribute, error) { return sortXattrs(readXattrs(dir, e.name)) })
	b.oldFiles.Add(1)
	b.keepFile(e, n, content, e.stat.size)
}

// readFile stores an open file's content, again when it changed meanwhile. When it is not its name's any more, the error is
// errReplaced: what is read again then is what has that name.
func (b *backup) readFile(ctx context.Context, worker int, d *scanDir, dir, fd int, e *scanEntry) error {
	for attempt := 1; ; attempt++ {
		settled, err := b.settle(ctx, fd, e)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return b.unreadableEntry(d, e, err)
		}
		if linked, ok := b.linked(&e.stat); ok {
			n := b.newNode(e.name, "file", &e.stat)
			n.ExtendedAttributes = b.attributes(d.join(e.name), func() ([]extendedAttribute, error) { return descriptorXattrs(fd) })
			b.keepFile(e, n, linked.content, linked.size)
			return nil
		}
		content, size, err := b.readers[worker].content(ctx, fd, e.stat.size)
		if err != nil {
			var storing *storeError
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.As(err, &storing):
				return fmt.Errorf("storing %s: %w", quotePath("/"+d.join(e.name)), err)
			}
			return b.unreadableEntry(d, e, err)
		}
		n := b.newNode(e.name, "file", &e.stat)
		n.ExtendedAttributes = b.attributes(d.join(e.name), func() ([]extendedAttribute, error) { return descriptorXattrs(fd) })
		if b.r.moments.read != nil {
			b.r.moments.read(d.join(e.name), attempt)
		}
		var raw unix.Stat_t
		if err := fstat(fd, &raw); err != nil {
			return b.unreadableEntry(d, e, err)
		}
		after := recordOf(&raw)
		unchanged := settled && e.stat.sameContent(&after) && size == e.stat.size
		if !unchanged && e.replaced+1 < readAttempts {
			// The removal of its name, or another file in its place, shows in the open one as a change.
			var named unix.Stat_t
			if err := fstatat(dir, e.name, &named); err != nil {
				return b.unreadableEntry(d, e, err)
			}
			if record := recordOf(&named); record.inode != after.inode || record.device != after.device {
				e.replaced++
				return errReplaced
			}
		}
		if !unchanged && attempt < readAttempts {
			continue
		}
		if !unchanged {
			b.omit(d.join(e.name), OmissionChanged, fmt.Sprintf("it changed each of %d times that it was read", attempt))
			n.ChangeTime, e.doubtful = time.Time{}, true // so that no later backup takes this content over
		} else {
			b.rememberLinked(&e.stat, content, size)
		}
		b.keepFile(e, n, content, size)
		return nil
	}
}

func (b *backup) keepFile(e *scanEntry, n node, content []blobID, size int64) {
	n.Content, n.Size = content, uint64(size)
	e.node = &n
	b.files.Add(1)
	b.bytes.Add(size)
}

// recentlyWritten is how young a file's mtime must be for a program to be possibly writing to it through a mapping
// without the times showing it: the kernel writes back, and looks again, after half a minute.
const recentlyWritten = 10 * time.Minute

// settle brings an open file into a state in which every later write shows in its record, and takes that record. False
// when it is being written to all the time.
func (b *backup) settle(ctx context.Context, fd int, e *scanEntry) (bool, error) {
	if b.options.Kind == Live && time.Since(time.Unix(e.stat.mtime.Unix())) < recentlyWritten {
		// Writing back makes the next store through a mapping set the times. A file system that cannot do it has
		// no such mappings.
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	for range 2 * readAttempts {
		var raw unix.Stat_t
		if err := fstat(fd, &raw); err != nil {
			return false, err
		}
		e.stat = recordOf(&raw)
		wait := e.stat.unsettled(time.Now())
		if wait == 0 {
			return true, nil
		}
		if err := pause(ctx, wait); err != nil {
			return false, err
		}
	}
	return false, nil
}

// unchanged reports whether a file's content can be taken over from the parent snapshot.
func (b *backup) unchanged(previous *node, stat *statRecord) bool {
	if previous == nil || b.reread || previous.Type != "file" || previous.Size != uint64(stat.size) ||
		!previous.ModTime.Equal(time.Unix(stat.mtime.Unix())) || !previous.ChangeTime.Equal(time.Unix(stat.ctime.Unix())) ||
		(previous.Inode != 0 && previous.Inode != stat.inode) {
		return false
	}
	for _, id := range previous.Content {
		if !b.saver.has(id, dataBlob) {
			return false
		}
	}
	return true
}

func (b *backup) linked(stat *statRecord) (linkedContent, bool) {
	if stat.links < 2 {
		return linkedContent{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known, ok := b.links[inodeKey{stat.device, stat.inode}]
	return known, ok && known.stat.sameContent(stat)
}

func (b *backup) rememberLinked(stat *statRecord, content []blobID, size int64) {
	if stat.links < 2 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.links[inodeKey{stat.device, stat.inode}] = linkedContent{*stat, content, size}
}

// newNode describes an entry except for its content. Times are in UTC, so that a directory has the same tree wherever it
// is backed up.
func (b *backup) newNode(name, kind string, stat *statRecord) node {
	n := node{
		Name: name, Type: kind, Mode: goMode(stat.mode), UID: stat.uid, GID: stat.gid,
		User: b.names.user(stat.uid), Group: b.names.group(stat.gid),
		ModTime: time.Unix(stat.mtime.Unix()).UTC(), ChangeTime: time.Unix(stat.ctime.Unix()).UTC(),
	}
	n.AccessTime = n.ModTime // the real one changes with every look
	if kind != "dir" {
		n.Links = stat.links
		if stat.links > 1 {
			n.Inode, n.DeviceID = stat.inode, stat.device
		}
	}
	if kind == "dev" || kind == "chardev" {
		n.Device = stat.rdev
	}
	return n
}

// attributes reads extended attributes; a failure is noted, and costs the attributes only.
func (b *backup) attributes(path string, read func() ([]extendedAttribute, error)) []extendedAttribute {
	attributes, err := read()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		b.omit(path, OmissionUnreadable, "extended attributes: "+err.Error())
	}
	return attributes
}
