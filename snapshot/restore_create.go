package snapshot

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// create makes all directories, links and special files, and the files that have no content or get it from more than one
// batch; all others are made when they are written. A worker has a whole directory at a time.
func (s *restorer) create(ctx context.Context, l *layout) error {
	for level := range s.plan.levels {
		first, last := s.plan.level(level)
		err := s.eachDir(ctx, first, last, nil, func(number int32, dir *targetDir) error { return s.createIn(number, dir, l.home) })
		if err != nil {
			return err
		}
	}
	return nil
}

// eachDir calls do for directories [first, last), several at a time; with only, for those of which it is true.
func (s *restorer) eachDir(ctx context.Context, first, last int32, only func(int32) bool, do func(int32, *targetDir) error) error {
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(s.workers)
	for number := first; number < last && groupContext.Err() == nil; number++ {
		if only != nil && !only(number) {
			continue
		}
		group.Go(func() error {
			if err := context.Cause(groupContext); err != nil {
				return err
			}
			dir, err := s.target.open(s.plan.dirs[number].path)
			if err != nil {
				return err
			}
			defer dir.close()
			return do(number, dir)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *restorer) createIn(number int32, dir *targetDir, home []int32) error {
	for i := s.plan.dirs[number].first; i < s.plan.dirs[number].last; i++ {
		entry := &s.plan.entries[i]
		if entry.sameAs >= 0 {
			continue
		}
		var err error
		switch entry.kind {
		case kindDir:
			if !s.plan.dirs[entry.subdir].kept {
				err = dir.mkdir(entry.name)
			}
		case kindFile:
			if _, kept := s.have[i]; !kept && home[i] == noHome {
				err = s.createFile(dir, i)
			}
		default:
			err = s.createSpecial(dir, entry)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// createFile makes a file that reads as zeros in its whole length; one without content is then complete.
func (s *restorer) createFile(dir *targetDir, number int32) error {
	entry := &s.plan.entries[number]
	fd, err := dir.createFile(entry.name, 0o600)
	if err != nil {
		return err
	}
	if entry.size == 0 || !s.witness.lease(fd) || !s.witness.hold(number, fd) {
		defer unix.Close(fd)
	}
	if entry.size == 0 {
		return s.finishFile(dir, fd, entry)
	}
	if err := ftruncate(fd, entry.size); err != nil {
		return localError("setting the size of", dir.join(entry.name), err)
	}
	return nil
}

// createSpecial makes a symbolic link, a device or a FIFO, with its metadata.
func (s *restorer) createSpecial(dir *targetDir, entry *plannedEntry) error {
	path := dir.join(entry.name)
	if entry.kind == kindSymlink {
		if err := dir.symlink(entry.text, entry.name); err != nil {
			return err
		}
	} else {
		made, err := dir.mknod(entry.name, entry.kind.stMode(), entry.device)
		if err != nil {
			return err
		}
		if entry.made = made; !made {
			s.target.warnings.add("%s: device %d:%d not made: only root may", quotePath(path), unix.Major(entry.device), unix.Minor(entry.device))
			return nil
		}
	}
	if err := setMetadata(dir.fd, entry.name, path, &entry.meta, &s.target.warnings); err != nil {
		return err
	}
	s.meter.add(1, 0, path)
	return nil
}

// createLinks makes the further names of files, once all first names are there.
func (s *restorer) createLinks(ctx context.Context) error {
	for number := range s.plan.dirs {
		planned := &s.plan.dirs[number]
		var dir *targetDir
		for i := planned.first; i < planned.last; i++ {
			entry := &s.plan.entries[i]
			if entry.sameAs < 0 {
				continue
			}
			if entry.made = s.plan.entries[entry.sameAs].made; !entry.made {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if dir == nil {
				var err error
				if dir, err = s.target.open(planned.path); err != nil {
					return err
				}
			}
			if err := s.link(dir, entry); err != nil {
				dir.close()
				return err
			}
		}
		if dir != nil {
			dir.close()
		}
	}
	return nil
}

func (s *restorer) link(dir *targetDir, entry *plannedEntry) error {
	from, err := s.target.open(s.plan.dirs[s.plan.dirOf[entry.sameAs]].path)
	if err != nil {
		return fmt.Errorf("linking %q: %w", dir.join(entry.name), err)
	}
	defer from.close()
	return dir.link(from, s.plan.entries[entry.sameAs].name, entry.name)
}
