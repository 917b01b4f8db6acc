package snapshot

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// olderProvider shows objects as if they had been there for longer.
type olderProvider struct {
	storage.Provider

	mu  sync.Mutex
	age map[string]time.Duration // by key
	// fast is how far the provider's clock is ahead of this host's.
	fast time.Duration
}

func newOlder(p storage.Provider) *olderProvider {
	return &olderProvider{Provider: p, age: map[string]time.Duration{}}
}

// makeOlder makes everything below the prefixes older.
func (p *olderProvider) makeOlder(t testing.TB, age time.Duration, prefixes ...string) {
	t.Helper()
	for _, key := range allKeys(t, p.Provider) {
		for _, prefix := range prefixes {
			if strings.HasPrefix(key, prefix) {
				p.mu.Lock()
				p.age[key] = age
				p.mu.Unlock()
			}
		}
	}
}

func (p *olderProvider) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	return p.Provider.List(ctx, prefix, func(o storage.Object) error {
		p.mu.Lock()
		o.Modified = o.Modified.Add(p.fast - p.age[o.Key])
		p.mu.Unlock()
		return each(o)
	})
}

func locksOn(t testing.TB, p storage.Provider) (keys []string) {
	t.Helper()
	for _, key := range allKeys(t, p) {
		if strings.HasPrefix(key, lockPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// deadPID is beyond what Linux gives.
const deadPID = 1 << 22

// TestLocks: a leftover lock never blocks a backup, an exclusive one in use does, and a backup leaves none. A lock is left
// over only when its process is dead in this very PID namespace, or when it is old by its own time and by the provider's
// clock: a clock that is wrong on either side is not enough.
func TestLocks(t *testing.T) {
	hostname, err := os.Hostname()
	require.NoError(t, err)
	space, now := processSpace(), time.Now()
	require.NotEmpty(t, space)
	const hour = time.Hour
	for name, test := range map[string]struct {
		lock    lockFile
		there   time.Duration // by the provider's clock
		blocks  bool
		removed bool
	}{
		"shared, of a dead process":              {lockFile{Time: now, Hostname: hostname, PID: deadPID, Machine: space}, 0, false, true},
		"shared, of a living process":            {lockFile{Time: now, Hostname: hostname, PID: os.Getppid(), Machine: space}, 0, false, false},
		"shared, of another host":                {lockFile{Time: now, Hostname: "elsewhere", PID: deadPID}, 0, false, false},
		"shared, of another namespace":           {lockFile{Time: now, Hostname: hostname, PID: deadPID, Machine: space + "x"}, 0, false, false},
		"shared, of a process of stock restic":   {lockFile{Time: now, Hostname: hostname, PID: deadPID}, 0, false, false},
		"shared, old, of another host":           {lockFile{Time: now.Add(-hour), Hostname: "elsewhere", PID: 1}, hour, false, true},
		"shared, old by its own time alone":      {lockFile{Time: now.Add(-hour), Hostname: "elsewhere", PID: 1}, 0, false, false},
		"shared, old by the provider alone":      {lockFile{Time: now, Hostname: "elsewhere", PID: 1}, hour, false, false},
		"exclusive, of another host":             {lockFile{Time: now, Exclusive: true, Hostname: "elsewhere", PID: 1}, 0, true, false},
		"exclusive, of another namespace":        {lockFile{Time: now, Exclusive: true, Hostname: hostname, PID: deadPID, Machine: space + "x"}, 0, true, false},
		"exclusive, of stock restic":             {lockFile{Time: now, Exclusive: true, Hostname: hostname, PID: deadPID}, 0, true, false},
		"exclusive, old, of another host":        {lockFile{Time: now.Add(-hour), Exclusive: true, Hostname: "elsewhere", PID: 1}, hour, false, true},
		"exclusive, old by its own time alone":   {lockFile{Time: now.Add(-hour), Exclusive: true, Hostname: "elsewhere", PID: 1}, 0, true, false},
		"exclusive, of a dead process":           {lockFile{Time: now, Exclusive: true, Hostname: hostname, PID: deadPID, Machine: space}, 0, false, true},
		"exclusive, of a broken clock":           {lockFile{Time: now.Add(48 * hour), Exclusive: true, Hostname: "elsewhere", PID: 1}, hour, false, true},
		"exclusive, of a broken clock, and held": {lockFile{Time: now.Add(48 * hour), Exclusive: true, Hostname: "elsewhere", PID: 1}, 0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			provider := newOlder(storagetest.NewMemory())
			r := newTestRepository(t, storage.PolicyAll, provider)
			id, _, err := r.storeFile(t.Context(), lockPrefix, test.lock)
			require.NoError(t, err)
			provider.makeOlder(t, test.there, lockPrefix)
			overwrite(t, provider, lockPrefix+blobID{7}.String(), []byte("not a lock"))
			var during []string
			r.moments.listed = func(string) { during = locksOn(t, provider) }
			_, err = r.Backup(t.Context(), t.TempDir(), BackupOptions{})
			if test.blocks {
				require.ErrorIs(t, err, ErrLocked)
				require.True(t, storage.Retryable(err))
			} else {
				require.NoError(t, err)
				require.Equal(t, test.removed, len(during) == 2, "the unreadable one, ours, and the one that may be left")
			}
			left := []string{lockPrefix + blobID{7}.String()}
			if !test.removed {
				left = append(left, lockPrefix+id.String())
			}
			require.ElementsMatch(t, left, locksOn(t, provider))
		})
	}
}

// TestExclusiveLocks: nothing deletes beside anybody who works, or may be working; what was left over is removed.
func TestExclusiveLocks(t *testing.T) {
	space, now := processSpace(), time.Now()
	for name, test := range map[string]struct {
		lock  lockFile
		there time.Duration
		free  bool
	}{
		"of another host":                  {lockFile{Time: now, Hostname: "elsewhere", PID: 1}, 0, false},
		"exclusive":                        {lockFile{Time: now, Hostname: "elsewhere", PID: 1, Exclusive: true}, 0, false},
		"of a living process":              {lockFile{Time: now, PID: os.Getppid(), Machine: space}, 0, false},
		"of a dead process":                {lockFile{Time: now, PID: deadPID, Machine: space}, 0, true},
		"of a dead process elsewhere":      {lockFile{Time: now, PID: deadPID, Machine: "another"}, 0, false},
		"old":                              {lockFile{Time: now.Add(-time.Hour), Hostname: "elsewhere"}, time.Hour, true},
		"old and exclusive":                {lockFile{Time: now.Add(-time.Hour), Hostname: "elsewhere", Exclusive: true}, time.Hour, true},
		"written by a clock that is late":  {lockFile{Time: now.Add(-time.Hour), Hostname: "elsewhere"}, time.Minute, false},
		"written by a clock that is early": {lockFile{Time: now.Add(48 * time.Hour), Hostname: "elsewhere"}, time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newOlder(storagetest.NewMemory()), newOlder(storagetest.NewMemory())
			r := newTestRepository(t, storage.PolicyAny, first, second)
			// It is on one provider only: its writer could not reach the other.
			id, _, err := newTestRepository(t, storage.PolicyAll, second).storeFile(t.Context(), lockPrefix, test.lock)
			require.NoError(t, err)
			second.makeOlder(t, test.there, lockPrefix)
			h, err := r.lockExclusive(t.Context(), 0)
			if !test.free {
				require.ErrorIs(t, err, ErrLocked)
				require.Empty(t, locksOn(t, first))
				require.Equal(t, []string{lockPrefix + id.String()}, locksOn(t, second))
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{lockPrefix + h.id.String()}, locksOn(t, first))
			require.Equal(t, locksOn(t, first), locksOn(t, second))
			_, err = newTestRepository(t, storage.PolicyAny, second).Backup(t.Context(), t.TempDir(), BackupOptions{})
			require.ErrorIs(t, err, ErrLocked, "a backup that sees one of the providers")
			require.NoError(t, h.stillSole(t.Context()))
			h.release(t.Context())
			require.Empty(t, locksOn(t, first))
			require.Empty(t, locksOn(t, second))
		})
	}
	t.Run("providers whose clocks are wrong", func(t *testing.T) {
		for _, fast := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
			provider := newOlder(storagetest.NewMemory())
			provider.fast = fast
			r := newTestRepository(t, storage.PolicyAll, provider)
			_, _, err := r.storeFile(t.Context(), lockPrefix, lockFile{Time: now.Add(-time.Hour), Hostname: "elsewhere"})
			require.NoError(t, err)
			_, err = r.lockExclusive(t.Context(), 0)
			require.ErrorIs(t, err, ErrLocked, "by its own clock the provider has it since just now")
			provider.makeOlder(t, time.Hour, lockPrefix)
			h, err := r.lockExclusive(t.Context(), 0)
			require.NoError(t, err)
			h.release(t.Context())
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		_, providers := memories(1)
		r := newTestRepository(t, storage.PolicyAll, providers...)
		overwrite(t, providers[0], lockPrefix+blobID{7}.String(), []byte("not a lock"))
		_, err := r.lockExclusive(t.Context(), 0)
		require.ErrorIs(t, err, ErrLocked)
		require.Len(t, locksOn(t, providers[0]), 1)
	})
	t.Run("a provider that is away", func(t *testing.T) {
		for _, op := range []faulty.Op{faulty.List, faulty.Put} {
			faults, providers := memories(2)
			r := newTestRepository(t, storage.PolicyAny, providers...)
			faults[1].Inject(faulty.Rule{Op: op})
			_, err := r.lockExclusive(t.Context(), 0)
			require.Error(t, err, op)
			require.Empty(t, locksOn(t, providers[0]))
		}
	})
}

// TestExclusiveLockWaits for those who work to have ended.
func TestExclusiveLockWaits(t *testing.T) {
	_, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	held, err := r.lock(t.Context())
	require.NoError(t, err)
	taken := make(chan error, 1)
	var h *heldLock
	go func() {
		var err error
		h, err = r.lockExclusive(t.Context(), time.Hour)
		taken <- err
	}()
	require.Never(t, func() bool { return len(locksOn(t, providers[0])) != 1 }, 500*time.Millisecond, 10*time.Millisecond,
		"who waits shows no lock that others would run into")
	held.release(t.Context())
	require.NoError(t, <-taken)
	require.Len(t, locksOn(t, providers[0]), 1)
	h.release(t.Context())

	held, err = r.lock(t.Context())
	require.NoError(t, err)
	defer held.release(t.Context())
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("somebody said so")
	cancel(why)
	_, err = r.lockExclusive(ctx, time.Hour)
	require.Error(t, err)
}

// TestNewcomers: a lock that appears beside an exclusive one is waited for, since its owner withdraws; one that stays
// stops who would delete.
func TestNewcomers(t *testing.T) {
	_, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	h, err := r.lockExclusive(t.Context(), 0)
	require.NoError(t, err)
	defer h.release(t.Context())
	newcomer := lockPrefix + blobID{7}.String()
	overwrite(t, providers[0], newcomer+"-tmp-123", []byte("any"))
	require.NoError(t, h.stillSole(t.Context()))
	overwrite(t, providers[0], newcomer, []byte("any"))
	h.yield = 0
	require.ErrorIs(t, h.stillSole(t.Context()), ErrLocked)
	h.yield = time.Hour
	looked := make(chan error, 1)
	go func() { looked <- h.stillSole(t.Context()) }()
	require.NoError(t, providers[0].Delete(t.Context(), newcomer))
	require.NoError(t, <-looked)
}

// TestLockThatWasTakenForLeftOver: who stood still for so long that others went on without it notices, and does not
// write a new lock as if nothing had happened.
func TestLockThatWasTakenForLeftOver(t *testing.T) {
	_, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	for name, check := range map[string]func(h *heldLock) error{
		"valid":     (*heldLock).valid,
		"renew":     func(h *heldLock) error { return h.renew(t.Context()) },
		"stillSole": func(h *heldLock) error { return h.stillSole(t.Context()) },
	} {
		t.Run(name+", removed", func(t *testing.T) {
			h, err := r.lockExclusive(t.Context(), 0)
			require.NoError(t, err)
			require.NoError(t, check(h))
			require.NoError(t, providers[0].Delete(t.Context(), lockPrefix+h.id.String()))
			require.ErrorIs(t, check(h), errLockLost)
			require.Empty(t, locksOn(t, providers[0]))
			require.ErrorIs(t, h.valid(), errLockLost, "it stays lost")
			require.ErrorIs(t, h.renew(t.Context()), errLockLost)
			h.release(t.Context())
		})
		t.Run(name+", not renewed", func(t *testing.T) {
			h, err := r.lockExclusive(t.Context(), 0)
			require.NoError(t, err)
			h.renewed = time.Now().Add(-staleLock + lockRefresh + time.Minute)
			require.NoError(t, h.valid())
			h.renewed = time.Now().Add(-staleLock + lockRefresh - time.Second)
			require.ErrorIs(t, check(h), errLockLost)
			h.release(t.Context())
		})
		t.Run(name+", asleep", func(t *testing.T) {
			h, err := r.lockExclusive(t.Context(), 0)
			require.NoError(t, err)
			h.renewedWall = time.Now().Round(0).Add(-staleLock) // the other clock stood still
			require.ErrorIs(t, check(h), errLockLost)
			h.release(t.Context())
		})
	}
}

// TestRenewedLock has one file at a time, and a backup whose lock others removed does not make a snapshot.
func TestRenewedLock(t *testing.T) {
	_, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	h, err := r.lock(t.Context())
	require.NoError(t, err)
	before := h.id
	require.NoError(t, h.renew(t.Context()))
	require.NotEqual(t, before, h.id)
	for _, p := range providers {
		require.Equal(t, []string{lockPrefix + h.id.String()}, locksOn(t, p))
	}
	h.release(t.Context())

	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": []byte("f")})
	r.moments.listed = func(string) {
		for _, p := range providers {
			for _, key := range locksOn(t, p) {
				require.NoError(t, p.Delete(t.Context(), key))
			}
		}
	}
	_, err = r.Backup(t.Context(), dir, BackupOptions{})
	require.ErrorIs(t, err, errLockLost)
	require.True(t, storage.Retryable(err))
	require.Empty(t, snapshotsOn(t, providers[0]))
	r.moments.listed = nil
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	requireWhole(t, r, result.Snapshot)
}

// deleteHook does something after each removal.
type deleteHook struct {
	storage.Provider

	mu    sync.Mutex
	after func(key string)
}

func (p *deleteHook) set(after func(key string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = after
}

func (p *deleteHook) Delete(ctx context.Context, key string) error {
	err := p.Provider.Delete(ctx, key)
	p.mu.Lock()
	after := p.after
	p.mu.Unlock()
	if after != nil {
		after(key)
	}
	return err
}
