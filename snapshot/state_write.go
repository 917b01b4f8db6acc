package snapshot

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// stateWriter writes a state file anew beside the one that is there, and puts it in its place at the end. What did not
// change is copied from that one; when nothing did, it stays. The file is not synced: after a crash of the machine a
// file that is not whole is none.
type stateWriter struct {
	r    *Repository
	path string
	old  *stateFile // nil when there is none

	mu      sync.Mutex
	file    *os.File // nil until the first section
	footer  stateFooter
	offset  int64
	section []byte // the one that is being filled, after room for the envelope's vector
	kept    []int  // directories of old that stay as they are
	failure error
}

// stateTemporary is added to a state file's name while it is written.
const stateTemporary = ".new"

func (r *Repository) newStateWriter(path string, old *stateFile) *stateWriter {
	w := &stateWriter{r: r, path: path, old: old, offset: int64(len(stateMagic))}
	_, _ = rand.Read(w.footer.id[:]) // never fails
	return w
}

// keep says that the directory with this index in the old file is what it was.
func (w *stateWriter) keep(index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, index)
}

// add takes in the record of a directory. It does not keep it.
func (w *stateWriter) add(path string, record []byte) {
	if len(record) > maxStateRecord {
		record = appendTooLarge(nil, path)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.append(pathHash(path), record)
}

func (w *stateWriter) append(hash uint64, record []byte) {
	if w.failure != nil {
		return
	}
	number := uint32(len(w.footer.sections))
	if w.section == nil {
		w.section = make([]byte, 0, stateSection+stateSection/4)
	}
	head := vectorSize + len(sectionHead(w.footer.id, number))
	if len(w.section) == 0 {
		w.section = append(w.section[:vectorSize], sectionHead(w.footer.id, number)...)
	}
	w.footer.dirs = append(w.footer.dirs, stateDir{hash: hash, section: number, offset: uint32(len(w.section) - head)})
	w.section = append(w.section, record...)
	if len(w.section) >= stateSection {
		w.failure = w.flush()
	}
}

// flush seals the section and writes it.
func (w *stateWriter) flush() error {
	if len(w.section) == 0 {
		return nil
	}
	if w.file == nil {
		if err := w.create(); err != nil {
			return err
		}
	}
	sealed := w.r.stateBox.sealInPlace(w.section)
	if _, err := w.file.WriteAt(sealed, w.offset); err != nil {
		return fmt.Errorf("writing the state file: %w", err)
	}
	w.footer.sections = append(w.footer.sections, statePlace{offset: w.offset, length: uint32(len(sealed))})
	w.offset += int64(len(sealed))
	if w.section = sealed[:0]; cap(sealed) > 4*stateSection {
		w.section = nil
	}
	return nil
}

// create opens the new file. Its name is always the same, so that what a killed process left is used again; the lock
// keeps two processes from writing one.
func (w *stateWriter) create() error {
	name := w.path + stateTemporary
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("creating the state file: %w", err)
	}
	if err := flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return fmt.Errorf("another process is writing the state file: %w", err)
	}
	// Between opening and locking it another process may have put it in place: then it is not ours to write to.
	opened, err := file.Stat()
	named, namedErr := os.Lstat(name)
	if err == nil && (namedErr != nil || !os.SameFile(opened, named)) {
		err = errors.New("another process has just written it")
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("creating the state file: %w", err)
	}
	w.file = file
	return nil
}

// finish puts the new file in place. tree is the top tree of what it describes, names are what its nodes call users and
// groups.
func (w *stateWriter) finish(tree blobID, names *nameCache) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.close()
	if w.failure != nil {
		return w.failure
	}
	if w.old != nil && len(w.footer.dirs) == 0 && len(w.kept) == len(w.old.footer.dirs) && w.old.footer.tree == tree {
		return nil // it says just this
	}
	if err := w.copyKept(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if w.file == nil {
		if err := w.create(); err != nil {
			return err
		}
	}
	slices.SortFunc(w.footer.dirs, stateDir.compare)
	w.footer.repository, w.footer.tree = w.r.ID(), tree
	w.footer.users, w.footer.groups = names.all()
	if len(w.kept) > 0 { // they are still what they were, and in what was copied
		for id, name := range w.old.footer.users {
			w.footer.users[id] = name
		}
		for id, name := range w.old.footer.groups {
			w.footer.groups[id] = name
		}
	}
	sealed := w.r.stateBox.seal(nil, w.footer.append(nil))
	if len(sealed) > maxStateFooter {
		return fmt.Errorf("the state file would have a footer of %d bytes: %w", len(sealed), ErrLimitExceeded)
	}
	sealed = binary.LittleEndian.AppendUint32(sealed, uint32(len(sealed)))
	_, err := w.file.WriteAt(sealed, w.offset)
	if err == nil {
		_, err = w.file.WriteAt([]byte(stateMagic), 0)
	}
	if err == nil {
		err = os.Rename(w.path+stateTemporary, w.path)
	}
	if err != nil {
		return fmt.Errorf("writing the state file: %w", err)
	}
	w.file.Close()
	w.file = nil
	return nil
}

// copyKept copies the records that stay, in the order in which they lie.
func (w *stateWriter) copyKept() error {
	if w.old == nil {
		return nil
	}
	dirs := make([]stateDir, len(w.kept))
	for i, index := range w.kept {
		dirs[i] = w.old.footer.dirs[index]
	}
	slices.SortFunc(dirs, func(a, b stateDir) int {
		a.hash, b.hash = 0, 0
		return a.compare(b)
	})
	for _, d := range dirs {
		data, err := w.old.record(d)
		if err != nil {
			return fmt.Errorf("copying the state file: %w", err)
		}
		length, ok := recordLength(data)
		if !ok {
			return fmt.Errorf("copying the state file: %w", errNoState)
		}
		w.append(d.hash, data[:length])
		if w.failure != nil {
			return w.failure
		}
	}
	return nil
}

// abandon removes what was written.
func (w *stateWriter) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close()
}

func (w *stateWriter) close() {
	if w.file != nil {
		_ = os.Remove(w.path + stateTemporary) // it is used again otherwise
		w.file.Close()
		w.file = nil
	}
}
