package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// An exclusive lock says that something is deleting. It is held only while its file is on every provider of the mirror
// and no other lock is on any: a backup that sees but one of them sees it, and is seen.

// lockYield is how long a lock that appeared beside an exclusive one is waited for. Its owner sees ours in its next
// request and withdraws; one that stays was written by a program that does not honour locks.
const lockYield = 30 * time.Second

// lockExclusive waits up to wait for all other locks to be gone, and then holds the only one. ErrLocked otherwise, also
// for a lock that cannot be read; an error of a provider when not all of them can be listed and written.
func (r *Repository) lockExclusive(ctx context.Context, wait time.Duration) (*heldLock, error) {
	if r.mixed != nil {
		return nil, r.mixed
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, 10*time.Second
	h, err := retryFor(ctx, wait, pause, func() (*heldLock, error) { return r.tryExclusive(ctx) })
	if err != nil {
		return nil, fmt.Errorf("locking the repository for this program alone: %w", err)
	}
	h.keep(ctx)
	return h, nil
}

// retryFor calls until the error is not ErrLocked, or the time is over.
func retryFor[T any](ctx context.Context, wait time.Duration, pause backoff.BackOff, call func() (T, error)) (T, error) {
	deadline := time.Now().Add(wait)
	for {
		result, err := call()
		if err == nil || !errors.Is(err, ErrLocked) {
			return result, err
		}
		next := time.Now().Add(pause.NextBackOff())
		if next.After(deadline) {
			return result, err
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return result, context.Cause(ctx)
		}
	}
}

// tryExclusive looks, writes, and looks again. The first look spares those who work now the sight of a lock that will
// be withdrawn; it is the second one that counts.
func (r *Repository) tryExclusive(ctx context.Context) (*heldLock, error) {
	h := r.newLock(ctx, true)
	if err := h.alone(ctx, false); err != nil {
		return nil, err
	}
	if err := h.renew(ctx); err != nil {
		return nil, err
	}
	if err := h.alone(ctx, true); err != nil {
		h.remove(ctx)
		return nil, err
	}
	return h, nil
}

// alone fails when another lock is held. With clear it removes those that were left over, and looks again whether all
// others are gone then, and our own is everywhere.
func (h *heldLock) alone(ctx context.Context, clear bool) error {
	others, l, err := h.r.otherLocks(ctx, h.id)
	if err != nil {
		return err
	}
	if err := l.failure(); err != nil {
		return err
	}
	for _, other := range others {
		switch {
		case other.unread != nil:
			return fmt.Errorf("the lock file %s cannot be read (%v): %w", other.key, other.unread, ErrLocked)
		case other.leftOver:
		case !clear && (time.Since(other.file.Time) > staleLock || other.file.Time.After(time.Now().Add(lockSkew))):
			// Only beside our own lock the providers' clocks tell whether it is really that old.
		default:
			return other.locked()
		}
	}
	if !clear {
		return nil
	}
	for _, other := range others {
		h.r.log.Info("removing a lock that was left over", "key", other.key, "host", other.file.Hostname, "pid", other.file.PID, "time", other.file.Time)
		if err := h.r.store.remove(ctx, other.key); err != nil {
			return fmt.Errorf("removing a lock that was left over: %w", err)
		}
	}
	return h.sole(ctx)
}

// sole fails unless our lock is on every provider and no other lock is on any.
func (h *heldLock) sole(ctx context.Context) error {
	h.renewing.Lock()
	defer h.renewing.Unlock()
	if err := h.aged(); err != nil {
		return err
	}
	h.mu.Lock()
	own := lockPrefix + h.id.String()
	h.mu.Unlock()
	l, err := list(ctx, h.r.store, lockPrefix)
	if err != nil {
		return err
	}
	if err := l.failure(); err != nil {
		return err
	}
	if held, want := len(l.objects[own]), len(h.r.store.providers()); held != want {
		return h.lose(fmt.Errorf("it is on %d of %d providers", held, want))
	}
	for key := range l.objects {
		if key != own && isLock(key) {
			return fmt.Errorf("there is another lock, %s: %w", key, ErrLocked)
		}
	}
	return nil
}

// stillSole is sole, after waiting for a newcomer that sees our lock to withdraw its own.
func (h *heldLock) stillSole(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 2*time.Second
	_, err := retryFor(ctx, h.yield, pause, func() (struct{}, error) { return struct{}{}, h.sole(ctx) })
	if err != nil {
		return fmt.Errorf("looking whether the lock still holds: %w", err)
	}
	return nil
}
