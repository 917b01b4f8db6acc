package snapshot

import (
	"context"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/storage"
)

// An attempt that was cut left a part of the tree, with anything between nothing and everything right in it. The next
// one plans anew, from its own snapshot, and believes nothing but hashes: a directory stays when one is wanted there, a
// file's blob when the bytes at its place have its hash. Everything else goes, and metadata is always set anew.

// goesOn reports whether another attempt can use what a failed one has restored: not when the failure would be the same,
// and not when the disk is full or lies.
func goesOn(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	return !slices.ContainsFunc([]error{
		ErrDamaged, ErrNoSnapshot, ErrNoPath, ErrUnsafePath, ErrLimitExceeded, ErrLittleMemory, ErrLocalSpace, errNotAsWritten,
		storage.ErrNotFound, storage.ErrBucketNotFound, storage.ErrInvalid,
	}, func(permanent error) bool { return errors.Is(err, permanent) })
}

// takeOver makes what an earlier attempt left a part of this one. First all directories are cleared, then files are
// looked at: one with more than one name is then one that has a name elsewhere.
func (s *restorer) takeOver(ctx context.Context) error {
	s.plan.dirs[0].kept = true
	kept := func(number int32) bool { return s.plan.dirs[number].kept }
	for level := range s.plan.levels {
		first, last := s.plan.level(level)
		if err := s.eachDir(ctx, first, last, kept, s.clearDir); err != nil {
			return err
		}
	}
	return s.eachDir(ctx, 0, int32(len(s.plan.dirs)), kept, s.keepFiles)
}

// clearDir removes from a directory whatever is of no use: what the plan does not have, or not as this kind; links,
// special files and further names of files, which are made again as cheaply as they are looked at.
func (s *restorer) clearDir(number int32, dir *targetDir) error {
	names, err := readNames(dir.fd)
	if err != nil {
		return localError("reading the directory", dir.path, err)
	}
	planned := s.plan.entries[s.plan.dirs[number].first:s.plan.dirs[number].last]
	for _, name := range names {
		var stat unix.Stat_t
		if err := fstatat(dir.fd, name, &stat); err != nil {
			return localError("looking at", dir.join(name), err)
		}
		at, wanted := slices.BinarySearchFunc(planned, name, func(e plannedEntry, name string) int { return strings.Compare(e.name, name) })
		if wanted && stat.Mode&unix.S_IFMT == planned[at].kind.stMode() {
			switch entry := &planned[at]; {
			case entry.kind == kindDir:
				if err := reopenDir(dir.fd, name); err != nil {
					return localError("opening the directory", dir.join(name), err)
				}
				s.plan.dirs[entry.subdir].kept = true
				continue
			case entry.kind == kindFile && entry.sameAs < 0:
				continue
			}
		}
		if err := removeEntry(dir.fd, name, stat.Mode); err != nil {
			return localError("removing", dir.join(name), err)
		}
	}
	return nil
}

func removeEntry(dir int, name string, mode uint32) error {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return removeTree(dir, name)
	}
	return ignoringEINTR(func() error { return unix.Unlinkat(dir, name, 0) })
}

// reopenDir makes a directory that may have its final mode and attributes already as it was when it was made.
func reopenDir(dir int, name string) error {
	if err := makeAccessible(dir, name); err != nil {
		return err
	}
	fd, err := openRetry(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return removeXattrs(fd)
}

// removeXattrs removes all extended attributes but those that the system itself gives to new files.
func removeXattrs(fd int) error {
	buffer := make([]byte, 1024)
	n, err := unix.Flistxattr(fd, buffer)
	if errors.Is(err, unix.ERANGE) {
		buffer = make([]byte, 64<<10) // the most that Linux lists
		n, err = unix.Flistxattr(fd, buffer)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "security.") && name != "security.capability" {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return err
		}
	}
	return nil
}

func (s *restorer) keepFiles(number int32, dir *targetDir) error {
	h := s.hashers.Get().(*partHasher)
	defer s.hashers.Put(h)
	for i := s.plan.dirs[number].first; i < s.plan.dirs[number].last; i++ {
		if entry := &s.plan.entries[i]; entry.kind == kindFile && entry.sameAs < 0 {
			if err := s.keepFile(h, dir, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepFile finds what is usable of a file that an earlier attempt left, and removes the file when that is nothing. Of a
// file that stays, the blobs that are there are noted; where others belong it reads as zeros, and it has its final
// length. One that lacks none is finished.
func (s *restorer) keepFile(h *partHasher, dir *targetDir, number int32) error {
	entry := &s.plan.entries[number]
	path := dir.join(entry.name)
	fd, err := openLeftOver(dir, entry.name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return localError("opening", path, err)
	}
	defer unix.Close(fd)
	have := h.present(fd, entry)
	if !slices.Contains(have, true) || s.prepareLeftOver(dir, fd, entry, have) != nil {
		if err := removeEntry(dir.fd, entry.name, unix.S_IFREG); err != nil {
			return localError("removing", path, err)
		}
		return nil
	}
	s.noteKept(number, have)
	if slices.Contains(have, false) {
		return nil
	}
	return s.finishFile(dir, fd, entry)
}

// openLeftOver opens a file whose mode may already forbid it.
func openLeftOver(dir *targetDir, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := openRetry(dir.fd, name, flags, 0)
	if !errors.Is(err, unix.EACCES) {
		return fd, err
	}
	handle, err := openRetry(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(handle)
	if err := ignoringEINTR(func() error { return unix.Chmod(descriptorPath(handle), 0o600) }); err != nil {
		return -1, err
	}
	return openRetry(dir.fd, name, flags, 0)
}

// present says of each blob of a file whether the bytes at its place have its hash. Nothing is, of a file that has a
// name elsewhere: it must be neither written to nor given another owner. What cannot be read is not there.
func (h *partHasher) present(fd int, entry *plannedEntry) []bool {
	var stat unix.Stat_t
	if fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Nlink != 1 {
		return nil
	}
	have := make([]bool, len(entry.content))
	offset := int64(0)
	for i, id := range entry.content {
		size := int64(entry.sizes[i])
		if offset+size > stat.Size {
			break
		}
		got, err := h.hashAt(fd, offset, size, &stat)
		have[i] = err == nil && got == id
		offset += size
	}
	return have
}

// prepareLeftOver makes a file that stays as a new one would be: without attributes, of the right length, and reading as
// zeros wherever a blob is still to be written.
func (s *restorer) prepareLeftOver(dir *targetDir, fd int, entry *plannedEntry, have []bool) error {
	if err := removeXattrs(fd); err != nil {
		return err
	}
	if err := ignoringEINTR(func() error { return unix.Fchmod(fd, 0o600) }); err != nil {
		return err
	}
	file, err := dir.openFile(entry.name, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	offset := int64(0)
	for i, there := range have {
		if size := int64(entry.sizes[i]); !there {
			const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
			if err := ignoringEINTR(func() error { return unix.Fallocate(file, punch, offset, size) }); err != nil {
				return err
			}
		}
		offset += int64(entry.sizes[i])
	}
	return ftruncate(file, entry.size)
}

func (s *restorer) noteKept(number int32, have []bool) {
	reused := int64(0)
	for i, there := range have {
		if there {
			reused += int64(s.plan.entries[number].sizes[i])
		}
	}
	s.mutex.Lock()
	s.have[number] = have
	s.reused += reused
	s.mutex.Unlock()
	s.meter.add(0, reused, "")
}

// has reports whether a blob of a file was left in place by an earlier attempt.
func (s *restorer) has(entry, chunk int32) bool {
	have, kept := s.have[entry]
	return kept && have[chunk]
}
