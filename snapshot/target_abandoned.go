package snapshot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Unfinished lists the directories, beside a Restore's target, in which attempts that were cut left what they had
// restored. The next Restore to the same target goes on in one of them and removes the others; who gives the restore up
// removes them all. One of a restore that is still running is listed too.
func Unfinished(target string) ([]string, error) {
	absolute, err := filepath.Abs(target)
	if err != nil {
		return nil, fmt.Errorf("finding the target %q: %w", target, err)
	}
	parent := filepath.Dir(absolute)
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, fmt.Errorf("looking for unfinished restores beside %q: %w", target, err)
	}
	prefix := temporaryPrefix(filepath.Base(absolute))
	var found []string
	for _, entry := range entries {
		if isTemporary(prefix, entry.Name()) {
			found = append(found, filepath.Join(parent, entry.Name()))
		}
	}
	return found, nil
}

func isTemporary(prefix, name string) bool {
	random, ours := strings.CutPrefix(name, prefix)
	decoded, err := hex.DecodeString(random)
	return ours && err == nil && len(decoded) == 8
}

// takeAbandoned goes through what earlier attempts left half filled for the same target. With resume the first one that
// can be trusted becomes this attempt's; all others are removed. A directory whose lock is held is somebody's work in
// progress and stays. Failing to remove is not this attempt's failure.
func (t *target) takeAbandoned(resume bool) {
	names, err := readNames(t.parent)
	if err != nil {
		return
	}
	prefix := temporaryPrefix(t.base)
	for _, name := range names {
		if !isTemporary(prefix, name) {
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
			if resume && !t.resumed && t.trusted(fd, name) {
				t.temp, t.root, t.resumed = name, fd, true
				continue // the lock lives as long as the descriptor
			}
			_ = removeTree(t.parent, name)
		}
		unix.Close(fd)
	}
}

// trusted reports whether a locked directory is the one that name still names, and nobody but this user could ever have
// put anything into it: in a parent that others can write to, somebody may have prepared one.
func (t *target) trusted(fd int, name string) bool {
	var opened, named unix.Stat_t
	if errors.Join(fstat(fd, &opened), fstatat(t.parent, name, &named)) != nil {
		return false
	}
	return opened.Ino == named.Ino && opened.Dev == named.Dev &&
		int(opened.Uid) == os.Geteuid() && opened.Mode&0o077 == 0 && closeToOthers(fd) == nil
}
