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

// While a backup runs, a non-exclusive lock file as stock restic writes them makes a stock `restic prune` or `forget`
// refuse, which would otherwise delete packs that no snapshot names yet. Locks protect nothing among writers, so a
// leftover one (of a killed process, say) never blocks a backup. Only a fresh exclusive lock does: something is
// deleting right now. It is fresh for staleLock at most.

// ErrLocked means that another program holds the repository exclusively (a prune, most likely). It is transient.
var ErrLocked = errors.New("the repository is locked exclusively by another program")

// lockFile is the JSON of a file of locks/.
type lockFile struct {
	Time      time.Time `json:"time"`
	Exclusive bool      `json:"exclusive"`
	Hostname  string    `json:"hostname"`
	Username  string    `json:"username"`
	PID       int       `json:"pid"`
	UID       uint32    `json:"uid,omitempty"`
	GID       uint32    `json:"gid,omitempty"`
}

const (
	// lockRefresh and staleLock are restic's.
	lockRefresh = 5 * time.Minute
	staleLock   = 30 * time.Minute
	// lockSkew is how far in the future a lock's time may be before it counts as left over by a broken clock.
	lockSkew = 24 * time.Hour
	// lockRemoval bounds the removal of a lock after its backup, also when that was cancelled.
	lockRemoval = 15 * time.Second
)

// heldLock is this process' lock file, which a goroutine renews.
type heldLock struct {
	r      *Repository
	file   lockFile
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	id      blobID
	renewed time.Time
}

// lock writes a lock file, and then looks for exclusive ones: of two programs that do so at the same time, at least one
// sees the other.
func (r *Repository) lock(ctx context.Context) (*heldLock, error) {
	hostname, _ := os.Hostname()
	h := &heldLock{r: r, done: make(chan struct{}), file: lockFile{
		Hostname: hostname, Username: username(), PID: os.Getpid(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
	}}
	if err := h.renew(ctx); err != nil {
		return nil, fmt.Errorf("locking the repository: %w", err)
	}
	if err := r.inspectLocks(ctx, h.id, hostname); err != nil {
		h.remove(ctx)
		return nil, fmt.Errorf("locking the repository: %w", err)
	}
	refreshing, cancel := context.WithCancel(ctx)
	h.cancel = cancel
	go h.refresh(refreshing)
	return h, nil
}

// renew writes a new lock file and removes the one before.
func (h *heldLock) renew(ctx context.Context) error {
	now := time.Now()
	h.file.Time = now
	id, _, err := h.r.storeFile(ctx, lockPrefix, h.file)
	if err != nil {
		if !id.isZero() {
			h.removeFile(ctx, id) // some provider may have it
		}
		return err
	}
	h.mu.Lock()
	before := h.id
	h.id, h.renewed = id, now
	h.mu.Unlock()
	if !before.isZero() {
		return h.r.store.remove(ctx, lockPrefix+before.String())
	}
	return nil
}

func (h *heldLock) refresh(ctx context.Context) {
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
}

// valid fails when the lock was not renewed for so long that others may have taken it for left over, and have deleted
// packs that no snapshot names yet.
func (h *heldLock) valid() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if age := time.Since(h.renewed); age > staleLock-lockRefresh {
		return fmt.Errorf("the repository's lock could not be renewed for %s: what was stored must be looked at again", age.Round(time.Second))
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

// inspectLocks fails when there is a fresh exclusive lock, and removes non-exclusive ones that were left over: older
// than half an hour, or of a process of this host that is dead. A lock that cannot be read is somebody else's affair.
func (r *Repository) inspectLocks(ctx context.Context, own blobID, hostname string) error {
	l, err := list(ctx, r.store, lockPrefix)
	if err != nil {
		return err
	}
	for key := range l.objects {
		if strings.TrimPrefix(key, lockPrefix) == own.String() {
			continue
		}
		plain, _, err := r.loadFile(ctx, l, key)
		var file lockFile
		if err == nil {
			err = json.Unmarshal(plain, &file)
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.log.Warn("a lock file cannot be read", "key", key, "error", err)
			continue
		}
		r.forget(key)
		leftOver := file.leftOver(time.Now(), hostname, processAlive)
		switch {
		case file.Exclusive && !leftOver:
			return fmt.Errorf("by %s on %s (pid %d) since %s: %w", file.Username, file.Hostname, file.PID,
				file.Time.Format(time.RFC3339), ErrLocked)
		case !file.Exclusive && leftOver:
			if err := r.store.remove(ctx, key); err != nil {
				r.log.Warn("a lock that was left over cannot be removed", "key", key, "error", err)
			}
		}
	}
	return nil
}

// leftOver reports whether nobody holds the lock any more, as far as this host can tell.
func (f *lockFile) leftOver(now time.Time, hostname string, alive func(pid int) bool) bool {
	if now.Sub(f.Time) > staleLock || f.Time.Sub(now) > lockSkew {
		return true
	}
	return f.Hostname == hostname && hostname != "" && !alive(f.PID)
}

func processAlive(pid int) bool {
	return pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// forget drops what was remembered of a file that is not part of any snapshot.
func (r *Repository) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.files, key)
}
