package snapshot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stateNameDigits is how many hexadecimal digits the names of state files have that RemoveStateFiles goes by.
const stateNameDigits = 32

// StateFileName is a name for a state file that RemoveStateFiles knows: of what tells one directory's backups from another's.
func StateFileName(of [16]byte) string { return hex.EncodeToString(of[:]) }

// RemoveStateFiles removes the state files in dir that were last used before a moment, and says how many. Only regular files
// are touched that have a name of StateFileName and the content of a state file, and what a write of such that was killed has left.
// A file that is in use meanwhile costs its user the time to read files again, and nothing else. Any number of processes may do
// so at once, and each may be killed: a file is there or it is not.
func RemoveStateFiles(dir string, before time.Time) (removed int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking for old state files: %w", err)
	}
	var failures []error
	for _, entry := range entries {
		name, temporary := strings.CutSuffix(entry.Name(), stateTemporary)
		if digits, err := hex.DecodeString(name); err != nil || len(name) != stateNameDigits || hex.EncodeToString(digits) != name || !entry.Type().IsRegular() {
			continue
		}
		gone, err := removeStateFile(filepath.Join(dir, entry.Name()), temporary, before)
		switch {
		case errors.Is(err, fs.ErrNotExist): // another process was faster
		case err != nil:
			failures = append(failures, fmt.Errorf("removing an old state file: %w", err))
		case gone:
			removed++
		}
	}
	return removed, errors.Join(failures...)
}

func removeStateFile(path string, temporary bool, before time.Time) (removed bool, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || !info.ModTime().Before(before) {
		return false, err
	}
	if temporary {
		// Who writes one holds its lock. Its first bytes are written last, so that they say nothing.
		if flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return false, nil
		}
	} else {
		begin := make([]byte, len(stateKind))
		if _, err := io.ReadFull(file, begin); err != nil || string(begin) != stateKind {
			return false, nil //nolint:nilerr // it is somebody else's
		}
	}
	return true, os.Remove(path)
}

// used notes that a state file is in use: one that says what there is already is not written again.
func (s *stateFile) used() {
	now := time.Now()
	_ = os.Chtimes(s.file.Name(), now, now) // it only ages sooner otherwise
}
