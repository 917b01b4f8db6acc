package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
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
	resumed       bool // root was left by an attempt that was cut: anything may be in it
	keep          bool // finish leaves what was filled for the next attempt
	warnings      warningList
	gone          bool // renamed or removed: nothing left to discard
}

// newTarget makes the hidden directory for path. Nothing may exist at path, not even an empty directory or a dangling
// link (ErrTargetExists); its parent must exist. What an earlier attempt left half filled for the same path is removed,
// or, with resume, becomes this attempt's directory.
func newTarget(path string, resume bool) (*target, error) {
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
	t.takeAbandoned(resume)
	if !t.resumed {
		if err := t.makeTemporary(); err != nil {
			t.close()
			return nil, err
		}
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
		name := temporaryPrefix(t.base) + hex.EncodeToString(random)
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
		if err := closeToOthers(root); err != nil {
			unix.Close(root)
			return errors.Join(localError("preparing the new directory", name, err), removeTree(t.parent, name))
		}
		t.temp, t.root = name, root
		return nil
	}
	return fmt.Errorf("creating a directory for the restore beside %s: no free name found", t.path)
}

// closeToOthers lets only this user into a directory. A default ACL that it has from its parent, or from an earlier
// attempt, would be inherited by everything created below.
func closeToOthers(dir int) error {
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		_ = unix.Fremovexattr(dir, name) // most often there is none
	}
	return ignoringEINTR(func() error { return unix.Fchmod(dir, 0o700) })
}

// temporaryPrefix is what the hidden directory's name begins with; sixteen hexadecimal digits follow.
func temporaryPrefix(base string) string {
	if longest := 255 - len(".") - len(".restoring-") - 16; len(base) > longest {
		base = base[:longest]
	}
	return "." + base + ".restoring-"
}

// commit makes what was filled durable, calls prepare, gives the directory itself its metadata (unless nil) and renames
// it into place. That metadata comes so late because the directory is closed to all other users until then: one that
// was left behind can be trusted to hold only what this user wrote. On an error nothing is left at the final place.
func (t *target) commit(ctx context.Context, prepare func(dir string) error, root *metadata) error {
	if err := t.sync(); err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(t.temporary()); err != nil {
			return fmt.Errorf("preparing the restored directory: %w", err)
		}
		if err := t.sync(); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("before putting the restored directory in place: %w", err)
	}
	if root != nil {
		if err := t.setDirMetadata("", root); err != nil {
			return err
		}
		if err := ignoringEINTR(func() error { return unix.Fsync(t.root) }); err != nil {
			return localError("syncing", t.path, err)
		}
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

// finish closes the target and, unless commit succeeded, removes what was filled, or leaves it for the next attempt when
// keep is set and there is anything. A removal that fails is joined to failure: it is part of what the caller must know.
func (t *target) finish(failure error) error {
	if !t.gone {
		if err := t.discard(); err != nil {
			failure = errors.Join(failure, fmt.Errorf("removing the unfinished %s: %w", t.temporary(), err))
		} else if !t.gone {
			failure = fmt.Errorf("%w; what was restored is kept in %s: the next restore to the same target goes on from there",
				failure, t.temporary())
		}
		t.gone = true
	}
	t.close()
	return failure
}

func (t *target) discard() error {
	if !t.keep {
		t.gone = true
		return removeTree(t.parent, t.temp)
	}
	err := ignoringEINTR(func() error { return unix.Unlinkat(t.parent, t.temp, unix.AT_REMOVEDIR) })
	t.gone = err == nil // nothing was filled
	return nil
}

// temporary is the path of the directory while it is being filled.
func (t *target) temporary() string { return filepath.Join(filepath.Dir(t.path), t.temp) }

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
