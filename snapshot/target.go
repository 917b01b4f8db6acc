package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// target is a directory that is being filled beside its final place: a new hidden directory in the same parent, which
// commit renames into place as the very last step. Until then nobody sees the final name, so a crash at any moment
// leaves either nothing or everything there (invariant 5).
//
// Everything is created through descriptors of directories below root, one name at a time, and no symbolic link is
// ever followed: what a hostile repository or archive planted earlier cannot lead a later entry out of the root.
type target struct {
	path   string // the final place, absolute
	parent int    // descriptor of the final place's parent
	base   string // the final name in parent
	temp   string // the name in parent while it is being filled
	root   int    // descriptor of the directory being filled

	componentWise bool // no openat2 here: open one component at a time
	warnings      warningList
	gone          bool // renamed or removed: nothing left to discard
}

// newTarget makes the hidden directory for path. Nothing may exist at path, not even an empty directory or a dangling
// link (ErrTargetExists); its parent must exist. What an earlier, killed process left half filled for the same path is
// removed.
func newTarget(path string) (*target, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the target %q: %w", path, err)
	}
	parentPath, base := filepath.Dir(absolute), filepath.Base(absolute)
	if base == "/" || base == "." {
		return nil, fmt.Errorf("the target %q: %w", path, ErrTargetExists)
	}
	parent, err := openRetry(unix.AT_FDCWD, parentPath, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, localError("opening the target's parent directory", parentPath, err)
	}
	t := &target{path: absolute, parent: parent, base: base, root: -1}
	if err := t.refuseExisting(); err != nil {
		t.close()
		return nil, err
	}
	t.removeAbandoned()
	if err := t.makeTemporary(); err != nil {
		t.close()
		return nil, err
	}
	t.componentWise = !hasOpenat2(t.root)
	return t, nil
}

func (t *target) refuseExisting() error {
	var stat unix.Stat_t
	switch err := fstatat(t.parent, t.base, &stat); {
	case err == nil:
		return fmt.Errorf("%s: %w", t.path, ErrTargetExists)
	case errors.Is(err, unix.ENOENT):
		return nil
	default:
		return localError("looking at the target", t.path, err)
	}
}

// makeTemporary creates and locks the hidden directory. The lock tells a later process whether the directory is in use
// or was left behind by a process that died; it is tried again under another name in the unlikely case that somebody
// took the new directory for an abandoned one before it was locked.
func (t *target) makeTemporary() error {
	for range 10 {
		random := make([]byte, 8)
		rand.Read(random)
		name := t.temporaryPrefix() + hex.EncodeToString(random)
		if err := mkdirat(t.parent, name, 0o700); err != nil {
			if errors.Is(err, unix.EEXIST) {
				continue
			}
			return localError("creating a directory for the restore in", filepath.Dir(t.path), err)
		}
		root, err := openRetry(t.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return errors.Join(localError("opening the new directory", name, err), removeTree(t.parent, name))
		}
		lockErr := flock(root, unix.LOCK_EX|unix.LOCK_NB)
		var opened, named unix.Stat_t
		statErr := errors.Join(fstat(root, &opened), fstatat(t.parent, name, &named))
		if errors.Is(lockErr, unix.EWOULDBLOCK) || statErr != nil || opened.Ino != named.Ino || opened.Dev != named.Dev {
			unix.Close(root)
			continue
		}
		// A default ACL of the parent would be inherited by everything created below.
		for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
			_ = unix.Fremovexattr(root, name) // most often there is none
		}
		if err := ignoringEINTR(func() error { return unix.Fchmod(root, 0o700) }); err != nil {
			unix.Close(root)
			return errors.Join(localError("preparing the new directory", name, err), removeTree(t.parent, name))
		}
		t.temp, t.root = name, root
		return nil
	}
	return fmt.Errorf("creating a directory for the restore beside %s: no free name found", t.path)
}

// temporaryPrefix is what the hidden directory's name begins with; sixteen hexadecimal digits follow.
func (t *target) temporaryPrefix() string {
	base := t.base
	if longest := 255 - len(".") - len(".restoring-") - 16; len(base) > longest {
		base = base[:longest]
	}
	return "." + base + ".restoring-"
}

// removeAbandoned removes what killed processes left half filled for the same target. A directory whose lock is held is
// somebody's work in progress and stays. Failing to remove is not this restore's failure.
func (t *target) removeAbandoned() {
	names, err := readNames(t.parent, ".")
	if err != nil {
		return
	}
	prefix := t.temporaryPrefix()
	for _, name := range names {
		random, ours := strings.CutPrefix(name, prefix)
		if decoded, err := hex.DecodeString(random); !ours || err != nil || len(decoded) != 8 {
			continue
		}
		fd, err := openRetry(t.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.EACCES) { // killed after the last directory's mode was set
			if makeAccessible(t.parent, name) != nil {
				continue
			}
			fd, err = openRetry(t.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			continue
		}
		if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = removeTree(t.parent, name)
		}
		unix.Close(fd)
	}
}

// commit makes what was filled durable, calls prepare and renames the directory into place. On an error nothing is
// left at the final place.
func (t *target) commit(ctx context.Context, prepare func(dir string) error) error {
	if err := t.sync(); err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(filepath.Join(filepath.Dir(t.path), t.temp)); err != nil {
			return fmt.Errorf("preparing the restored directory: %w", err)
		}
		if err := t.sync(); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("before putting the restored directory in place: %w", err)
	}
	if err := t.renameIntoPlace(); err != nil {
		return err
	}
	if err := ignoringEINTR(func() error { return unix.Fsync(t.parent) }); err != nil {
		// Not known to be durable is not done: back to the hidden name, where discard removes it.
		back := renameat2(t.parent, t.base, t.parent, t.temp, unix.RENAME_NOREPLACE)
		return errors.Join(localError("syncing the parent of", t.path, err), back)
	}
	t.gone = true
	return nil
}

// sync writes everything below the root to the disk; the kernel reports here what failed to be written since the root
// was opened.
func (t *target) sync() error {
	if err := ignoringEINTR(func() error { return unix.Syncfs(t.root) }); err != nil {
		return localError("writing to the disk", t.path, err)
	}
	return nil
}

func (t *target) renameIntoPlace() error {
	err := renameat2(t.parent, t.temp, t.parent, t.base, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without RENAME_NOREPLACE: look first. A plain rename never replaces anything but an empty
		// directory, so what could be lost between the look and the rename is that.
		if err := t.refuseExisting(); err != nil {
			return err
		}
		err = renameat2(t.parent, t.temp, t.parent, t.base, 0)
	}
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("%s appeared in the meantime: %w", t.path, ErrTargetExists)
	case err != nil:
		return localError("renaming the restored directory to", t.path, err)
	}
	return nil
}

// finish closes the target and, unless commit succeeded, removes what was filled. A removal that fails is joined to
// failure: it is part of what the caller must know.
func (t *target) finish(failure error) error {
	if !t.gone {
		if err := removeTree(t.parent, t.temp); err != nil {
			failure = errors.Join(failure, fmt.Errorf("removing the unfinished %s: %w",
				filepath.Join(filepath.Dir(t.path), t.temp), err))
		}
		t.gone = true
	}
	t.close()
	return failure
}

func (t *target) close() {
	if t.root >= 0 {
		unix.Close(t.root)
	}
	unix.Close(t.parent)
}

// localError says in words what this machine's file system refused.
func localError(doing, path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s %q: %w: %w", doing, path, ErrLocalSpace, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s %q: this user may not write there: %w", doing, path, err)
	default:
		return fmt.Errorf("%s %q: %w", doing, path, err)
	}
}

// maxWarnings bounds how many warnings one run keeps word for word: a tree of a million files restored by an ordinary
// user has a million owners that cannot be set.
const maxWarnings = 1000

// warningList gathers warnings from several goroutines.
type warningList struct {
	mutex sync.Mutex
	list  []string
	more  int
}

func (w *warningList) add(format string, arguments ...any) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if len(w.list) >= maxWarnings {
		w.more++
		return
	}
	w.list = append(w.list, fmt.Sprintf(format, arguments...))
}

// all returns the warnings; the last one counts those that were not kept.
func (w *warningList) all() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.more == 0 {
		return w.list
	}
	return append(w.list[:len(w.list):len(w.list)], fmt.Sprintf("and %d more", w.more))
}

// ignoringEINTR calls again what a signal interrupted; Go's own preemption uses signals.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
