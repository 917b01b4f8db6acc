package activities

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/dataport"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// readsWithin has a person fetch and list a snapshot, on a clock of its own, while the first of two stores is as it is, and returns how
// long each took. The policy requires both, of a write.
func readsWithin(t *testing.T, broken func(*faulty.Provider)) (download, list time.Duration) {
	t.Helper()
	r := newRig(t, storage.PolicyAll)
	input := r.stopped(1)
	broken(r.stores[0])
	synctest.Test(t, func(t *testing.T) {
		var stores []storage.Provider
		for _, store := range r.stores {
			circuited := storage.WithCircuit(store, storage.CircuitOptions{})
			defer func() { require.NoError(t, circuited.Close()) }()
			stores = append(stores, circuited)
		}
		all := catalog.New(stores, storage.PolicyAll)
		r.node.Catalog, r.node.Stores = all, storage.MirrorOptions{}
		r.control.Catalog, r.control.Stores = all, storage.MirrorOptions{}

		began := time.Now()
		var tar bytes.Buffer
		claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Verb: dataport.VerbDownload, Snapshot: input.Snapshot, Sealed: input.Target.Sealed}
		var told dataport.DownloadInfo
		require.NoError(t, r.node.Download(t.Context(), claims, dataport.DownloadRequest{}, func(info dataport.DownloadInfo) (io.Writer, error) {
			told = info
			return &tar, nil
		}))
		require.Equal(t, input.Snapshot, told.Snapshot)
		require.Contains(t, tar.String(), "what a person wrote")
		download = time.Since(began)

		began = time.Now()
		commits, _, failed := all.CommitsToShow(t.Context(), id)
		require.Len(t, commits, 1)
		require.Len(t, failed, 1)
		infos, unseen, err := r.control.stored(t.Context(), id)
		require.NoError(t, err)
		require.Error(t, unseen, "that not all was seen is said")
		require.Equal(t, input.Snapshot, infos[0].ID)
		list = time.Since(began)
	})
	return download, list
}

// Who fetches a snapshot that one store has does not wait for another one that says nothing, or fails, whatever the policy requires of a
// write: it costs the time in which that is noticed, once.
func TestReadsDoNotWaitForADeadStore(t *testing.T) {
	for name, broken := range map[string]func(*faulty.Provider){
		"silent": func(p *faulty.Provider) { p.Inject(faulty.Rule{Kind: faulty.Hang}) },
		"failing": func(p *faulty.Provider) {
			p.Inject(faulty.Rule{Kind: faulty.Error, Err: errors.New("connection refused")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			download, list := readsWithin(t, broken)
			t.Logf("a download took %s, and the list after it %s", download, list)
			require.LessOrEqual(t, download, 2500*time.Millisecond)
			require.LessOrEqual(t, list, 500*time.Millisecond, "it is known by then")
		})
	}
}

// A snapshot that the store which answers lacks is waited for, as long as another may have it, and is not said not to be there.
func TestReadWaitsForTheStoreThatMayHaveIt(t *testing.T) {
	for name, lacks := range map[string]string{"the repository": "", "the snapshot alone": "/snapshots/"} {
		t.Run(name, func(t *testing.T) { readWaits(t, workspace.RepositoryPrefix(id)+lacks) })
	}
}

func readWaits(t *testing.T, lacks string) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	deleted := 0
	for _, key := range r.inner[0].Keys() { // it is on the second store alone
		if strings.HasPrefix(key, lacks) {
			require.NoError(t, r.inner[0].Delete(t.Context(), key))
			deleted++
		}
	}
	require.Positive(t, deleted)
	ofIt := func(key string) bool { return strings.HasPrefix(key, workspace.RepositoryPrefix(id)) }
	synctest.Test(t, func(t *testing.T) {
		// The second takes longer than anybody waits for a store that nobody needs.
		r.stores[1].Inject(faulty.Rule{Match: ofIt, Kind: faulty.Slow, Delay: 2500 * time.Millisecond})
		var stores []storage.Provider
		for _, store := range r.stores {
			circuited := storage.WithCircuit(store, storage.CircuitOptions{})
			defer func() { require.NoError(t, circuited.Close()) }()
			stores = append(stores, circuited)
		}
		r.node.Catalog, r.node.Stores = catalog.New(stores, storage.PolicyAll), storage.MirrorOptions{}
		var tar bytes.Buffer
		claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Verb: dataport.VerbDownload, Snapshot: input.Snapshot, Sealed: input.Target.Sealed}
		require.NoError(t, r.node.Download(t.Context(), claims, dataport.DownloadRequest{}, func(dataport.DownloadInfo) (io.Writer, error) { return &tar, nil }))
		require.Contains(t, tar.String(), "what a person wrote")
	})
}
