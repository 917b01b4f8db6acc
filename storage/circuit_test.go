package storage_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// never is a pause that no test lives to see the end of.
const never = 24 * time.Hour

// guarded is a provider in memory with faults below a circuit that opens at the third failure.
type guarded struct {
	storage.Provider
	faulty *faulty.Provider
	memory *storagetest.Memory
}

func newGuarded(t *testing.T, options storage.CircuitOptions) *guarded {
	t.Helper()
	if options.After == 0 {
		options.After = time.Nanosecond
	}
	if options.ProbeAfter == 0 {
		options.ProbeAfter = never
	}
	memory := storagetest.NewMemory()
	f := faulty.New(memory)
	g := &guarded{Provider: storage.WithCircuit(f, options), faulty: f, memory: memory}
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

// fail makes every call fail like this, until the circuit is open.
func (g *guarded) fail(t *testing.T) {
	t.Helper()
	g.faulty.Inject(faulty.Rule{Err: syscall.ECONNREFUSED})
	for range 3 {
		require.NoError(t, storage.Away(g.Provider))
		_, err := g.Stat(t.Context(), "x")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	err := storage.Away(g.Provider)
	require.ErrorIs(t, err, storage.ErrAway)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.True(t, storage.Retryable(err))
}

func TestCircuitSuite(t *testing.T) {
	storagetest.Run(t, func(*testing.T) storage.Provider {
		return storage.WithCircuit(storagetest.NewMemory(), storage.CircuitOptions{})
	}, storagetest.WithMissing(func(*testing.T) storage.Provider {
		return storage.WithCircuit(storagetest.NewMissingMemory(), storage.CircuitOptions{})
	}))
}

func TestCircuitOpensAndCloses(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	g := newGuarded(t, storage.CircuitOptions{ProbeAfter: time.Millisecond, ProbeAtMost: 5 * time.Millisecond})
	g.fail(t)
	below := storage.Sub(storage.Sub(g.Provider, "a"), "b")
	require.ErrorIs(t, storage.Away(below), storage.ErrAway, "what is below shares it")
	require.Eventually(t, func() bool { return g.faulty.Calls(faulty.Stat) > 10 }, 30*time.Second, time.Millisecond, "it is probed again and again")
	require.Error(t, storage.Away(g.Provider))
	g.faulty.Clear()
	require.Eventually(t, func() bool { return storage.Away(g.Provider) == nil }, 30*time.Second, time.Millisecond)
	require.NoError(t, storage.Away(below))

	// An operation that needs it does not wait for the next probe.
	g = newGuarded(t, storage.CircuitOptions{})
	g.fail(t)
	g.faulty.Clear()
	_, err := g.Stat(t.Context(), "x")
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, storage.Away(g.Provider), "that it is not there was an answer")
	g.fail(t) // and so again
}

func TestCircuitStaysClosed(t *testing.T) {
	g := newGuarded(t, storage.CircuitOptions{})
	stat := func(ctx context.Context) { _, _ = g.Stat(ctx, "x") }
	for _, answer := range []error{storage.ErrNotFound, storage.ErrPermission, storage.ErrBucketNotFound, storage.ErrNoSpace, storage.ErrIntegrity} {
		g.faulty.Clear()
		g.faulty.Inject(faulty.Rule{Err: answer})
		for range 5 {
			stat(t.Context())
		}
		require.NoError(t, storage.Away(g.Provider), "%v is an answer", answer)
	}
	// Failures with answers between them.
	g.faulty.Clear()
	for range 5 {
		g.faulty.Inject(faulty.Rule{Times: 2})
		stat(t.Context())
		stat(t.Context())
		stat(t.Context())
		g.faulty.Clear()
	}
	require.NoError(t, storage.Away(g.Provider))
	// Callers that left.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	g.faulty.Inject(faulty.Rule{Err: syscall.ECONNREFUSED})
	for range 5 {
		stat(ended)
	}
	require.NoError(t, storage.Away(g.Provider))
	// A second of failures is wanted by default.
	patient := storage.WithCircuit(g.faulty, storage.CircuitOptions{After: never})
	for range 100 {
		_, _ = patient.Stat(t.Context(), "x")
	}
	require.NoError(t, storage.Away(patient))
	require.NoError(t, patient.Close())
	// What a caller says of an object of a listing is no news of the provider.
	g.faulty.Clear()
	_, err := g.memory.Put(t.Context(), "x", nil, storage.PutOptions{})
	require.NoError(t, err)
	for range 5 {
		require.ErrorIs(t, g.List(t.Context(), "", func(storage.Object) error { return syscall.EIO }), syscall.EIO)
	}
	require.NoError(t, storage.Away(g.Provider))
}

// mirrorOf is a mirror of guarded providers.
func mirrorOf(t *testing.T, options storage.MirrorOptions, providers ...*guarded) *storage.Mirror {
	t.Helper()
	var all []storage.Provider
	for _, p := range providers {
		all = append(all, storage.Sub(p.Provider, "repository"))
	}
	mirror, err := storage.NewMirror(all, options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mirror.Close()) })
	return mirror
}

// exercise makes every kind of operation of a mirror; each succeeds on those that are there. The debt is known.
func exercise(t *testing.T, mirror *storage.Mirror, away ...string) {
	t.Helper()
	for i := range 5 {
		key := fmt.Sprint("x", i)
		require.NoError(t, mirror.Put(t.Context(), key, []byte(key), storage.PutOptions{CreateOnly: true}))
		require.ElementsMatch(t, away, mirror.Behind(), "the debt is recorded")
		data, err := mirror.Load(t.Context(), key, 0, -1, nil)
		require.NoError(t, err)
		require.Equal(t, key, string(data))
		listings, failed := mirror.ListAll(t.Context(), "")
		require.Len(t, listings, len(mirror.Providers())-len(away))
		objects, missed := mirror.StatAll(t.Context(), key)
		require.Len(t, objects, len(mirror.Providers())-len(away))
		err = mirror.Delete(t.Context(), key)
		for _, url := range away {
			require.ErrorIs(t, failed[url], storage.ErrAway, "never a short listing")
			require.ErrorIs(t, missed[url], storage.ErrAway)
			require.ErrorContains(t, err, url, "what was not deleted everywhere is said")
		}
		if len(away) == 0 {
			require.NoError(t, err)
		}
	}
}

// What the policy's other providers can do is done without the one that is away: it is not asked at all, and what it
// owes is known.
func TestMirrorDoesWithoutWhoIsAway(t *testing.T) {
	for _, policy := range []storage.Policy{storage.PolicyAny, {Required: 2}} {
		t.Run(policy.String(), func(t *testing.T) {
			var providers []*guarded
			for range 3 {
				providers = append(providers, newGuarded(t, storage.CircuitOptions{}))
			}
			options := storage.MirrorOptions{Policy: policy, RetryFor: never, LagTimeout: never, StallTimeout: never}
			exercise(t, mirrorOf(t, options, providers...))

			dead := providers[0]
			dead.fail(t)
			mirror := mirrorOf(t, options, providers...)
			asked := dead.faulty.Calls(faulty.Any)
			exercise(t, mirror, mirror.Providers()[0].URL())
			require.Equal(t, asked, dead.faulty.Calls(faulty.Any), "nobody asks it")
			require.ErrorIs(t, mirror.BehindError(mirror.Providers()[0].URL()), storage.ErrAway)

			// One that is back is used again, by the next operation.
			dead.faulty.Clear()
			_, _ = dead.Stat(t.Context(), "x")
			exercise(t, mirrorOf(t, options, providers...))
		})
	}
}

// A policy that needs the provider asks it as if there were no circuit: all of them, or because another one fails.
func TestMirrorAsksWhomItNeeds(t *testing.T) {
	a, b := newGuarded(t, storage.CircuitOptions{}), newGuarded(t, storage.CircuitOptions{})
	b.fail(t)
	b.faulty.Clear() // it is back, and nobody knows yet
	all := mirrorOf(t, storage.MirrorOptions{Policy: storage.PolicyAll, RetryFor: -1}, a, b)
	require.NoError(t, all.Put(t.Context(), "x", []byte("x"), storage.PutOptions{}))
	require.Empty(t, all.Behind())
	require.Len(t, b.memory.Keys(), 1)
	require.NoError(t, storage.Away(b.Provider))

	b.fail(t)
	err := all.Put(t.Context(), "y", nil, storage.PutOptions{})
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.Empty(t, all.Behind())
	_, failed := all.ListAll(t.Context(), "")
	require.ErrorIs(t, failed[all.Providers()[1].URL()], syscall.ECONNREFUSED)
	require.NotErrorIs(t, failed[all.Providers()[1].URL()], storage.ErrAway, "it was asked")

	b.faulty.Clear()
	a.faulty.Inject(faulty.Rule{Err: storage.ErrNoSpace})
	either := mirrorOf(t, storage.MirrorOptions{Policy: storage.PolicyAny, RetryFor: -1}, a, b)
	require.NoError(t, either.Put(t.Context(), "z", []byte("z"), storage.PutOptions{}), "the other one is full")
	require.Equal(t, []string{either.Providers()[0].URL()}, either.Behind())

	b.fail(t)
	b.faulty.Clear()
	listings, failed := either.ListAll(t.Context(), "")
	require.Len(t, listings[either.Providers()[1].URL()], 2)
	require.ErrorIs(t, failed[either.Providers()[0].URL()], storage.ErrNoSpace)

	// An object that only the one that is away has.
	a.faulty.Clear()
	b.fail(t)
	b.faulty.Clear()
	data, err := either.Load(t.Context(), "z", 0, -1, nil)
	require.NoError(t, err)
	require.Equal(t, "z", string(data))

	// A repair is for those that were away.
	b.fail(t)
	b.faulty.Clear()
	report, err := either.Repair(t.Context(), "", storage.RepairOptions{})
	require.NoError(t, err)
	require.Equal(t, 1, report.Copied[either.Providers()[0].URL()])
}

// Whoever is waiting when the provider is found to be away goes on at that moment, and not when it has been tried for
// long enough.
func TestMirrorStopsWaitingForWhoGoesAway(t *testing.T) {
	options := storage.MirrorOptions{Policy: storage.PolicyAny, RetryFor: never, LagTimeout: never, StallTimeout: never}
	for name, operation := range map[string]func(m *storage.Mirror) error{
		"put": func(m *storage.Mirror) error { return m.Put(t.Context(), "y", nil, storage.PutOptions{}) },
		"list": func(m *storage.Mirror) error {
			if _, failed := m.ListAll(t.Context(), ""); !errors.Is(failed[m.Providers()[0].URL()], storage.ErrAway) {
				return fmt.Errorf("%v", failed)
			}
			return nil
		},
		"load": func(m *storage.Mirror) error { _, err := m.Load(t.Context(), "x", 0, -1, nil); return err },
	} {
		for _, kind := range []faulty.Kind{faulty.Error, faulty.Hang} {
			if kind == faulty.Hang && name != "list" && name != "load" {
				continue // a write that hangs has LagTimeout
			}
			t.Run(fmt.Sprint(name, kind), func(t *testing.T) {
				a, b := newGuarded(t, storage.CircuitOptions{Patience: 20 * time.Millisecond}), newGuarded(t, storage.CircuitOptions{})
				mirror := mirrorOf(t, options, a, b)
				require.NoError(t, mirror.Put(t.Context(), "x", []byte("x"), storage.PutOptions{}))
				a.faulty.Inject(faulty.Rule{Op: map[string]faulty.Op{"put": faulty.Put, "list": faulty.List, "load": faulty.Get}[name], Kind: kind})
				done := make(chan error, 1)
				go func() { done <- operation(mirror) }()
				if name == "load" { // somebody else finds out
					require.Eventually(t, func() bool { return a.faulty.Calls(faulty.Get) > 0 }, 30*time.Second, time.Millisecond)
					a.faulty.Inject(faulty.Rule{Op: faulty.Stat})
					for range 3 {
						_, _ = a.Stat(t.Context(), "x")
					}
				}
				select {
				case err := <-done:
					require.NoError(t, err)
				case <-time.After(20 * time.Second):
					t.Fatal("it is still waited for")
				}
				require.ErrorIs(t, storage.Away(a.Provider), storage.ErrAway)
			})
		}
	}
}

// A provider that is slow and not away is found out by the probe, and is given more time after that: it is not left for
// ever, which would be a debt that nobody can pay.
func TestCircuitBecomesMorePatient(t *testing.T) {
	slow := &slowLister{Memory: storagetest.NewMemory(), takes: 150 * time.Millisecond}
	a := storage.WithCircuit(slow, storage.CircuitOptions{Patience: 5 * time.Millisecond, ProbeAfter: time.Millisecond})
	defer a.Close()
	b := newGuarded(t, storage.CircuitOptions{})
	mirror, err := storage.NewMirror([]storage.Provider{a, b.Provider}, storage.MirrorOptions{Policy: storage.PolicyAny})
	require.NoError(t, err)
	_, failed := mirror.ListAll(t.Context(), "")
	require.ErrorIs(t, failed[a.URL()], storage.ErrAway)
	require.Eventually(t, func() bool {
		listings, _ := mirror.ListAll(t.Context(), "")
		return listings[a.URL()] != nil
	}, 30*time.Second, 10*time.Millisecond)
}

type slowLister struct {
	*storagetest.Memory
	takes time.Duration
}

func (s *slowLister) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	select {
	case <-time.After(s.takes): // the slowness under test
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Memory.List(ctx, prefix, each)
}
