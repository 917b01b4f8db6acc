package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// checkName refuses every name that is not exactly one entry of a directory. It is the first of two barriers; the
// second is that names are only ever used with openat and friends, relative to a directory below the root.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return fmt.Errorf("%w: %q", ErrUnsafePath, name)
	case strings.IndexByte(name, '/') >= 0, strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: %q", ErrUnsafePath, name)
	case len(name) > 255: // NAME_MAX of Linux; nothing that was backed up there is longer
		return fmt.Errorf("%w: a name of %d bytes", ErrLimitExceeded, len(name))
	}
	return nil
}

// targetDir is an open directory below a target's root, in which entries are created.
type targetDir struct {
	target *target
	fd     int
	path   string // relative to the root, "" for the root; for messages
}

// open opens the directory at a slash-separated path relative to the root ("" is the root itself). A symbolic link
// anywhere in it, and any way out of the root, is ErrUnsafePath.
func (t *target) open(path string) (*targetDir, error) {
	fd, err := t.openBeneath(path)
	if err != nil {
		return nil, err
	}
	return &targetDir{target: t, fd: fd, path: path}, nil
}

func (d *targetDir) close() { unix.Close(d.fd) }

func (t *target) openBeneath(path string) (int, error) {
	return openBeneath(t.root, path, t.componentWise)
}

// maxPathPiece keeps each openat2 below PATH_MAX: trees may be deeper than one path can say.
const maxPathPiece = 3072

// openBeneath opens the directory at path below root for reading, following no link.
func openBeneath(root int, path string, componentWise bool) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	if path != "" {
		for name := range strings.SplitSeq(path, "/") {
			if err := checkName(name); err != nil {
				return -1, err
			}
		}
	}
	if path != "" && len(path) <= maxPathPiece && !componentWise {
		fd, err := openat2Retry(root, path, flags)
		return fd, pathError(path, err)
	}
	current, err := openRetry(root, ".", flags, 0)
	for rest := path; err == nil && rest != ""; {
		var piece string
		piece, rest = cutPath(rest, componentWise)
		from := current
		if componentWise {
			current, err = openRetry(from, piece, flags, 0)
		} else {
			current, err = openat2Retry(from, piece, flags)
		}
		unix.Close(from)
	}
	return current, pathError(path, err)
}

// pathError says what kept a directory from being opened beneath another.
func pathError(path string, err error) error {
	switch {
	case err == nil:
		return nil
	// A link in the way: ELOOP from openat2, ENOTDIR from O_DIRECTORY|O_NOFOLLOW on the link itself.
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %q leads through something that is not a directory: %w", ErrUnsafePath, path, err)
	default:
		return localError("opening the directory", path, err)
	}
}

// hasOpenat2 reports whether the kernel, and what filters its calls, lets us use openat2 (Linux 5.6).
func hasOpenat2(root int) bool {
	fd, err := openat2Retry(root, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// cutPath takes the first piece off a path: one name, or as many as surely fit into one system call.
func cutPath(path string, one bool) (piece, rest string) {
	if one {
		piece, rest, _ = strings.Cut(path, "/")
		return piece, rest
	}
	if len(path) <= maxPathPiece {
		return path, ""
	}
	cut := strings.LastIndexByte(path[:maxPathPiece], '/') // names are at most 255 bytes, so there is one
	return path[:cut], path[cut+1:]
}

// mkdir creates a directory that only this process' user can enter; its final mode is set when it is complete.
func (d *targetDir) mkdir(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := mkdirat(d.fd, name, 0o700); err != nil {
		return d.createError("directory", name, err)
	}
	return nil
}

// createFile creates a file for reading and writing, which must not exist yet, with the permissions of mode as far as the
// process' mask leaves them. The caller closes the descriptor.
func (d *targetDir) createFile(name string, mode uint32) (int, error) {
	if err := checkName(name); err != nil {
		return -1, err
	}
	fd, err := openRetry(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode&0o777)
	if err != nil {
		return -1, d.createError("file", name, err)
	}
	return fd, nil
}

// openFile opens a regular file that was created earlier. It never blocks on, follows or triggers anything else.
func (d *targetDir) openFile(name string, flags int) (int, error) {
	if err := checkName(name); err != nil {
		return -1, err
	}
	fd, err := openRetry(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return -1, fmt.Errorf("%w: %q has become a link", ErrUnsafePath, d.join(name))
	}
	if err != nil {
		return -1, localError("opening the file", d.join(name), err)
	}
	return fd, nil
}

// symlink creates a symbolic link that says exactly text, wherever that points: it is content, and never followed.
func (d *targetDir) symlink(text, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if text == "" || strings.IndexByte(text, 0) >= 0 {
		return fmt.Errorf("the link %q: %w: a link cannot say %q", d.join(name), ErrDamaged, text)
	}
	if err := ignoringEINTR(func() error { return unix.Symlinkat(text, d.fd, name) }); err != nil {
		return d.createError("link", name, err)
	}
	return nil
}

// mknod creates a device (S_IFBLK, S_IFCHR) or a FIFO (S_IFIFO). Without the right to make devices it returns false.
func (d *targetDir) mknod(name string, kind uint32, device uint64) (bool, error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	err := ignoringEINTR(func() error { return unix.Mknodat(d.fd, name, kind|0o600, int(device)) })
	if errors.Is(err, unix.EPERM) && kind != unix.S_IFIFO {
		return false, nil
	}
	if err != nil {
		return false, d.createError("special file", name, err)
	}
	return true, nil
}

// link makes name another name of what oldName is in from. A symbolic link is linked itself, not what it points to.
func (d *targetDir) link(from *targetDir, oldName, name string) error {
	if err := errors.Join(checkName(oldName), checkName(name)); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Linkat(from.fd, oldName, d.fd, name, 0) })
	if err != nil {
		return d.createError("hard link", name, err)
	}
	return nil
}

func (d *targetDir) join(name string) string {
	if d.path == "" {
		return name
	}
	return d.path + "/" + name
}

func (d *targetDir) createError(kind, name string, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("creating the %s %q: %w: the name is there twice", kind, d.join(name), ErrDamaged)
	}
	return localError("creating the "+kind, d.join(name), err)
}

// The system calls below are wrapped for the signals that interrupt them.

func openRetry(dir int, path string, flags int, mode uint32) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Openat(dir, path, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// openat2Retry opens beneath dir without following any link; it tries again when the kernel could not rule out a
// concurrent rename.
func openat2Retry(dir int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for attempt := 0; ; attempt++ {
		fd, err := unix.Openat2(dir, path, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && attempt < 1000 {
			continue
		}
		return fd, err
	}
}

func mkdirat(dir int, name string, mode uint32) error {
	return ignoringEINTR(func() error { return unix.Mkdirat(dir, name, mode) })
}

func fstat(fd int, stat *unix.Stat_t) error {
	return ignoringEINTR(func() error { return unix.Fstat(fd, stat) })
}

// fstatat never follows a link.
func fstatat(dir int, name string, stat *unix.Stat_t) error {
	return ignoringEINTR(func() error { return unix.Fstatat(dir, name, stat, unix.AT_SYMLINK_NOFOLLOW) })
}

func flock(fd, how int) error {
	return ignoringEINTR(func() error { return unix.Flock(fd, how) })
}

func renameat2(oldDir int, oldName string, newDir int, newName string, flags uint) error {
	return ignoringEINTR(func() error { return unix.Renameat2(oldDir, oldName, newDir, newName, flags) })
}
