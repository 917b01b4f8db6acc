package catalog_test

import (
	"context"
	"errors"
	"fmt"
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

const id = "abcdefghijklmnopqrstuvwxyz"

var snapshots = [...]string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"1111111111111111111111111111111111111111111111111111111111111111",
	"2222222222222222222222222222222222222222222222222222222222222222",
	"3333333333333333333333333333333333333333333333333333333333333333",
}

// stores are two providers that can be made to fail.
func stores(policy storage.Policy) (*catalog.Catalog, *faulty.Provider, *faulty.Provider) {
	a, b := faulty.New(storagetest.NewMemory()), faulty.New(storagetest.NewMemory())
	return catalog.New([]storage.Provider{a, b}, policy), a, b
}

func away(p *faulty.Provider) {
	for _, op := range []faulty.Op{faulty.Put, faulty.Get, faulty.Stat, faulty.List, faulty.Delete} {
		p.Inject(faulty.Rule{Op: op, Kind: faulty.Error, Err: errors.New("lookup: i/o timeout")})
	}
}

func record(token uint64, base string) workspace.InstanceRecord {
	return workspace.InstanceRecord{
		WorkspaceID: id, Name: "atlas", Owner: "ada", Token: token, Node: "node-1", Base: base, Time: time.Unix(int64(token), 0).UTC(),
	}
}

func commit(token, sequence uint64, snapshot string) workspace.Commit {
	return workspace.Commit{WorkspaceID: id, Token: token, Sequence: sequence, Snapshot: snapshot, Kind: "live", Time: time.Unix(1, 0).UTC()}
}

// invariant 3: the head is the commit with the highest sequence of the highest recorded token, else that record's base.
func TestHead(t *testing.T) {
	ctx := context.Background()
	c, _, _ := stores(storage.PolicyAll)
	heads := func() []workspace.ProviderHead { return c.ReadHead(ctx, id).Providers }
	require.Zero(t, heads()[0].Token)

	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	require.NoError(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil))
	require.NoError(t, c.Commit(ctx, commit(1, 2, snapshots[2]), nil))
	for _, head := range heads() {
		require.Equal(t, snapshots[2], head.Head.Snapshot)
	}
	require.NoError(t, c.RecordInstance(ctx, record(2, snapshots[1])))
	for _, head := range heads() {
		require.Nil(t, head.Head)
		require.Equal(t, snapshots[1], head.Base, "the base of the newest instance, although its time and those commits are older")
	}
	// Ten comes after nine, also as keys.
	for token := uint64(3); token <= 10; token++ {
		require.NoError(t, c.RecordInstance(ctx, record(token, snapshots[0])))
	}
	require.Equal(t, uint64(10), heads()[0].Token)
}

// A12, invariants 3 and 7: what an older token writes never becomes the head.
func TestOlderTokenNeverCommits(t *testing.T) {
	ctx := context.Background()
	c, _, _ := stores(storage.PolicyAll)
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	require.NoError(t, c.RecordInstance(ctx, record(2, snapshots[0])))
	require.ErrorIs(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil), catalog.ErrStale)
	require.ErrorIs(t, c.RecordInstance(ctx, record(1, "")), catalog.ErrStale)

	// A node that was suspended between its look and its write: the commit lands, and nobody follows it.
	_, err := c.Providers()[0].Put(ctx, "catalog/workspaces/"+id+"/commits/00000000000000000001/00000000000000000001.json",
		[]byte(fmt.Sprintf(`{"token":1,"sequence":1,"snapshot":%q}`, snapshots[3])), storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	require.Equal(t, snapshots[0], c.ReadHead(ctx, id).Providers[0].Base)
}

// invariant 8: a lost answer is recognised; another object under the same key is a conflict.
func TestCreateOnly(t *testing.T) {
	ctx := context.Background()
	c, a, _ := stores(storage.PolicyAll)
	a.Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.LostAnswer, Times: 10})
	_ = c.RecordInstance(ctx, record(1, ""))
	a.Clear()
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	changed := record(1, "")
	changed.Base = snapshots[1]
	require.ErrorIs(t, c.RecordInstance(ctx, changed), catalog.ErrConflict)
	require.NoError(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil))
	require.NoError(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil))
	require.ErrorIs(t, c.Commit(ctx, commit(1, 1, snapshots[2]), nil), catalog.ErrConflict)
}

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	all, _, b := stores(storage.PolicyAll)
	away(b)
	err := all.RecordInstance(ctx, record(1, ""))
	require.Error(t, err)
	require.True(t, storage.Retryable(err), "%v", err)

	any, a, b := stores(storage.PolicyAny)
	away(b)
	_, err = catalog.New([]storage.Provider{a}, storage.PolicyAll).CreateControl(ctx, catalog.Control{Recipient: "age1control"})
	require.NoError(t, err)
	require.NoError(t, any.RecordInstance(ctx, record(1, "")))
	require.NoError(t, any.Commit(ctx, commit(1, 1, snapshots[1]), nil))
	answers := any.ReadHead(ctx, id).Providers
	require.Equal(t, snapshots[1], answers[0].Head.Snapshot)
	require.Contains(t, answers[1].Error, "i/o timeout")
	b.Clear()
	report, err := any.Repair(ctx, id, "atlas")
	require.NoError(t, err)
	require.Equal(t, 4, report.Copied[b.URL()])
	require.Equal(t, snapshots[1], any.ReadHead(ctx, id).Providers[1].Head.Snapshot)

	// What was late is now enough by itself: the name leads to the workspace, and the keys open its environment.
	late := catalog.New([]storage.Provider{b}, storage.PolicyAll)
	found, err := late.FindID(ctx, "atlas")
	require.NoError(t, err)
	require.Equal(t, id, found)
	control, err := late.Control(ctx)
	require.NoError(t, err)
	require.Equal(t, "age1control", control.Recipient)

	_, err = a.Put(ctx, "catalog/names/atlas/"+id+".json", []byte("{}"), storage.PutOptions{})
	require.NoError(t, err)
	_, err = any.Repair(ctx, id, "atlas")
	require.ErrorIs(t, err, catalog.ErrConflict)
}

// What no waiting mends shows as such when it is all that keeps the policy from being met; while another store may only
// be away it is named, and waited for.
func TestPermanentCauses(t *testing.T) {
	ctx := context.Background()
	for _, test := range []struct {
		policy  storage.Policy
		a, b    error
		waiting bool
	}{
		{storage.PolicyAll, nil, storage.ErrPermission, false},
		{storage.PolicyAny, storage.ErrBucketNotFound, storage.ErrPermission, false},
		{storage.PolicyAny, errors.New("connection refused"), storage.ErrPermission, true},
		{storage.PolicyAll, errors.New("connection refused"), nil, true},
	} {
		c, a, b := stores(test.policy)
		if test.a != nil {
			a.Inject(faulty.Rule{Err: test.a})
		}
		if test.b != nil {
			b.Inject(faulty.Rule{Err: test.b})
		}
		err := c.Commit(ctx, commit(1, 1, snapshots[1]), nil)
		require.Equal(t, test.waiting, storage.Retryable(err), "%v", err)
		require.Equal(t, test.waiting, errors.Is(err, catalog.ErrTooFew), "%v", err)
		for _, cause := range []error{test.a, test.b} {
			if cause != nil {
				require.ErrorContains(t, err, cause.Error())
			}
		}
	}
}

// No provider's silence is taken for "there is none".
func TestPasswordIsMadeOnce(t *testing.T) {
	ctx := context.Background()
	c, a, b := stores(storage.PolicyAny)
	away(a)
	_, err := c.CreatePassword(ctx, catalog.Password{WorkspaceID: id, Wrapped: []byte("one")})
	require.Error(t, err)
	a.Clear()

	var wait sync.WaitGroup
	made := make([]catalog.Password, 8)
	for i := range made {
		wait.Add(1)
		go func() {
			defer wait.Done()
			var err error
			made[i], err = c.CreatePassword(ctx, catalog.Password{WorkspaceID: id, Wrapped: []byte(fmt.Sprint(i))})
			require.NoError(t, err)
		}()
	}
	wait.Wait()
	for _, password := range made {
		require.Equal(t, made[0], password)
	}
	away(a)
	fromB, err := c.Password(ctx, id)
	require.NoError(t, err)
	require.Equal(t, made[0], fromB)
	b.Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.WrongBytes})
	_, err = c.Password(ctx, id)
	require.Error(t, err)
	require.False(t, errors.Is(err, storage.ErrNotFound), "%v", err)
}

func TestPlacementsAndNames(t *testing.T) {
	ctx := context.Background()
	c, _, _ := stores(storage.PolicyAll)
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	found, err := c.FindID(ctx, "atlas")
	require.NoError(t, err)
	require.Equal(t, id, found)
	placements, err := c.Placements(ctx, "node-1")
	require.NoError(t, err)
	require.Equal(t, []catalog.Placement{{WorkspaceID: id, Token: 1}}, placements)
	require.NoError(t, c.ReleasePlacement(ctx, "node-1", id, 1))
	require.NoError(t, c.ReleasePlacement(ctx, "node-1", id, 1))
	placements, err = c.Placements(ctx, "node-1")
	require.NoError(t, err)
	require.Empty(t, placements)

	_, err = c.Providers()[0].Put(ctx, "workspaces/"+id+"/config", []byte("x"), storage.PutOptions{})
	require.NoError(t, err)
	require.Error(t, c.DiscardRepository(ctx, id, "workspaces/"+id), "only after it was recorded as deleted")
	require.NoError(t, c.RecordDeleted(ctx, id, "atlas", 1, "ada"))
	require.NoError(t, c.DiscardRepository(ctx, id, "workspaces/"+id))
	_, err = c.Providers()[0].Stat(ctx, "workspaces/"+id+"/config")
	require.ErrorIs(t, err, storage.ErrNotFound)
	_, err = c.FindID(ctx, "atlas")
	require.ErrorIs(t, err, storage.ErrNotFound)
}

// While a store is away nobody can tell whether a workspace was deleted; the password of the only one that ever had the
// name is needed then most of all.
func TestFindIDWithAStoreAway(t *testing.T) {
	ctx := context.Background()
	c, a, _ := stores(storage.PolicyAny)
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	for _, op := range []faulty.Op{faulty.Get, faulty.Stat, faulty.List} {
		a.Inject(faulty.Rule{Op: op, Kind: faulty.Error})
	}
	found, err := c.FindID(ctx, "atlas")
	require.NoError(t, err)
	require.Equal(t, id, found)
	_, err = c.FindID(ctx, "never")
	require.Error(t, err)
	require.NotErrorIs(t, err, storage.ErrNotFound)
}

// A2: what one provider is enough for is done without the other that is away: it is asked once each time, so that it is
// heard when it is back, and nobody waits while it is tried again. Its silence is never taken for "there is none".
func TestDeadProvider(t *testing.T) {
	for name, kind := range map[string]faulty.Kind{"failing": faulty.Error, "silent": faulty.Hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			const never = 24 * time.Hour
			a, b := faulty.New(storagetest.NewMemory()), storagetest.NewMemory()
			guarded := storage.WithCircuit(a, storage.CircuitOptions{After: time.Nanosecond, Patience: 20 * time.Millisecond, ProbeAfter: never})
			defer guarded.Close()
			c := catalog.New([]storage.Provider{guarded, b}, storage.PolicyAny)
			c.AnswerWithin(never)
			require.NoError(t, c.RecordInstance(ctx, record(1, "")))
			_, err := c.CreatePassword(ctx, catalog.Password{WorkspaceID: id, Wrapped: []byte("one")})
			require.NoError(t, err)
			a.Inject(faulty.Rule{Kind: kind})
			for range 3 { // until it is found out
				_, _ = c.NewestToken(ctx, id)
			}
			require.ErrorIs(t, storage.Away(guarded), storage.ErrAway)

			asked := a.Calls(faulty.Any)
			require.NoError(t, c.RecordInstance(ctx, record(2, "")))
			require.NoError(t, c.Commit(ctx, commit(2, 1, snapshots[1]), nil))
			require.Equal(t, asked+6, a.Calls(faulty.Any), "two looks and four objects")
			heads := c.ReadHead(ctx, id).Providers
			require.NotEmpty(t, heads[0].Error)
			require.Equal(t, snapshots[1], heads[1].Head.Snapshot)
			password, err := c.Password(ctx, id)
			require.NoError(t, err)
			require.Equal(t, []byte("one"), password.Wrapped)
			found, err := c.FindID(ctx, "atlas")
			require.NoError(t, err)
			require.Equal(t, id, found)
			commits, holders, failed := c.Commits(ctx, id)
			require.Len(t, commits, 1)
			require.Equal(t, []string{b.URL()}, holders[snapshots[1]])
			require.ErrorIs(t, failed[guarded.URL()], storage.ErrAway)
			_, err = c.Placements(ctx, "node-1")
			require.ErrorContains(t, err, guarded.URL(), "it may know of more")
			_, err = c.Instance(ctx, id, 7)
			require.Error(t, err)
			require.NotErrorIs(t, err, storage.ErrNotFound)
			require.True(t, storage.Retryable(err))

			// It is back, and nobody has noticed: what is written now reaches it, and what it knows is heard.
			a.Clear()
			require.Eventually(t, func() bool { // it has a moment, which a busy machine may not give it at once
				return c.RecordInstance(ctx, record(3, snapshots[1])) == nil && c.ReadHead(ctx, id).Providers[0].Token == 3
			}, 30*time.Second, time.Millisecond)
		})
	}
}

// With the policy "all" a provider that is away is waited for as if nothing were known of it.
func TestDeadProviderThatIsNeeded(t *testing.T) {
	ctx := context.Background()
	a, b := faulty.New(storagetest.NewMemory()), storagetest.NewMemory()
	guarded := storage.WithCircuit(a, storage.CircuitOptions{After: time.Nanosecond, ProbeAfter: 24 * time.Hour})
	defer guarded.Close()
	c := catalog.New([]storage.Provider{guarded, b}, storage.PolicyAll)
	a.Inject(faulty.Rule{Times: 3})
	for range 3 {
		_, err := c.NewestToken(ctx, id)
		require.ErrorIs(t, err, catalog.ErrTooFew)
	}
	require.ErrorIs(t, storage.Away(guarded), storage.ErrAway)
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	require.NoError(t, storage.Away(guarded))
	require.Equal(t, uint64(1), c.ReadHead(ctx, id).Providers[0].Token)
}

// A provider that takes the question and never answers does not keep the others' answers from counting.
func TestSilentProvider(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c, a, _ := stores(storage.PolicyAny)
	c.AnswerWithin(2 * time.Second) // the other one has to answer within it, on a busy machine too
	for _, op := range []faulty.Op{faulty.Put, faulty.Get, faulty.Stat, faulty.List} {
		a.Inject(faulty.Rule{Op: op, Kind: faulty.Hang})
	}
	done := make(chan error, 1)
	go func() { done <- c.RecordInstance(ctx, record(1, "")) }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(3 * time.Minute):
		t.Fatal("a silent provider holds up the other")
	}
}
