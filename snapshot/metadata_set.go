package snapshot

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// metadata is everything about an entry that is set after its content is complete.
type metadata struct {
	mode         uint32 // the twelve bits that chmod takes
	uid, gid     uint32
	mtime, atime unix.Timespec
	xattrs       []extendedAttribute
}

// chmodBits turns Go's mode, as restic stores it, into the twelve bits that chmod takes.
func chmodBits(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if mode&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}

// timespec keeps all of a time that the kernel can take. The zero time, which a foreign snapshot may hold where it
// recorded none, becomes the given default.
func timespec(t time.Time, missing unix.Timespec) unix.Timespec {
	if t.IsZero() {
		return missing
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// metadataOf gathers what a node says.
func metadataOf(n *node) metadata {
	m := metadata{mode: chmodBits(n.Mode), uid: n.UID, gid: n.GID, xattrs: n.ExtendedAttributes}
	m.mtime = timespec(n.ModTime, unix.Timespec{})
	m.atime = timespec(n.AccessTime, m.mtime)
	return m
}

// setMetadata sets owner, extended attributes, mode and times of one entry of dir, in the order that matters: a change
// of owner clears set-id bits and capabilities, so it comes first; attributes need the write permission that the final
// mode may take away; and everything changes the times.
//
// What the user may not set (owners and devices need root, some attributes a capability) or the file system cannot
// hold is a warning: the content is whole. path names the entry in messages.
func setMetadata(dir int, name, path string, m *metadata, warnings *warningList) error {
	fd, err := openRetry(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return localError("opening", path, err)
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := fstat(fd, &stat); err != nil {
		return localError("looking at", path, err)
	}
	isLink := stat.Mode&unix.S_IFMT == unix.S_IFLNK
	mode := m.mode

	if stat.Uid != m.uid || stat.Gid != m.gid {
		err := ignoringEINTR(func() error {
			return unix.Fchownat(fd, "", int(m.uid), int(m.gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
		})
		if err != nil {
			if !isMetadataRefusal(err) {
				return localError("setting the owner of", path, err)
			}
			warnings.add("%s: owner %d:%d not set: %v", quotePath(path), m.uid, m.gid, err)
			// A set-id bit must not take effect for an owner it was not meant for.
			if !isLink && stat.Mode&unix.S_IFMT != unix.S_IFDIR && mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
				mode &^= unix.S_ISUID | unix.S_ISGID
				warnings.add("%s: set-user-id and set-group-id not set because the owner is another", quotePath(path))
			}
		}
	}
	if err := setXattrs(dir, name, path, m.xattrs, warnings); err != nil {
		return err
	}
	if !isLink { // a link has no mode of its own
		// /proc/self/fd leads to exactly the inode that was looked at above; there is no chmod for such a descriptor
		// before Linux 6.6.
		err := ignoringEINTR(func() error { return unix.Chmod(descriptorPath(fd), mode) })
		if err != nil {
			if !isMetadataRefusal(err) {
				return localError("setting the mode of", path, err)
			}
			warnings.add("%s: mode %04o not set: %v", quotePath(path), mode, err)
		} else if mode&unix.S_ISGID != 0 {
			// For a group that the user is not in, the kernel drops this bit without a word.
			if err := fstat(fd, &stat); err == nil && stat.Mode&0o7777 != mode {
				warnings.add("%s: mode %04o not set, it is %04o", quotePath(path), mode, stat.Mode&0o7777)
			}
		}
	}
	times := []unix.Timespec{m.atime, m.mtime}
	err = ignoringEINTR(func() error { return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		if !isMetadataRefusal(err) {
			return localError("setting the times of", path, err)
		}
		warnings.add("%s: times not set: %v", quotePath(path), err)
	}
	return nil
}

// setXattrs sets extended attributes, POSIX ACLs among them, without following a link.
func setXattrs(dir int, name, path string, xattrs []extendedAttribute, warnings *warningList) error {
	if len(xattrs) == 0 {
		return nil
	}
	// There is no setxattrat before Linux 6.13; the descriptor's path is followed only up to the directory.
	full := descriptorPath(dir) + "/" + name
	for _, attribute := range xattrs {
		err := ignoringEINTR(func() error { return unix.Lsetxattr(full, attribute.Name, attribute.Value, 0) })
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
			// ext4 says "no space" also for an attribute that does not fit into its one block.
			if diskIsFull(dir) || errors.Is(err, unix.EDQUOT) {
				return localError("setting the attribute "+strconv.Quote(attribute.Name)+" of", path, err)
			}
			warnings.add("%s: attribute %q not set: this file system has no room for it", quotePath(path), attribute.Name)
		case isMetadataRefusal(err) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE):
			warnings.add("%s: attribute %q not set: %v", quotePath(path), attribute.Name, err)
		default:
			return localError("setting the attribute "+strconv.Quote(attribute.Name)+" of", path, err)
		}
	}
	return nil
}

// diskIsFull tells a full disk from a full attribute block.
func diskIsFull(fd int) bool {
	var stat unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &stat) }); err != nil {
		return true
	}
	return stat.Bavail*uint64(stat.Bsize) < 1<<20
}

// isMetadataRefusal reports whether the kernel refused for lack of rights or of support by the file system, neither of
// which another try or more room would change.
func isMetadataRefusal(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.ENOTSUP, unix.EINVAL, unix.EOVERFLOW, unix.ENOSYS},
		func(refusal error) bool { return errors.Is(err, refusal) })
}

// quotePath writes a path for a person, as it is when that is unambiguous.
func quotePath(path string) string {
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` || strings.ContainsAny(path, " :") {
		return quoted
	}
	return path
}

// quoteUnlessUTF8 writes a path as reports do: quoted in Go's way when its bytes are not valid UTF-8.
func quoteUnlessUTF8(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return strconv.Quote(path)
}
