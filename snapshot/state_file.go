package snapshot

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
)

// A state file is what the last backup or restore of a directory knew of it, kept on the node: docs/snapshot-format.md,
// "The state file". It is a cache. Everything in it is sealed with a key of its own that is derived from the repository's
// master key, so that damage, a foreign file and a forged one look the same: like none. Whatever is wrong with it costs
// the time to read files again, and nothing else.
//
//	magic ‖ sealed sections, each of records ‖ sealed footer ‖ length of the footer (4, LE)

const (
	// stateMagic begins with the version. It must change whenever what a record holds does not lead to the same tree any
	// more: when newNode or encodeTree make something else of the same entries.
	stateMagic = stateKind + "1\n"
	stateKind  = "holdfast state "
	// stateSection is how many bytes of records are sealed together.
	stateSection = 256 << 10
	// maxStateSection bounds the section of one very large directory, maxStateRecord its record, maxStateFooter the footer
	// (16 bytes for each directory).
	maxStateRecord  = 64 << 20
	maxStateSection = maxStateRecord + 2*stateSection
	maxStateFooter  = 256 << 20
	// keptSections bounds the bytes of sections in memory, unless one is larger.
	keptSections = 4 << 20
)

// errNoState is a state file that is not there, not whole, of another repository or of another version.
var errNoState = errors.New("it is no state file of this repository")

// stateFile is an open state file. It is safe for concurrent use.
type stateFile struct {
	file   *os.File
	box    *envelope
	footer stateFooter

	mu      sync.Mutex
	kept    []keptSection // the most recently used last
	damaged bool          // a section could not be read
}

type keptSection struct {
	number uint32
	data   []byte
}

// stateFooter says where everything is.
type stateFooter struct {
	// id is random, and repeated in each section.
	id         [16]byte
	repository string
	// tree is the top tree of the snapshot that was made or restored.
	tree blobID
	// users and groups are the names that nodes were given for numbers.
	users, groups map[uint32]string
	sections      []statePlace
	dirs          []stateDir // ascending
}

type statePlace struct {
	offset int64
	length uint32 // sealed
}

// stateDir is where a directory's record lies.
type stateDir struct {
	hash            uint64 // of its path
	section, offset uint32
}

func (d stateDir) compare(other stateDir) int {
	return cmp.Or(cmp.Compare(d.hash, other.hash), cmp.Compare(d.section, other.section), cmp.Compare(d.offset, other.offset))
}

func pathHash(path string) uint64 {
	sum := sha256.Sum256([]byte(path))
	return binary.LittleEndian.Uint64(sum[:])
}

// openState opens a state file of this repository. errNoState when there is none that can be used.
func (r *Repository) openState(path string) (*stateFile, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errNoState, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the state file: %w", err)
	}
	s := &stateFile{file: file, box: r.stateBox}
	if err := s.readFooter(); err != nil {
		file.Close()
		return nil, fmt.Errorf("reading the state file: %w", err)
	}
	if s.footer.repository != r.ID() {
		file.Close()
		return nil, fmt.Errorf("reading the state file: another repository's: %w", errNoState)
	}
	s.used()
	return s, nil
}

func (s *stateFile) close() { s.file.Close() }

func (s *stateFile) readFooter() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if !info.Mode().IsRegular() || size < int64(len(stateMagic))+4 {
		return errNoState
	}
	magic, tail := make([]byte, len(stateMagic)), make([]byte, 4)
	if _, err := s.file.ReadAt(magic, 0); err != nil {
		return err
	}
	if string(magic) != stateMagic {
		return fmt.Errorf("another version's: %w", errNoState)
	}
	if _, err := s.file.ReadAt(tail, size-4); err != nil {
		return err
	}
	length := int64(binary.LittleEndian.Uint32(tail))
	end := size - 4 - length
	if length > maxStateFooter || end < int64(len(stateMagic)) {
		return errNoState
	}
	plain, err := s.unseal(end, length)
	if err != nil {
		return err
	}
	var ok bool
	if s.footer, ok = parseFooter(plain, end); !ok {
		return errNoState
	}
	return nil
}

func (s *stateFile) unseal(offset, length int64) ([]byte, error) {
	sealed := make([]byte, length)
	if _, err := s.file.ReadAt(sealed, offset); err != nil {
		return nil, err
	}
	stream, ciphertext, err := s.box.authenticate(sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoState, err)
	}
	stream.XORKeyStream(ciphertext, ciphertext)
	return ciphertext, nil
}

func (f *stateFooter) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, f.id[:]...)
	dst = appendRecordText(dst, f.repository)
	dst = append(dst, f.tree[:]...)
	for _, names := range []map[uint32]string{f.users, f.groups} {
		dst = binary.AppendUvarint(dst, uint64(len(names)))
		for id, name := range names {
			dst = appendRecordText(le.AppendUint32(dst, id), name)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(f.sections)))
	for _, s := range f.sections {
		dst = le.AppendUint32(le.AppendUint64(dst, uint64(s.offset)), s.length)
	}
	dst = binary.AppendUvarint(dst, uint64(len(f.dirs)))
	for _, d := range f.dirs {
		dst = le.AppendUint32(le.AppendUint32(le.AppendUint64(dst, d.hash), d.section), d.offset)
	}
	return dst
}

// parseFooter reads a footer whose sections end at end.
func parseFooter(plain []byte, end int64) (f stateFooter, ok bool) {
	le := binary.LittleEndian
	r := recordReader{rest: plain}
	copy(f.id[:], r.take(uint64(len(f.id))))
	f.repository = string(r.text())
	copy(f.tree[:], r.take(uint64(len(f.tree))))
	for _, names := range []*map[uint32]string{&f.users, &f.groups} {
		*names = map[uint32]string{}
		for n := r.number(); n > 0 && !r.bad; n-- {
			if id := r.take(4); id != nil {
				(*names)[le.Uint32(id)] = string(r.text())
			}
		}
	}
	const placeSize, dirSize = 12, 16
	n := r.number()
	if n > uint64(len(r.rest))/placeSize {
		return f, false
	}
	f.sections = make([]statePlace, n)
	for i := range f.sections {
		place := r.take(placeSize)
		f.sections[i] = statePlace{offset: int64(le.Uint64(place)), length: le.Uint32(place[8:])}
		if p := f.sections[i]; p.offset < 0 || p.offset > end || int64(p.length) > end-p.offset || p.length > maxStateSection {
			return f, false
		}
	}
	n = r.number()
	if n > uint64(len(r.rest))/dirSize {
		return f, false
	}
	f.dirs = make([]stateDir, n)
	for i := range f.dirs {
		d := r.take(dirSize)
		f.dirs[i] = stateDir{hash: le.Uint64(d), section: le.Uint32(d[8:]), offset: le.Uint32(d[12:])}
		if int(f.dirs[i].section) >= len(f.sections) || (i > 0 && f.dirs[i-1].compare(f.dirs[i]) >= 0) {
			return f, false
		}
	}
	return f, !r.bad && len(r.rest) == 0
}

// find returns what is known of a directory; nil when that is nothing.
func (s *stateFile) find(path string) *knownDir {
	if s == nil {
		return nil
	}
	hash := pathHash(path)
	at, _ := slices.BinarySearchFunc(s.footer.dirs, hash, func(d stateDir, hash uint64) int { return cmp.Compare(d.hash, hash) })
	for ; at < len(s.footer.dirs) && s.footer.dirs[at].hash == hash; at++ {
		data, err := s.record(s.footer.dirs[at])
		if err != nil {
			continue
		}
		if d, ok := parseRecord(data, path); ok {
			d.index = at
			return &d
		}
	}
	return nil
}

// incomplete reports whether a part of the file could not be read.
func (s *stateFile) incomplete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damaged
}

// record returns the bytes from a directory's record to the end of its section.
func (s *stateFile) record(d stateDir) ([]byte, error) {
	data, err := s.section(d.section)
	if err != nil {
		return nil, err
	}
	if int64(d.offset) > int64(len(data)) {
		return nil, errNoState
	}
	return data[d.offset:], nil
}

func (s *stateFile) section(number uint32) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.kept) - 1; i >= 0; i-- {
		if found := s.kept[i]; found.number == number {
			s.kept = append(append(s.kept[:i:i], s.kept[i+1:]...), found)
			return found.data, nil
		}
	}
	place := s.footer.sections[number]
	plain, err := s.unseal(place.offset, int64(place.length))
	head := sectionHead(s.footer.id, number)
	if err == nil && !bytes.HasPrefix(plain, head) {
		err = errNoState
	}
	if err != nil {
		s.damaged = true
		return nil, err
	}
	s.kept = append(s.kept, keptSection{number, plain[len(head):]})
	total := 0
	for i := len(s.kept) - 1; i >= 0; i-- {
		if total += len(s.kept[i].data); total > keptSections && i < len(s.kept)-1 {
			s.kept = append([]keptSection(nil), s.kept[i+1:]...)
			break
		}
	}
	return plain[len(head):], nil
}

// sectionHead begins each section, so that none can stand for another.
func sectionHead(id [16]byte, number uint32) []byte {
	return binary.LittleEndian.AppendUint32(id[:], number)
}
