package catalog_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

// moments are what happens in a failover, in order. What was on its way from the old node lands after one of them.
type moment int

const (
	headChosen     moment = iota // the version to go on from was read, and the new instance is not recorded
	recorded                     // it is, and has no snapshot
	firstSnapshot                // it has one
	secondSnapshot               // it has two: more than the old one's sequence
	never                        // what was on its way was lost
)

// suspended is an instance whose node stands still between its look and its commit: the commit is on its way to both stores,
// and lands on each when the test says so.
type suspended struct {
	t      *testing.T
	inner  [2]*storagetest.Memory
	stores [2]*faulty.Provider // as the control side and the new node see them
	now    *catalog.Catalog
	old    *catalog.Catalog
	land   [2]chan struct{}
	done   chan error
}

// A commit of instance 1 is snapshot 2, sequence 2; its snapshot 1, sequence 1, is what is gone on from.
func newSuspended(t *testing.T, policy storage.Policy) *suspended {
	t.Helper()
	s := &suspended{t: t, done: make(chan error, 1)}
	var old []storage.Provider
	var arrived sync.WaitGroup
	for i := range s.inner {
		s.inner[i] = storagetest.NewMemory()
		s.stores[i] = faulty.New(s.inner[i])
		s.land[i] = make(chan struct{})
		slow := faulty.New(s.inner[i])
		arrived.Add(1)
		slow.Inject(faulty.Rule{
			Op: faulty.Put, Kind: faulty.Late, Match: func(key string) bool { return key == commitKeyOf(1, 2) }, Until: s.land[i], Began: arrived.Done,
		})
		old = append(old, slow)
	}
	s.now = catalog.New([]storage.Provider{s.stores[0], s.stores[1]}, policy)
	s.old = catalog.New(old, policy)
	require.NoError(t, s.old.RecordInstance(t.Context(), record(1, "")))
	require.NoError(t, s.old.Commit(t.Context(), commit(1, 1, snapshots[1]), nil))
	looked := false
	go func() {
		s.done <- s.old.Commit(context.Background(), commit(1, 2, snapshots[2]), func() error {
			looked = true // and the lease was live
			return nil
		})
	}()
	arrived.Wait()
	require.True(t, looked)
	return s
}

// landOn lets the commit reach a store.
func (s *suspended) landOn(store int) {
	close(s.land[store])
	require.Eventually(s.t, func() bool {
		_, err := s.inner[store].Stat(s.t.Context(), commitKeyOf(1, 2))
		return err == nil
	}, time.Minute, time.Millisecond)
}

// requireHead asks everybody who says what the head is. known is what the workspace's workflow knows.
func (s *suspended) requireHead(known *workspace.Commit, want string, when string) {
	s.t.Helper()
	answers := s.now.ReadHead(s.t.Context(), id)
	for _, known := range []*workspace.Commit{known, nil} { // nil: a workflow that was made anew
		for _, accept := range []string{"", want} {
			decision := workspace.DecideHead(known, answers, accept, time.Now())
			require.NotNil(s.t, decision.Head, when)
			require.Equal(s.t, want, decision.Head.Snapshot, "%s: known %+v, answers %+v", when, known, answers)
			if accept == want {
				require.Empty(s.t, decision.Refusal, when)
			}
		}
		// Nobody gets the old node's by naming it: that is what `restore --snapshot` is for.
		decision := workspace.DecideHead(known, answers, snapshots[2], time.Now())
		require.Equal(s.t, want, decision.Head.Snapshot, when)
	}
	history, err := s.now.Alike(s.t.Context(), id, []catalog.CommitKey{{Token: 1, Sequence: 1}, {Token: 1, Sequence: 2}})
	if err != nil {
		require.ErrorIs(s.t, err, catalog.ErrDiffer, when)
		return
	}
	require.Equal(s.t, want, history.Head, when)
	require.Equal(s.t, uint64(2), history.Token, when)
}

// A12, invariant 3: a node that is suspended between its look and its commit, and finishes after the failover, never makes
// the head: whenever the commit lands, on whichever stores, and on whichever stores the new instance was recorded.
func TestCommitOfASuspendedNodeIsNeverTheHead(t *testing.T) {
	names := map[moment]string{headChosen: "before the record", recorded: "before the first snapshot", firstSnapshot: "after it", secondSnapshot: "after two", never: "never"}
	for _, policy := range []storage.Policy{storage.PolicyAny, storage.PolicyAll} {
		for _, alone := range []int{-1, 0, 1} { // the only store that gets the new instance's record at first
			if alone >= 0 && policy == storage.PolicyAll {
				continue // it does not begin
			}
			for first := headChosen; first <= never; first++ {
				for second := headChosen; second <= never; second++ {
					name := fmt.Sprintf("%s/recorded on %d/lands on a %s, on b %s", policy, alone, names[first], names[second])
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						failover(t, policy, alone, [2]moment{first, second})
					})
				}
			}
		}
	}
}

func failover(t *testing.T, policy storage.Policy, alone int, lands [2]moment) {
	ctx := t.Context()
	s := newSuspended(t, policy)
	land := func(now moment) {
		for store, at := range lands {
			if at == now {
				s.landOn(store)
			}
		}
	}
	answers := s.now.ReadHead(ctx, id)
	chosen := workspace.DecideHead(nil, answers, "", time.Now())
	require.Equal(t, snapshots[1], chosen.Head.Snapshot)
	land(headChosen)

	if alone >= 0 {
		away(s.stores[1-alone])
	}
	fresh := record(2, snapshots[1])
	fresh.Node = "node-2"
	require.NoError(t, s.now.RecordInstance(ctx, fresh))
	s.stores[0].Clear()
	s.stores[1].Clear()
	known := &workspace.Commit{WorkspaceID: id, Token: 2, Snapshot: snapshots[1]}
	s.requireHead(known, snapshots[1], "recorded")
	land(recorded)
	s.requireHead(known, snapshots[1], "the old commit is there before the first snapshot")

	// What it does next is refused.
	require.ErrorIs(t, s.old.Commit(ctx, commit(1, 3, snapshots[2]), nil), catalog.ErrStale)

	first := commit(2, 1, snapshots[3])
	require.NoError(t, s.now.Commit(ctx, first, nil))
	s.requireHead(&first, snapshots[3], "the first snapshot")
	land(firstSnapshot)
	s.requireHead(&first, snapshots[3], "the old commit is there after the first snapshot")

	// It has a higher sequence than the new instance's only one, and its time is the same. A higher one changes nothing.
	second := commit(2, 2, snapshots[0])
	require.NoError(t, s.now.Commit(ctx, second, nil))
	land(secondSnapshot)
	s.requireHead(&second, snapshots[0], "two snapshots")

	// Stores that are brought up to date say so alike.
	_, err := s.now.Repair(ctx, id, "atlas")
	require.NoError(t, err)
	for _, answer := range s.now.ReadHead(ctx, id).Providers {
		require.Empty(t, answer.Error)
		require.Equal(t, snapshots[0], answer.Head.Snapshot)
	}
	history, err := s.now.Alike(ctx, id, nil)
	require.NoError(t, err)
	require.Equal(t, snapshots[0], history.Head)
	commits, _, failed := s.now.Commits(ctx, id)
	require.Empty(t, failed)
	// What landed is not lost, either: it is in the history, and a person can go back to it.
	var listed []string
	for _, c := range commits {
		listed = append(listed, c.Snapshot)
	}
	require.Equal(t, lands != [2]moment{never, never}, strings.Contains(strings.Join(listed, " "), snapshots[2]), listed)
	for store, at := range lands {
		if at == never {
			close(s.land[store]) // so that its goroutine ends
		}
	}
	<-s.done
}
