package catalog_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/faulty"
)

// invariant 3: a token counts once it is recorded. A commit of one that is not is refused, and one that is there all the
// same (its record never got to this store, or somebody put it there) is nobody's head.
func TestUnrecordedTokenIsNoHead(t *testing.T) {
	ctx := context.Background()
	c, a, b := stores(storage.PolicyAll)
	stray := func(token uint64) {
		for _, store := range []storage.Provider{a, b} {
			_, err := store.Put(ctx, fmt.Sprintf("catalog/workspaces/%s/commits/%020d/%020d.json", id, token, 1),
				[]byte(fmt.Sprintf(`{"workspace_id":%q,"token":%d,"sequence":1,"snapshot":%q}`, id, token, snapshots[3])), storage.PutOptions{CreateOnly: true})
			require.NoError(t, err)
		}
	}
	require.ErrorIs(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil), catalog.ErrStale)
	stray(7)
	for _, head := range c.ReadHead(ctx, id).Providers {
		require.Empty(t, head.Error)
		require.Zero(t, head.Token)
		require.Nil(t, head.Head)
	}
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	require.NoError(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil))
	require.ErrorIs(t, c.Commit(ctx, commit(2, 1, snapshots[2]), nil), catalog.ErrStale)
	for _, head := range c.ReadHead(ctx, id).Providers {
		require.Equal(t, uint64(1), head.Token)
		require.Equal(t, snapshots[1], head.Head.Snapshot)
	}
}

// invariant 3: what the policy's number of stores did not take is not recorded, also when all of them can be listed.
func TestTooFewStoresTakeARecord(t *testing.T) {
	ctx := context.Background()
	c, _, b := stores(storage.PolicyAll)
	full := func(keys string) {
		b.Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.Error, Err: storage.ErrNoSpace, Match: func(key string) bool { return strings.Contains(key, keys) }})
	}
	full("/instances/")
	require.ErrorContains(t, c.RecordInstance(ctx, record(1, "")), "1 of 2 stores hold")
	b.Clear()
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	full("/commits/")
	require.ErrorContains(t, c.Commit(ctx, commit(1, 1, snapshots[1]), nil), "1 of 2 stores hold")
}

// invariant 3: another record, or commit, of the same token on any store is a conflict, however many others take this one.
func TestConflictOnOneStore(t *testing.T) {
	ctx := context.Background()
	c, _, b := stores(storage.PolicyAny)
	only := catalog.New([]storage.Provider{b}, storage.PolicyAny)
	require.NoError(t, only.RecordInstance(ctx, record(1, snapshots[1])))
	require.ErrorIs(t, c.RecordInstance(ctx, record(1, snapshots[2])), catalog.ErrConflict)
	require.NoError(t, c.RecordInstance(ctx, record(2, "")))
	require.NoError(t, only.Commit(ctx, commit(2, 1, snapshots[1]), nil))
	require.ErrorIs(t, c.Commit(ctx, commit(2, 1, snapshots[2]), nil), catalog.ErrConflict)
}
