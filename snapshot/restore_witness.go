package snapshot

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A restore that writes a state file must know that what a file's record is noted with is what was written and verified.
// Nothing in the file's times can prove that: the restore sets them itself, after the last byte was verified, and within
// one tick of the clock that file systems take ctimes from another write leaves the same ones (see clockGranularity). So
// from its creation, before the first byte, to a moment at which its ctime is settled, each file has a write lease: the
// kernel gives one only for a file that nobody else has open or mapped, and lets nobody open or truncate it while it is
// held. A lease that is still held at the end is the proof that all of the bytes are ours; whatever is written from then
// on changes the ctime. Attributes can be changed without opening a file, and so are never noted here.
//
// Where there are no leases (network file systems, kernels told so) nothing is noted, nor of files that an earlier attempt
// left and this one goes on with: the next backup reads them.

// witness holds leases until files are settled, and notes what they are then.
type witness struct {
	seen []witnessed // by entry of the plan
	// linked are files that get more names when all are written, which changes their ctimes again.
	linked map[int32]struct{}
	none   atomic.Bool // there are no leases here

	mu   sync.Mutex
	held map[int32]int // descriptors of files that are written in several parts, or linked
	late []leasedFile  // of these, the complete ones
}

// witnessed identifies the moment at which a file was known to be whole; zero when there was none.
type witnessed struct {
	ctime unix.Timespec
	inode uint64
}

// leasedFile is a complete file whose lease is held until its record is settled.
type leasedFile struct {
	fd     int
	number int32
	stat   statRecord
}

const (
	// mostLeases bounds the descriptors of complete files over all workers: as many as are written within
	// clockGranularity, or else writing would wait for them.
	mostLeases = 1024
	// mostHeld bounds those of files that are written in several parts, or linked. Of others nothing is noted.
	mostHeld = 256
)

func newWitness(p *plan) *witness {
	w := &witness{seen: make([]witnessed, len(p.entries)), linked: map[int32]struct{}{}, held: map[int32]int{}}
	for i := range p.entries {
		if first := p.entries[i].sameAs; first >= 0 {
			w.linked[first] = struct{}{}
		}
	}
	return w
}

// lease takes a write lease on a file that was created just now.
func (w *witness) lease(fd int) bool {
	if w == nil || w.none.Load() {
		return false
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	if err != nil {
		w.none.Store(true)
	}
	return err == nil
}

// settled notes a file that is settled, if its lease is still held, and closes it.
func (w *witness) settled(f *leasedFile) error {
	var raw unix.Stat_t
	if kind, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETLEASE, 0); err == nil && kind == unix.F_WRLCK && fstat(f.fd, &raw) == nil {
		if now := recordOf(&raw); f.stat.sameContent(&now) {
			w.seen[f.number] = witnessed{ctime: now.ctime, inode: now.inode}
		}
	}
	return unix.Close(f.fd)
}

// hold keeps a leased file open beyond its first write. When there are too many already it is false, and the lease given
// back.
func (w *witness) hold(number int32, fd int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) >= mostHeld {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return false
	}
	w.held[number] = fd
	return true
}

// descriptor is that of a file that is held.
func (w *witness) descriptor(number int32) (int, bool) {
	if w == nil {
		return -1, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fd, held := w.held[number]
	return fd, held
}

// complete says that a file has its final content, metadata and names, if it is one that is held.
func (w *witness) complete(number int32) {
	fd, held := w.descriptor(number)
	var raw unix.Stat_t
	if !held || fstat(fd, &raw) != nil {
		return // it is closed at the end
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, number)
	w.late = append(w.late, leasedFile{fd: fd, number: number, stat: recordOf(&raw)})
}

// settleLate waits until the files that were held are settled.
func (w *witness) settleLate(ctx context.Context) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	late := w.late
	w.late = nil
	w.mu.Unlock()
	return w.settleAll(ctx, late)
}

func (w *witness) settleAll(ctx context.Context, files []leasedFile) error {
	queue := leaseQueue{witness: w, files: files}
	return queue.drain(ctx)
}

// close closes what is still open after a restore that failed.
func (w *witness) close() {
	if w == nil {
		return
	}
	for _, fd := range w.held {
		unix.Close(fd)
	}
	for _, f := range w.late {
		unix.Close(f.fd)
	}
	w.held, w.late = nil, nil
}

// leaseQueue is one worker's complete files, in the order in which they are settled.
type leaseQueue struct {
	witness *witness
	limit   int
	files   []leasedFile
}

// add takes over the descriptor of a complete file whose lease is held.
func (q *leaseQueue) add(ctx context.Context, fd int, number int32) error {
	f := leasedFile{fd: fd, number: number}
	var raw unix.Stat_t
	err := fstat(fd, &raw)
	f.stat = recordOf(&raw)
	q.files = append(q.files, f)
	if err != nil {
		return err
	}
	for len(q.files) > 0 && (q.files[0].stat.settled() || len(q.files) > q.limit) {
		if err := q.first(ctx); err != nil {
			return err
		}
	}
	return nil
}

// first waits until the first file is settled.
func (q *leaseQueue) first(ctx context.Context) error {
	f := q.files[0]
	for !f.stat.settled() {
		if err := pause(ctx, clockGranularity/4); err != nil {
			return err
		}
	}
	q.files = q.files[1:]
	return q.witness.settled(&f)
}

// drain waits for all files. After an error close closes the rest.
func (q *leaseQueue) drain(ctx context.Context) error {
	defer q.close()
	for len(q.files) > 0 {
		if err := q.first(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (q *leaseQueue) close() {
	for _, f := range q.files {
		unix.Close(f.fd)
	}
	q.files = nil
}
