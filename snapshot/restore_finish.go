package snapshot

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errNotAsWritten means that the local file system does not give back what was written to it.
var errNotAsWritten = errors.New("the restored file is not what was written")

// finishFile sets the metadata of a file whose content is complete and counts it.
func (s *restorer) finishFile(dir *targetDir, fd int, entry *plannedEntry) error {
	path := dir.join(entry.name)
	var stat unix.Stat_t
	if err := fstat(fd, &stat); err != nil {
		return localError("looking at the restored", path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != entry.size {
		return fmt.Errorf("%w: %q has %d bytes instead of %d", errNotAsWritten, path, stat.Size, entry.size)
	}
	if !setPlainMetadata(dir, fd, entry, &stat) {
		if err := setMetadata(dir.fd, entry.name, path, &entry.meta, &s.target.warnings); err != nil {
			return err
		}
	}
	entry.finished = true
	s.meter.add(1, 0, path)
	return nil
}

// setPlainMetadata sets what most files have with few system calls: owner, permissions and times. It reports false when
// there is more to set or something was refused; setMetadata then does it all and says what is wrong.
func setPlainMetadata(dir *targetDir, fd int, entry *plannedEntry, stat *unix.Stat_t) bool {
	m := &entry.meta
	if len(m.xattrs) > 0 || m.mode&^0o777 != 0 {
		return false
	}
	if stat.Uid != m.uid || stat.Gid != m.gid {
		if ignoringEINTR(func() error { return unix.Fchown(fd, int(m.uid), int(m.gid)) }) != nil {
			return false
		}
	}
	if stat.Mode&0o7777 != m.mode {
		if ignoringEINTR(func() error { return unix.Fchmod(fd, m.mode) }) != nil {
			return false
		}
	}
	times := []unix.Timespec{m.atime, m.mtime}
	return ignoringEINTR(func() error { return unix.UtimesNanoAt(dir.fd, entry.name, times, unix.AT_SYMLINK_NOFOLLOW) }) == nil
}

// finishIn finishes the files of a directory that were not complete when they were made, and compares what is in it with
// the plan: every entry is there, of the kind and size that it should have, and nothing else.
func (s *restorer) finishIn(number int32, dir *targetDir) error {
	planned := s.plan.dirs[number]
	made := 0
	for i := planned.first; i < planned.last; i++ {
		entry := &s.plan.entries[i]
		if !entry.made {
			continue
		}
		made++
		path := dir.join(entry.name)
		if entry.kind == kindFile && entry.sameAs < 0 && !entry.finished {
			if err := s.finishMended(dir, i); err != nil {
				return err
			}
		}
		s.witness.complete(i)
		var stat unix.Stat_t
		if err := fstatat(dir.fd, entry.name, &stat); err != nil {
			return localError("looking at the restored", path, err)
		}
		if stat.Mode&unix.S_IFMT != entry.kind.stMode() {
			return fmt.Errorf("%w: %q has become another kind of file", errNotAsWritten, path)
		}
		if entry.kind == kindFile && entry.sameAs < 0 && stat.Size != entry.size {
			return fmt.Errorf("%w: %q has %d bytes instead of %d", errNotAsWritten, path, stat.Size, entry.size)
		}
		if entry.sameAs >= 0 { // the same inode, finished under its first name
			s.meter.add(1, 0, path)
		}
	}
	names, err := readNames(dir.fd)
	if err != nil {
		return localError("listing the restored directory", dir.path, err)
	}
	if len(names) != made {
		return fmt.Errorf("%w: the directory %q has %d entries instead of %d", errNotAsWritten, dir.path, len(names), made)
	}
	return nil
}

func (s *restorer) finishMended(dir *targetDir, number int32) error {
	entry := &s.plan.entries[number]
	if fd, held := s.witness.descriptor(number); held {
		return s.finishFile(dir, fd, entry)
	}
	fd, err := dir.openFile(entry.name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.finishFile(dir, fd, entry)
}

// finishDirs sets the metadata of all directories but the top one, children before parents: a mode may close what is
// below.
func (s *restorer) finishDirs(ctx context.Context) error {
	for level := len(s.plan.levels) - 1; level >= 0; level-- {
		first, last := s.plan.level(level)
		if err := s.eachDir(ctx, first, last, s.plan.hasSubdirs, s.finishDirsIn); err != nil {
			return err
		}
	}
	return nil
}

func (s *restorer) finishDirsIn(number int32, dir *targetDir) error {
	for i := s.plan.dirs[number].first; i < s.plan.dirs[number].last; i++ {
		entry := &s.plan.entries[i]
		if entry.kind != kindDir {
			continue
		}
		if err := setMetadata(dir.fd, entry.name, dir.join(entry.name), &entry.meta, &s.target.warnings); err != nil {
			return err
		}
	}
	return nil
}
