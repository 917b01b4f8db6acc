package catalog_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

// TestChoose goes through policies, what was recorded before, and settings; whatever was chosen is what everybody finds.
func TestChoose(t *testing.T) {
	ctx := t.Context()
	const workspaceID = "abcdefghijklmnopqrstuvwxyz" // in part 48 of 100
	var providers []storage.Provider
	var urls []string
	for range 3 {
		p := storagetest.NewMemory()
		providers, urls = append(providers, p), append(urls, p.URL())
	}
	for _, test := range []struct {
		policy  storage.Policy
		percent int
		before  []string // of the newest record; "none" without one
		want    []string // nil: all
	}{
		{storage.PolicyAny, 100, []string{"none"}, nil},
		{storage.PolicyAny, 49, []string{"none"}, nil},
		{storage.PolicyAny, 48, []string{"none"}, urls[:1]},
		{storage.PolicyAny, 0, []string{"none"}, urls[:1]},
		{storage.PolicyAll, 0, []string{"none"}, urls[:1]},
		{storage.Policy{Required: 2}, 0, []string{"none"}, urls[:2]},
		{storage.Policy{Required: 3}, 0, []string{"none"}, nil},
		{storage.PolicyAny, 0, nil, nil},                             // was written to all
		{storage.PolicyAny, 0, urls[:1], urls[:1]},                   // as before
		{storage.PolicyAny, 0, urls[:2], urls[:2]},                   // no copy is given up
		{storage.PolicyAny, 0, urls[2:], []string{urls[0], urls[2]}}, // another order of stores since
		{storage.PolicyAny, 0, urls[1:], nil},                        // all, with the first
		{storage.PolicyAny, 49, urls[:1], nil},                       // grown
		{storage.Policy{Required: 2}, 0, urls[:1], urls[:2]},         // the policy wants more now
	} {
		t.Run(fmt.Sprintf("%s at %d, %d before", test.policy, test.percent, len(test.before)), func(t *testing.T) {
			for _, p := range providers {
				for _, key := range p.(*storagetest.Memory).Keys() {
					require.NoError(t, p.Delete(ctx, key))
				}
			}
			c := catalog.New(providers, test.policy)
			token := uint64(1)
			if len(test.before) == 0 || test.before[0] != "none" {
				require.NoError(t, c.RecordInstance(ctx, workspace.InstanceRecord{WorkspaceID: workspaceID, Name: "atlas", Token: token, Stores: test.before}))
				token++
			}
			got, err := c.Choose(ctx, workspaceID, test.percent)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
			require.NoError(t, c.RecordInstance(ctx, workspace.InstanceRecord{WorkspaceID: workspaceID, Name: "atlas", Token: token, Stores: got}))
			again, err := c.Choose(ctx, workspaceID, test.percent)
			require.NoError(t, err)
			require.Equal(t, got, again)
			stores, err := c.StoresOf(ctx, workspaceID)
			require.NoError(t, err)
			want := test.want
			if want == nil {
				want = urls
			}
			var found []string
			for _, p := range stores {
				found = append(found, p.URL())
			}
			require.Equal(t, want, found)
		})
	}
}

func TestStoresThatAreNotConfigured(t *testing.T) {
	ctx := t.Context()
	here, gone := storagetest.NewMemory(), storagetest.NewMemory()
	c := catalog.New([]storage.Provider{here, storagetest.NewMemory()}, storage.PolicyAny)
	stores, err := c.StoresOf(ctx, "w")
	require.NoError(t, err)
	require.Len(t, stores, 2, "nothing is recorded yet")
	require.NoError(t, c.RecordInstance(ctx, workspace.InstanceRecord{WorkspaceID: "w", Name: "atlas", Token: 1, Stores: []string{gone.URL()}}))
	_, err = c.StoresOf(ctx, "w")
	require.ErrorIs(t, err, catalog.ErrUnknownStore)
	require.ErrorContains(t, err, gone.URL())
	_, err = c.Choose(ctx, "w", 0)
	require.ErrorIs(t, err, catalog.ErrUnknownStore, "it is not forgotten where the snapshots are")
}

// Who reads is not kept waiting by a store that is away, and is not sent to fewer stores than may have what is read.
func TestStoresToRead(t *testing.T) {
	ctx := t.Context()
	for _, policy := range []storage.Policy{storage.PolicyAny, storage.PolicyAll} {
		c, a, b := stores(policy)
		read := func() (urls []string) {
			t.Helper()
			found, err := c.StoresToRead(ctx, id)
			require.NoError(t, err)
			for _, p := range found {
				urls = append(urls, p.URL())
			}
			return urls
		}
		both := []string{a.URL(), b.URL()}
		require.Equal(t, both, read(), "nothing is recorded")
		few := record(1, "")
		few.Stores = both[:1]
		require.NoError(t, c.RecordInstance(ctx, few))
		require.Equal(t, both[:1], read(), "as the record says")
		away(b)
		require.Equal(t, both, read(), "the other may have a newer record")
		away(a)
		require.Equal(t, both, read(), "what is read says what is wrong")
	}
}
