package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// While a backup runs, a non-exclusive lock file as stock restic writes them makes a prune, ours or stock restic's,
// refuse: it would delete packs that no snapshot names yet. Locks protect nothing among writers, so a leftover one (of a
// killed process, say) never blocks a backup. Only a fresh exclusive lock does: something is deleting right now.
//
// A lock is taken for left over only on evidence that a clock that is wrong, or a process number that means another
// process elsewhere, cannot forge: see leftOver. Who took one for left over removes it, and who holds one looks whether
// it is still there before it does what the lock protects: a process that stood still for an hour finds out.

var (
	// ErrLocked means that another program works on the repository in a way that excludes this one: one that deletes (a
	// prune, most likely), or any at all when it is this one that would delete. It is transient.
	ErrLocked = errors.New("the repository is locked by another program")
	// errLockLost means that others may have taken this process' lock for left over.
	errLockLost = errors.New("this process' lock on the repository was lost: what was stored must be looked at again")
)

// lockFile is the JSON of a file of locks/.
type lockFile struct {
	Time      time.Time `json:"time"`
	Exclusive bool      `json:"exclusive"`
	Hostname  string    `json:"hostname"`
	Username  string    `json:"username"`
	PID       int       `json:"pid"`
	UID       uint32    `json:"uid,omitempty"`
	GID       uint32    `json:"gid,omitempty"`
	// Machine says where PID means something: see processSpace. restic ignores it.
	Machine string `json:"holdfast_machine,omitempty"`
}

const (
	// lockRefresh and staleLock are restic's.
	lockRefresh = 5 * time.Minute
	staleLock   = 30 * time.Minute
	// lockSkew is how far in the future a lock's time may be before it counts as written by a broken clock.
	lockSkew = 24 * time.Hour
	// lockRemoval bounds the removal of a lock after its backup, also when that was cancelled.
	lockRemoval = 15 * time.Second
)

// heldLock is this process' lock file, which a goroutine renews.
type heldLock struct {
	r *Repository
	// ctx is that of the operation which holds the lock.
	ctx    context.Context
	file   lockFile
	yield  time.Duration // see lockYield
	cancel context.CancelFunc
	done   chan struct{}

	renewing sync.Mutex // held while the file is replaced or looked for

	mu sync.Mutex
	id blobID
	// renewed and renewedWall are one moment by the clock that is never set and by the one that never stops.
	renewed, renewedWall time.Time
	lost                 error
}

func (r *Repository) newLock(ctx context.Context, exclusive bool) *heldLock {
	hostname, _ := os.Hostname()
	return &heldLock{r: r, ctx: ctx, yield: lockYield, file: lockFile{
		Exclusive: exclusive, Hostname: hostname, Username: username(), PID: os.Getpid(), UID: uint32(os.Getuid()),
		GID: uint32(os.Getgid()), Machine: processSpace(),
	}}
}

// lock writes a non-exclusive lock file, and then looks for exclusive ones: of two programs that do so at the same time,
// at least one sees the other.
func (r *Repository) lock(ctx context.Context) (*heldLock, error) {
	if r.mixed != nil {
		return nil, r.mixed
	}
	h := r.newLock(ctx, false)
	if err := h.renew(ctx); err != nil {
		return nil, fmt.Errorf("locking the repository: %w", err)
	}
	if err := h.makeWay(ctx); err != nil {
		h.remove(ctx)
		return nil, fmt.Errorf("locking the repository: %w", err)
	}
	h.keep(ctx)
	return h, nil
}

// keep renews the lock in the background until release.
func (h *heldLock) keep(ctx context.Context) {
	ctx, h.cancel = context.WithCancel(ctx)
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		ticker := time.NewTicker(lockRefresh)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if err := h.renew(ctx); err != nil && ctx.Err() == nil {
					h.r.log.Warn("the repository's lock cannot be renewed", "error", err)
				}
			}
		}
	}()
}

// renew writes a new lock file and removes the one before.
//
// That the one before is still there is looked at after the new one was written: who removes it as left over looks for
// others once more after that, and so sees the new one if this look saw the old one.
func (h *heldLock) renew(ctx context.Context) error {
	h.renewing.Lock()
	defer h.renewing.Unlock()
	if err := h.aged(); err != nil {
		return err
	}
	now := time.Now()
	file := h.file
	file.Time = now
	id, _, err := h.r.storeFile(ctx, lockPrefix, file)
	if err != nil {
		if !id.isZero() {
			h.removeFile(ctx, id) // some provider may have it
		}
		return err
	}
	h.mu.Lock()
	before := h.id
	h.mu.Unlock()
	if !before.isZero() {
		if err := h.present(ctx, before); err != nil {
			h.removeFile(ctx, id)
			return err
		}
	}
	h.mu.Lock()
	h.id, h.renewed, h.renewedWall = id, now, now.Round(0)
	h.mu.Unlock()
	if !before.isZero() {
		return h.r.store.remove(ctx, lockPrefix+before.String())
	}
	return nil
}

// present fails when a lock file of this process is on no provider any more.
func (h *heldLock) present(ctx context.Context, id blobID) error {
	l, err := list(ctx, h.r.store, lockPrefix)
	if err != nil {
		return err
	}
	if len(l.objects[lockPrefix+id.String()]) > 0 {
		return nil
	}
	if err := l.failure(); err != nil {
		return err
	}
	return h.lose(errors.New("somebody removed it"))
}

// aged fails when the lock was not renewed for so long, by either of this host's clocks, that others may have taken it for
// left over: the monotonic one stands still while the machine sleeps, the other one may be set.
func (h *heldLock) aged() error {
	h.mu.Lock()
	lost, renewed, wall := h.lost, h.renewed, h.renewedWall
	h.mu.Unlock()
	if lost != nil {
		return lost
	}
	if renewed.IsZero() {
		return nil
	}
	now := time.Now()
	age := max(now.Sub(renewed), now.Round(0).Sub(wall))
	if age > staleLock-lockRefresh {
		return h.lose(fmt.Errorf("it was not renewed for %s", age.Round(time.Second)))
	}
	return nil
}

// lose notes that the lock protects nothing any more. There is no way back.
func (h *heldLock) lose(why error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil {
		h.lost = fmt.Errorf("%w: %w", errLockLost, why)
	}
	return h.lost
}

// valid fails when others may have taken the lock for left over, and have deleted packs that no snapshot names yet.
func (h *heldLock) valid() error {
	h.renewing.Lock()
	defer h.renewing.Unlock()
	if err := h.aged(); err != nil {
		return err
	}
	h.mu.Lock()
	id := h.id
	h.mu.Unlock()
	if err := h.present(h.ctx, id); err != nil {
		return fmt.Errorf("looking whether the lock still holds: %w", err)
	}
	return nil
}

// release stops the renewal and removes the lock file. What cannot be removed is logged: it blocks no backup.
func (h *heldLock) release(ctx context.Context) {
	h.cancel()
	<-h.done
	h.remove(ctx)
}

func (h *heldLock) remove(ctx context.Context) { h.removeFile(ctx, h.id) }

func (h *heldLock) removeFile(ctx context.Context, id blobID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockRemoval)
	defer cancel()
	if err := h.r.store.remove(ctx, lockPrefix+id.String()); err != nil {
		h.r.log.Warn("the repository's lock cannot be removed", "lock", id.String(), "error", err)
	}
}

// makeWay fails when there is a fresh exclusive lock, and removes those that were left over. A lock that cannot be read
// is somebody else's affair.
func (h *heldLock) makeWay(ctx context.Context) error {
	others, _, err := h.r.otherLocks(ctx, h.id)
	if err != nil {
		return err
	}
	for _, other := range others {
		switch {
		case other.unread != nil:
			h.r.log.Warn("a lock file cannot be read", "key", other.key, "error", other.unread)
		case other.leftOver:
			if err := h.r.store.remove(ctx, other.key); err != nil {
				h.r.log.Warn("a lock that was left over cannot be removed", "key", other.key, "error", err)
			}
		case other.file.Exclusive:
			return other.locked()
		}
	}
	return nil
}

// otherLock is a lock file that is not this process'.
type otherLock struct {
	key      string
	file     lockFile
	unread   error // why it could not be read
	leftOver bool
}

func (o *otherLock) locked() error {
	return fmt.Errorf("by %s on %s (pid %d) since %s: %w", o.file.Username, o.file.Hostname, o.file.PID,
		o.file.Time.Format(time.RFC3339), ErrLocked)
}

// otherLocks reads all lock files but our own.
func (r *Repository) otherLocks(ctx context.Context, own blobID) ([]otherLock, listing, error) {
	l, err := list(ctx, r.store, lockPrefix)
	if err != nil {
		return nil, l, err
	}
	ownKey, space, now := lockPrefix+own.String(), processSpace(), time.Now()
	var others []otherLock
	for key := range l.objects {
		if key == ownKey || !isLock(key) {
			continue
		}
		other := otherLock{key: key}
		plain, _, err := r.loadFile(ctx, l, key)
		if err == nil {
			other.file, err = decodeLock(plain)
		}
		if ctx.Err() != nil {
			return nil, l, ctx.Err()
		}
		r.dropRemembered(key)
		if other.unread = err; err == nil {
			other.leftOver = other.file.leftOver(now, unrenewed(l, key, ownKey, now), space, processAlive)
		}
		others = append(others, other)
	}
	return others, l, nil
}

func decodeLock(plain []byte) (lockFile, error) {
	var file lockFile
	if len(plain) > maxLockSize {
		return file, fmt.Errorf("decoding a lock of %d bytes: %w", len(plain), ErrLimitExceeded)
	}
	if err := json.Unmarshal(plain, &file); err != nil {
		return file, fmt.Errorf("decoding a lock: %w: %w", ErrDamaged, err)
	}
	return file, nil
}

// isLock is false for what has another name than a lock file: stock restic writes to a file beside it, and renames that,
// before it looks for others.
func isLock(key string) bool {
	_, err := parseID(strings.TrimPrefix(key, lockPrefix))
	return err == nil
}

// unrenewed is how long a lock file has been there by the clocks of the providers that hold it, the least of them. Our
// own lock file, which was written just now, tells what those clocks show; where it is not, this host's clock must do.
func unrenewed(l listing, key, ownKey string, now time.Time) time.Duration {
	shows := map[string]time.Time{}
	for _, own := range l.objects[ownKey] {
		shows[own.provider] = own.Modified
	}
	var least time.Duration
	for i, held := range l.objects[key] {
		reference, ok := shows[held.provider]
		if !ok {
			reference = now
		}
		if age := reference.Sub(held.Modified); i == 0 || age < least {
			least = age
		}
	}
	return least
}

// leftOver reports whether nobody holds the lock any more: its process is dead, as only a process of the same space can
// tell; or it was not renewed for half an hour, as its own time says, and the providers' clocks too (unrenewed).
func (f *lockFile) leftOver(now time.Time, unrenewed time.Duration, space string, alive func(pid int) bool) bool {
	if space != "" && f.Machine == space && !alive(f.PID) {
		return true
	}
	old := now.Sub(f.Time) > staleLock || f.Time.Sub(now) > lockSkew
	return old && unrenewed > staleLock
}

// processSpace names this boot of this kernel and this process' PID namespace: within it, and only there, a process
// number means one process. Containers share a host's name and count their processes from 1. Empty when it is not known.
func processSpace() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + namespace
}

func processAlive(pid int) bool {
	return pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// dropRemembered drops what was remembered of a file that is not part of any snapshot.
func (r *Repository) dropRemembered(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.files, key)
}
