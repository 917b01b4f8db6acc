package snapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TarDirectory writes a live directory as a PAX tar stream, with modes, owners, times to the nanosecond, links, hard
// links and extended attributes, as Dump does of a snapshot. It needs no repository: it is how content is handed out
// while no object store can be reached.
//
// The directory may be changing. What cannot be read, changed while it was read, or fits in no archive is returned by
// name; a file that shrinks or stops being readable in the middle is filled with zeros to the length that its header
// promised, and is named. An error means that the archive is not complete; it then lacks its end mark, so that whoever
// unpacks it notices. A directory that cannot be opened at all is ErrSourceMissing.
func TarDirectory(ctx context.Context, dir string, w io.Writer) ([]Omission, error) {
	l, err := newLiveTar(ctx, dir, w)
	if err != nil {
		return nil, err
	}
	defer unix.Close(l.root)
	var stat unix.Stat_t
	if err := fstat(l.root, &stat); err != nil {
		return nil, fmt.Errorf("looking at %q: %w: %w", dir, ErrSourceMissing, err)
	}
	// Directories wait as paths, not as descriptors; the last in is the first out, so that everything below a directory
	// follows it at once, as in tar's own archives.
	for waiting := []liveDir{{"", l.node(l.root, ".", "", &stat)}}; len(waiting) > 0; {
		dir := waiting[len(waiting)-1]
		waiting = waiting[:len(waiting)-1]
		if err := l.header(dir.path, dir.node, "", 0, ""); err != nil {
			return l.omissions, err
		}
		below, err := l.directory(dir.path)
		if err != nil {
			return l.omissions, err
		}
		slices.Reverse(below)
		waiting = append(waiting, below...)
	}
	if err := l.archive.Close(); err != nil {
		return l.omissions, fmt.Errorf("ending the archive: %w", err)
	}
	return l.omissions, nil
}

// TarFile is TarDirectory for one thing in a directory that is no directory itself, under its name. One that is not there
// is ErrSourceMissing, as is a directory.
func TarFile(ctx context.Context, dir, name string, w io.Writer) ([]Omission, error) {
	l, err := newLiveTar(ctx, dir, w)
	if err != nil {
		return nil, err
	}
	defer unix.Close(l.root)
	var stat unix.Stat_t
	if err := fstatat(l.root, name, &stat); err != nil {
		return nil, fmt.Errorf("looking at %q in %q: %w: %w", name, dir, ErrSourceMissing, err)
	}
	n := l.node(l.root, name, name, &stat)
	if n.Type == "dir" {
		return nil, fmt.Errorf("%q in %q is a directory: %w", name, dir, ErrSourceMissing)
	}
	if err := l.entry(l.root, name, name, n, &stat); err != nil {
		return l.omissions, err
	}
	if err := l.archive.Close(); err != nil {
		return l.omissions, fmt.Errorf("ending the archive: %w", err)
	}
	return l.omissions, nil
}

// newLiveTar opens a directory; its caller closes root.
func newLiveTar(ctx context.Context, dir string, w io.Writer) (*liveTar, error) {
	root, err := openRetry(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %q: %w: %w", dir, ErrSourceMissing, err)
	}
	return &liveTar{
		ctx: ctx, root: root, componentWise: !hasOpenat2(root), archive: tar.NewWriter(w),
		links: map[inodeKey]string{}, buffer: make([]byte, 256<<10),
	}, nil
}

// inodeKey tells files apart whatever they are called.
type inodeKey struct{ device, inode uint64 }

// liveDir is a directory that waits to be written.
type liveDir struct {
	path string
	node *node
}

// liveTar is the state of one TarDirectory or TarFile.
type liveTar struct {
	ctx           context.Context
	root          int
	componentWise bool
	archive       *tar.Writer
	links         map[inodeKey]string // first path of files with several names
	omissions     []Omission
	buffer        []byte
}

func (l *liveTar) omit(path string, kind OmissionKind, reason string) {
	l.omissions = append(l.omissions, Omission{Path: omissionPath(path), Kind: kind, Reason: reason})
}

// omissionPath writes a path as an Omission does.
func omissionPath(path string) string {
	if path == "" {
		return "/"
	}
	return quoteUnlessUTF8(path)
}

func (l *liveTar) header(path string, n *node, linkTarget string, size int64, hardLink string) error {
	name := path
	if path == "" {
		name = "."
	}
	header, err := tarHeader(name, n, linkTarget, size, hardLink)
	if err == nil && header != nil {
		err = l.archive.WriteHeader(header)
	}
	if err != nil {
		return tarError(path, err)
	}
	return nil
}

// directory writes the entries of one directory and returns the directories among them.
func (l *liveTar) directory(path string) (below []liveDir, err error) {
	fd, err := openBeneath(l.root, path, l.componentWise)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // removed since it was listed
	}
	if err != nil {
		l.omit(path, OmissionUnreadable, err.Error())
		return nil, nil
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		l.omit(path, OmissionUnreadable, err.Error())
	}
	slices.Sort(names)
	for _, name := range names {
		if err := context.Cause(l.ctx); err != nil {
			return nil, err
		}
		full := strings.TrimPrefix(path+"/"+name, "/")
		var stat unix.Stat_t
		switch err := fstatat(fd, name, &stat); {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			l.omit(full, OmissionUnreadable, err.Error())
			continue
		}
		n := l.node(fd, name, full, &stat)
		if n.Type == "dir" {
			below = append(below, liveDir{full, n})
		} else if err := l.entry(fd, name, full, n, &stat); err != nil {
			return nil, err
		}
	}
	return below, nil
}

// entry writes everything but directories.
func (l *liveTar) entry(dir int, name, path string, n *node, stat *unix.Stat_t) error {
	key := inodeKey{uint64(stat.Dev), stat.Ino}
	if stat.Nlink > 1 {
		if first := l.links[key]; first != "" {
			return l.header(path, n, "", 0, first)
		}
	}
	switch n.Type {
	case "file":
		if written, err := l.file(dir, name, path, n); err != nil || !written {
			return err
		}
	case "socket":
		l.omit(path, OmissionUnsupported, "a socket")
		return nil
	case "symlink":
		text, err := readlink(dir, name)
		if err != nil {
			l.omit(path, OmissionUnreadable, err.Error())
			return nil
		}
		if err := l.header(path, n, text, 0, ""); err != nil {
			return err
		}
	default:
		if err := l.header(path, n, "", 0, ""); err != nil {
			return err
		}
	}
	if stat.Nlink > 1 {
		l.links[key] = path
	}
	return nil
}

// file writes a regular file, as long as it is when it is opened. It returns false when there is nothing of it in the
// archive.
func (l *liveTar) file(dir int, name, path string, n *node) (written bool, err error) {
	fd, err := openRetry(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if !errors.Is(err, unix.ENOENT) {
			l.omit(path, OmissionUnreadable, err.Error())
		}
		return false, nil
	}
	defer unix.Close(fd)
	var before, after unix.Stat_t
	if err := fstat(fd, &before); err != nil {
		l.omit(path, OmissionUnreadable, err.Error())
		return false, nil
	}
	if before.Mode&unix.S_IFMT != unix.S_IFREG {
		l.omit(path, OmissionChanged, "became another kind of file")
		return false, nil
	}
	fillNode(n, &before)
	if err := l.header(path, n, "", before.Size, ""); err != nil {
		return false, err
	}
	var failed error
	for offset := int64(0); offset < before.Size; {
		if err := context.Cause(l.ctx); err != nil {
			return false, err
		}
		piece := l.buffer[:min(int64(len(l.buffer)), before.Size-offset)]
		got := 0
		if failed == nil {
			got, failed = preadFull(fd, piece, offset)
		}
		clear(piece[got:]) // the header promised this many bytes
		if _, err := l.archive.Write(piece); err != nil {
			return false, tarError(path, err)
		}
		offset += int64(len(piece))
	}
	statErr := fstat(fd, &after)
	switch {
	case errors.Is(failed, io.ErrUnexpectedEOF):
		l.omit(path, OmissionChanged, "became shorter while it was read")
	case failed != nil:
		l.omit(path, OmissionUnreadable, failed.Error())
	case statErr != nil || before.Size != after.Size || before.Mtim != after.Mtim || before.Ctim != after.Ctim:
		l.omit(path, OmissionChanged, "was written to while it was read")
	}
	return true, nil
}

// node describes a live entry; what cannot be read of its attributes is named.
func (l *liveTar) node(dir int, name, path string, stat *unix.Stat_t) *node {
	n := &node{}
	fillNode(n, stat)
	xattrs, err := readXattrs(dir, name)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		l.omit(path, OmissionUnreadable, "extended attributes: "+err.Error())
	}
	n.ExtendedAttributes = xattrs
	return n
}

func fillNode(n *node, stat *unix.Stat_t) {
	n.Mode = goMode(stat.Mode)
	n.UID, n.GID, n.Device = stat.Uid, stat.Gid, uint64(stat.Rdev)
	n.ModTime = time.Unix(stat.Mtim.Unix())
	n.AccessTime = time.Unix(stat.Atim.Unix())
	n.Type = map[uint32]string{
		unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "symlink", unix.S_IFBLK: "dev",
		unix.S_IFCHR: "chardev", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
	}[stat.Mode&unix.S_IFMT]
}

func readlink(dir int, name string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buffer)
	if err != nil {
		return "", fmt.Errorf("reading the link: %w", err)
	}
	return string(buffer[:n]), nil
}

// readXattrs reads the extended attributes of one entry without following a link; a file system without them has none.
func readXattrs(dir int, name string) ([]extendedAttribute, error) {
	full := descriptorPath(dir) + "/" + name
	list, err := readSized(func(buffer []byte) (int, error) { return unix.Llistxattr(full, buffer) })
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("listing attributes: %w", err)
	case len(list) == 0:
		return nil, nil
	}
	var xattrs []extendedAttribute
	for attribute := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := readSized(func(buffer []byte) (int, error) { return unix.Lgetxattr(full, attribute, buffer) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return xattrs, fmt.Errorf("attribute %q: %w", attribute, err)
		}
		xattrs = append(xattrs, extendedAttribute{Name: attribute, Value: value})
	}
	return xattrs, nil
}

// readSized calls read with a buffer that is large enough: the kernel tells the size when asked with none.
func readSized(read func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := read(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buffer := make([]byte, size)
		n, err := read(buffer)
		if errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINTR) { // it grew in between
			continue
		}
		if err != nil {
			return nil, err
		}
		return buffer[:n], nil
	}
}
