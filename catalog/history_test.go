package catalog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

func commitKeyOf(token, sequence uint64) string {
	return fmt.Sprintf("catalog/workspaces/%s/commits/%020d/%020d.json", id, token, sequence)
}

// Invariant 3: what is asked for, the head and the bases that matter, in order; what does not exist is left out.
func TestAlike(t *testing.T) {
	ctx := t.Context()
	c, a, _ := stores(storage.PolicyAny)
	empty, err := c.Alike(ctx, id, []catalog.CommitKey{{Token: 1, Sequence: 1}})
	require.NoError(t, err)
	require.Equal(t, catalog.History{}, empty)

	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	for sequence := uint64(1); sequence <= 40; sequence++ {
		require.NoError(t, c.Commit(ctx, commit(1, sequence, snapshots[sequence%3]), nil))
	}
	require.NoError(t, c.RecordInstance(ctx, record(2, snapshots[3])))
	based, err := c.Alike(ctx, id, []catalog.CommitKey{{Token: 1, Sequence: 7}, {Token: 1, Sequence: 3}, {Token: 1, Sequence: 99}, {Token: 7, Sequence: 1}})
	require.NoError(t, err)
	require.Equal(t, catalog.History{
		Token: 2, Head: snapshots[3], Bases: []string{snapshots[3]},
		Commits: []workspace.Commit{commit(1, 3, snapshots[0]), commit(1, 7, snapshots[1])},
	}, based)
	before := a.Calls(faulty.Get)
	newest, err := c.Alike(ctx, id, nil)
	require.NoError(t, err)
	require.Equal(t, catalog.History{Token: 2, Head: snapshots[3], Bases: []string{snapshots[3]}}, newest)
	require.Equal(t, 1, a.Calls(faulty.Get)-before, "what was not asked for is not read")

	require.NoError(t, c.Commit(ctx, commit(2, 1, snapshots[1]), nil))
	require.NoError(t, c.Commit(ctx, commit(2, 2, snapshots[2]), nil))
	headed, err := c.Alike(ctx, id, []catalog.CommitKey{{Token: 2, Sequence: 1}})
	require.NoError(t, err)
	require.Equal(t, snapshots[2], headed.Head)
	require.Equal(t, []workspace.Commit{commit(2, 1, snapshots[1]), commit(2, 2, snapshots[2])}, headed.Commits)

	require.NoError(t, c.RecordInstance(ctx, record(3, snapshots[1])))
	older, err := c.Alike(ctx, id, []catalog.CommitKey{{Token: 1, Sequence: 3}})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{snapshots[1], snapshots[3]}, older.Bases, "of every instance since")
}

// Whatever the policy is, one store that does not answer, or says anything else, is enough for no answer.
func TestNotAlike(t *testing.T) {
	ctx := t.Context()
	asked := []catalog.CommitKey{{Token: 2, Sequence: 1}, {Token: 1, Sequence: 1}}
	for name, test := range map[string]struct {
		spoil  func(c *catalog.Catalog, a, b *faulty.Provider)
		differ bool
	}{
		"away":               {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) { away(b) }},
		"the other one away": {spoil: func(_ *catalog.Catalog, a, _ *faulty.Provider) { away(a) }},
		"an object cannot be read": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			b.Inject(faulty.Rule{Op: faulty.Get, Match: func(key string) bool { return key == commitKeyOf(1, 1) }, Kind: faulty.Error})
		}},
		"a commit that was asked for is missing": {spoil: func(_ *catalog.Catalog, a, _ *faulty.Provider) {
			require.NoError(t, a.Delete(ctx, commitKeyOf(1, 1)))
		}, differ: true},
		"a commit of the newest instance is missing": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			require.NoError(t, b.Delete(ctx, commitKeyOf(2, 2)))
		}, differ: true},
		"the head is missing": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			require.NoError(t, b.Delete(ctx, commitKeyOf(2, 3)))
		}, differ: true},
		"a commit says something else": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			require.NoError(t, b.Delete(ctx, commitKeyOf(2, 1)))
			require.NoError(t, catalog.New([]storage.Provider{b}, storage.PolicyAll).Commit(ctx, commit(2, 1, snapshots[3]), nil))
		}, differ: true},
		"a newer instance on one store": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			require.NoError(t, catalog.New([]storage.Provider{b}, storage.PolicyAll).RecordInstance(ctx, record(3, "")))
		}, differ: true},
		"an older instance missing on one store": {spoil: func(_ *catalog.Catalog, a, _ *faulty.Provider) {
			require.NoError(t, a.Delete(ctx, fmt.Sprintf("catalog/workspaces/%s/instances/%020d.json", id, 1)))
		}, differ: true},
		"nothing at all on one store": {spoil: func(_ *catalog.Catalog, _, b *faulty.Provider) {
			var keys []string
			require.NoError(t, b.List(ctx, "", func(object storage.Object) error { keys = append(keys, object.Key); return nil }))
			for _, key := range keys {
				require.NoError(t, b.Delete(ctx, key))
			}
		}, differ: true},
	} {
		t.Run(name, func(t *testing.T) {
			c, a, b := stores(storage.PolicyAny)
			require.NoError(t, c.RecordInstance(ctx, record(1, "")))
			require.NoError(t, c.Commit(ctx, commit(1, 1, snapshots[0]), nil))
			require.NoError(t, c.RecordInstance(ctx, record(2, snapshots[0])))
			for sequence := uint64(1); sequence <= 3; sequence++ {
				require.NoError(t, c.Commit(ctx, commit(2, sequence, snapshots[sequence]), nil))
			}
			_, err := c.Alike(ctx, id, asked)
			require.NoError(t, err)
			test.spoil(c, a, b)
			history, err := c.Alike(ctx, id, asked)
			require.Error(t, err)
			require.Equal(t, catalog.History{}, history)
			if test.differ {
				require.ErrorIs(t, err, catalog.ErrDiffer)
				if !strings.Contains(name, "something else") && !strings.Contains(name, "nothing at all") {
					_, err := c.Repair(ctx, id, "atlas")
					require.NoError(t, err)
					_, err = c.Alike(ctx, id, asked)
					require.NoError(t, err, "a repair mends what is missing")
				}
			} else {
				require.NotErrorIs(t, err, catalog.ErrDiffer)
			}
		})
	}
}

// A store that mixed up its objects, alike on both, is damaged, and says nothing of what is newest.
func TestAlikeAndDamaged(t *testing.T) {
	ctx := t.Context()
	c, a, b := stores(storage.PolicyAll)
	require.NoError(t, c.RecordInstance(ctx, record(1, "")))
	for _, p := range []*faulty.Provider{a, b} {
		_, err := p.Put(ctx, commitKeyOf(1, 5), []byte(`{"workspace_id":"`+id+`","token":1,"sequence":4,"snapshot":"x"}`), storage.PutOptions{})
		require.NoError(t, err)
	}
	_, err := c.Alike(ctx, id, nil)
	require.ErrorIs(t, err, catalog.ErrDamaged)
}
