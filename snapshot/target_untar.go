package snapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// UntarOptions adjust UntarDirectory. The zero value is useful.
type UntarOptions struct {
	// MaxBytes bounds the content bytes of all files together, holes included. Default 1 TiB.
	MaxBytes int64
	// MaxEntries bounds the number of entries, directories that are only implied by paths included. Default 10 million.
	MaxEntries int64
	// Privileged also makes devices and sets all extended attributes. Without it, which is right for an archive that a
	// person hands in, devices are left out with a warning and only user attributes and ACLs are set.
	Privileged bool
	// Prepare, when set, is called with the complete new directory before it is renamed into place; an error makes the
	// whole fail with nothing changed.
	Prepare func(dir string) error
	// Progress is called from time to time, from one goroutine.
	Progress func(Progress)
}

func (o *UntarOptions) applyDefaults() {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 40
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = defaultMaxEntries
	}
}

// UntarReport describes an unpacked archive.
type UntarReport struct {
	Files    int64    `json:"files"` // everything but directories
	Dirs     int64    `json:"dirs"`  // without the target itself
	Bytes    int64    `json:"bytes"`
	Warnings []string `json:"warnings,omitempty"` // what was left out or could not be set
}

// UntarDirectory unpacks a tar stream (any format that archive/tar reads) into a new directory and puts that in place
// at target under the rules of Restore: the target must not exist, nothing is seen there before everything is written
// and synced, and on any error, a stream that ends before the archive does included, there is nothing. Neither names
// (`..`, absolute) nor links planted earlier in the stream lead out of the target: ErrUnsafePath. Too many bytes or
// entries are ErrLimitExceeded, a malformed stream is ErrDamaged, a full disk ErrLocalSpace. The context is looked at
// before each read of r; a read that hangs is the caller's to end, by closing what r reads from.
func UntarDirectory(ctx context.Context, r io.Reader, target string, options UntarOptions) (_ *UntarReport, err error) {
	options.applyDefaults()
	t, err := newTarget(target, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = t.finish(err) }()
	u := &unpacker{target: t, options: options, dirs: map[string]*metadata{}, meter: newMeter(options.Progress)}
	defer u.leave()
	if err := u.unpack(ctx, r); err != nil {
		return nil, fmt.Errorf("unpacking into %s: %w", target, err)
	}
	if err := u.finishDirs(); err != nil {
		return nil, fmt.Errorf("unpacking into %s: %w", target, err)
	}
	if err := t.commit(ctx, options.Prepare, nil); err != nil {
		return nil, err
	}
	u.meter.done()
	u.report.Warnings = t.warnings.all()
	return &u.report, nil
}

// unpacker is the state of one UntarDirectory.
type unpacker struct {
	target  *target
	options UntarOptions
	report  UntarReport
	meter   *meter
	entries int64
	dirs    map[string]*metadata // every directory made so far; nil when only implied
	current *targetDir           // the directory of the last entry stays open: the next is most often in it too
}

func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	counted := &countingReader{ctx: ctx, reader: r}
	archive := tar.NewReader(counted)
	for {
		// archive/tar takes the end of the stream between two entries for the end of the archive, but an archive ends
		// with zero blocks: without them the rest was lost on the way.
		end := (counted.n + 511) / 512 * 512
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			if counted.n < end+512 {
				return fmt.Errorf("the archive ends early: %w: %w", ErrDamaged, io.ErrUnexpectedEOF)
			}
			// Take what padding follows, so that who writes the other end of a pipe can finish.
			_, err := io.Copy(io.Discard, io.LimitReader(counted, 1<<20))
			return err
		}
		if err == nil && header.Typeflag != tar.TypeXGlobalHeader {
			err = u.entry(header, archive)
		}
		switch {
		case err == nil:
		case counted.err != nil && !errors.Is(counted.err, io.EOF): // the stream's own failure, an ended context included
			return fmt.Errorf("reading the archive: %w", counted.err)
		case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			return fmt.Errorf("reading the archive: %w: %w", ErrDamaged, err)
		default:
			return err
		}
	}
}

// archivePath checks an archive's path and returns it without "./" and "//". The root is "".
func archivePath(path string) (string, error) {
	if strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("%w: the absolute path %q", ErrUnsafePath, shorten(path))
	}
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if err := checkName(name); err != nil {
			return "", fmt.Errorf("in the path %q: %w", shorten(path), err)
		}
		names = append(names, name)
	}
	if len(names) > maxDepth {
		return "", fmt.Errorf("%w: a path of %d directories", ErrLimitExceeded, len(names))
	}
	return strings.Join(names, "/"), nil
}

// shorten keeps hostile paths out of messages in full length.
func shorten(path string) string {
	if len(path) > 500 {
		return path[:500] + "..."
	}
	return path
}

func splitPath(path string) (dir, name string) {
	if cut := strings.LastIndexByte(path, '/'); cut >= 0 {
		return path[:cut], path[cut+1:]
	}
	return "", path
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	path, err := archivePath(header.Name)
	if err != nil {
		return err
	}
	m := u.metadata(header, path)
	if path == "" {
		if header.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: an entry without a name (%q)", ErrUnsafePath, header.Name)
		}
		u.dirs[""] = m
		return nil
	}
	if header.Typeflag == tar.TypeDir {
		if err := u.makeDir(path); err != nil {
			return err
		}
		u.dirs[path] = m
		return nil
	}
	if err := u.count(); err != nil {
		return err
	}
	dirPath, name := splitPath(path)
	dir, err := u.enter(dirPath)
	if err != nil {
		return err
	}
	if err := u.makeWay(dir, name); err != nil {
		return err
	}
	made, err := u.create(dir, name, header, content)
	if err != nil {
		return fmt.Errorf("entry %q: %w", shorten(path), err)
	}
	if !made {
		return nil
	}
	u.report.Files++
	u.meter.add(1, 0, path)
	if header.Typeflag == tar.TypeLink { // shares what was set for the first name
		return nil
	}
	return setMetadata(dir.fd, name, path, m, &u.target.warnings)
}

// create makes everything but directories. It returns false for what was left out.
func (u *unpacker) create(dir *targetDir, name string, header *tar.Header, content io.Reader) (bool, error) {
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives hold TypeRegA
		return true, u.file(dir, name, header, content)
	case tar.TypeSymlink:
		return true, dir.symlink(header.Linkname, name)
	case tar.TypeLink:
		old, err := archivePath(header.Linkname)
		if err != nil {
			return false, fmt.Errorf("linking to %q: %w", shorten(header.Linkname), err)
		}
		oldDir, oldName := splitPath(old)
		from, err := u.target.open(oldDir)
		if err != nil {
			return false, fmt.Errorf("linking to %q: %w", shorten(old), err)
		}
		defer from.close()
		return true, dir.link(from, oldName, name)
	case tar.TypeFifo:
		return dir.mknod(name, unix.S_IFIFO, 0)
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if header.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		made := false
		if u.options.Privileged {
			var err error
			if made, err = dir.mknod(name, kind, unix.Mkdev(uint32(header.Devmajor), uint32(header.Devminor))); err != nil {
				return false, err
			}
		}
		if !made {
			u.target.warnings.add("%s: device left out: not allowed here", quotePath(dir.join(name)))
		}
		return made, nil
	default:
		u.target.warnings.add("%s: left out: unknown kind %q", quotePath(dir.join(name)), header.Typeflag)
		return false, nil
	}
}

func (u *unpacker) file(dir *targetDir, name string, header *tar.Header, content io.Reader) error {
	if header.Size > u.options.MaxBytes-u.report.Bytes {
		return fmt.Errorf("%w: more than %d bytes of content", ErrLimitExceeded, u.options.MaxBytes)
	}
	fd, err := dir.createFile(name, 0o600)
	if err != nil {
		return err
	}
	w := &fileWriter{fd: fd, path: dir.join(name)}
	written, err := io.Copy(&meteredWriter{writer: w, meter: u.meter}, content)
	u.report.Bytes += written
	if err := errors.Join(err, w.finish()); err != nil {
		return err
	}
	if written != header.Size {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, written, header.Size)
	}
	return nil
}

// makeWay removes what an earlier entry of the same name made: in an archive the last one counts. A directory stays in
// the way, creating over it fails.
func (u *unpacker) makeWay(dir *targetDir, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Unlinkat(dir.fd, name, 0) })
	switch {
	case err == nil:
		u.report.Files--
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EISDIR):
		return nil
	default:
		return localError("replacing", dir.join(name), err)
	}
}

// enter opens a directory, making it and those above it when the archive did not.
func (u *unpacker) enter(path string) (*targetDir, error) {
	if u.current != nil && u.current.path == path {
		return u.current, nil
	}
	if err := u.makeDir(path); err != nil {
		return nil, err
	}
	dir, err := u.target.open(path)
	if err != nil {
		return nil, err
	}
	u.leave()
	u.current = dir
	return dir, nil
}

func (u *unpacker) leave() {
	if u.current != nil {
		u.current.close()
		u.current = nil
	}
}

func (u *unpacker) makeDir(path string) error {
	if _, made := u.dirs[path]; made || path == "" {
		return nil
	}
	above, name := splitPath(path)
	dir, err := u.enter(above)
	if err != nil {
		return err
	}
	if err := u.count(); err != nil {
		return err
	}
	if err := dir.mkdir(name); err != nil {
		// Something else is in the way: a link planted to be followed, or a file that the archive replaces. Neither is
		// followed; both are refused, since tools that follow and tools that replace would give different trees.
		if errors.Is(err, unix.EEXIST) || errors.Is(err, ErrDamaged) {
			return fmt.Errorf("%w: %q leads through something that is not a directory", ErrUnsafePath, shorten(path))
		}
		return err
	}
	u.dirs[path] = nil
	u.report.Dirs++
	return nil
}

func (u *unpacker) count() error {
	u.entries++
	if u.entries > u.options.MaxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrLimitExceeded, u.options.MaxEntries)
	}
	return nil
}

func (u *unpacker) metadata(header *tar.Header, path string) *metadata {
	m := &metadata{mode: uint32(header.Mode) & 0o7777, uid: uint32(header.Uid), gid: uint32(header.Gid)}
	if header.Uid < 0 || header.Gid < 0 || int64(header.Uid) >= math.MaxUint32 || int64(header.Gid) >= math.MaxUint32 {
		u.target.warnings.add("%s: impossible owner %d:%d", quotePath(path), header.Uid, header.Gid)
		m.uid, m.gid = uint32(unix.Geteuid()), uint32(unix.Getegid())
	}
	m.mtime = timespec(header.ModTime, unix.Timespec{})
	m.atime = timespec(header.AccessTime, m.mtime)
	for key, value := range header.PAXRecords {
		encoded, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		name := decodeXattrName(encoded)
		if u.options.Privileged || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_") {
			m.xattrs = append(m.xattrs, extendedAttribute{Name: name, Value: []byte(value)})
		} else {
			u.target.warnings.add("%s: attribute %q left out: not allowed here", quotePath(path), name)
		}
	}
	return m
}

// finishDirs sets the directories' metadata, the deepest first, since a mode may close what is below it and every entry
// made changes its directory's times.
func (u *unpacker) finishDirs() error {
	u.leave()
	paths := make([]string, 0, len(u.dirs))
	for path, m := range u.dirs {
		if m != nil {
			paths = append(paths, path)
		} else if path != "" {
			implied := &metadata{mode: 0o755, uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())}
			implied.mtime = unix.Timespec{Nsec: unix.UTIME_OMIT}
			implied.atime = implied.mtime
			u.dirs[path] = implied
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(b, a) }) // a path sorts after what is above it
	for _, path := range paths {
		if err := u.target.setDirMetadata(path, u.dirs[path]); err != nil {
			return err
		}
	}
	return nil
}

// setDirMetadata sets the metadata of a directory, the root ("") included.
func (t *target) setDirMetadata(path string, m *metadata) error {
	if path == "" {
		return setMetadata(t.parent, t.temp, "/", m, &t.warnings)
	}
	above, name := splitPath(path)
	dir, err := t.open(above)
	if err != nil {
		return err
	}
	defer dir.close()
	return setMetadata(dir.fd, name, path, m, &t.warnings)
}

// countingReader counts what was read, keeps the error that ended it, and ends with its context.
type countingReader struct {
	ctx    context.Context
	reader io.Reader
	n      int64
	err    error
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		c.err = err
		return 0, err
	}
	n, err := c.reader.Read(p)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

// meteredWriter reports bytes as they are written.
type meteredWriter struct {
	writer io.Writer
	meter  *meter
}

func (m *meteredWriter) Write(p []byte) (int, error) {
	n, err := m.writer.Write(p)
	m.meter.add(0, int64(n), "")
	return n, err
}
