package snapshot

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// faultWay is one way in which a provider fails a request for an object.
type faultWay struct {
	name string
	rule faulty.Rule
	// lie: success is said, of a write too.
	lie bool
	// kept: a write is done nevertheless.
	kept bool
	// causes are what is to be found, one of them, in the error of a read that fails in this way everywhere.
	causes []error
}

// faultWays are those of the incident of seed 004, and their relatives.
var faultWays = []faultWay{
	{name: "not found", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrNotFound}, causes: []error{storage.ErrNotFound, ErrDamaged}},
	{name: "truncated", rule: faulty.Rule{Kind: faulty.Truncate}, lie: true, causes: []error{ErrDamaged, io.ErrUnexpectedEOF}},
	{name: "wrong bytes", rule: faulty.Rule{Kind: faulty.WrongBytes}, lie: true, causes: []error{ErrDamaged}},
	{name: "wrong length", rule: faulty.Rule{Kind: faulty.WrongLength}, lie: true, causes: []error{ErrDamaged, io.ErrUnexpectedEOF}},
	{name: "hang", rule: faulty.Rule{Kind: faulty.Hang}, causes: []error{storage.ErrStalled}},
	{name: "reset", rule: faulty.Rule{Kind: faulty.Reset}, causes: []error{syscall.ECONNRESET}},
	{name: "500", rule: faulty.Rule{Kind: faulty.Error}, causes: []error{faulty.ErrInjected}},
	{name: "403", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrPermission}, causes: []error{storage.ErrPermission}},
	{name: "success without storing", rule: faulty.Rule{Kind: faulty.NotStored}, lie: true},
	{name: "lost answer", rule: faulty.Rule{Kind: faulty.LostAnswer}, kept: true, causes: []error{faulty.ErrInjected}},
}

// objectKinds are the kinds of object of a repository.
var objectKinds = []string{"config", "key", "index", "snapshot", "tree pack", "data pack"}

var faultPlaces = []string{"primary", "secondary", "both"}

// faultyAt reports whether the provider with this number is one that fails.
func faultyAt(where string, i int) bool { return where == "both" || (where == "primary") == (i == 0) }

// limit is how long a provider that fails in this way may be silent. Only one that hangs is given up on for its silence:
// on a busy machine it might be one that is well.
func (w faultWay) limit() time.Duration {
	if w.rule.Kind == faulty.Hang {
		return time.Second
	}
	return time.Hour
}

// limitedMirror gives up on a provider that is silent for so long.
func limitedMirror(t testing.TB, policy storage.Policy, limit time.Duration, providers ...storage.Provider) *storage.Mirror {
	t.Helper()
	m, err := storage.NewMirror(providers, storage.MirrorOptions{Policy: policy, RetryFor: -1, StallTimeout: limit, LagTimeout: limit})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// kindSorter tells a provider's rules what kind of object a key is that is being stored: a pack's name does not say it.
type kindSorter struct {
	*faulty.Provider
	mu         sync.Mutex
	repository *Repository // set before packs are stored
	kinds      map[string]string
}

func (s *kindSorter) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	s.mu.Lock()
	if id, ok := parsePackKey(key); ok && s.repository != nil {
		blobs, err := (&checker{repository: s.repository}).headerOf(id, data)
		if err == nil {
			s.kinds[key] = blobs[0].location.kind.String() + " pack"
		}
	}
	s.mu.Unlock()
	return s.Provider.Put(ctx, key, data, options)
}

func (s *kindSorter) is(key, kind string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kinds[key] == kind || objectKind(key) == kind
}

// objectKind is what a key says of its object; "" for a pack.
func objectKind(key string) string {
	for kind, prefix := range map[string]string{"config": configKey, "key": keyPrefix, "index": indexPrefix, "snapshot": snapshotPrefix, "lock": lockPrefix} {
		if strings.HasPrefix(key, prefix) {
			return kind
		}
	}
	return ""
}

// claim is what a backup says in the end: the providers that hold everything of the snapshot, after a separate look
// (invariant 1). Nothing else lets content go.
type claim struct {
	result  *BackupResult
	outcome map[string]error
	err     error // of whatever failed as a whole
}

func (c claim) whole(url string) bool {
	err, looked := c.outcome[url]
	return c.err == nil && looked && err == nil && !slices.Contains(c.result.Owed, url)
}

func backUpAndLook(t testing.TB, mirror *storage.Mirror, dir string, opened func(*Repository)) (c claim) {
	t.Helper()
	r, err := OpenOrCreate(t.Context(), mirror, testPassword, testOptions())
	if err != nil {
		return claim{err: err}
	}
	defer r.Close()
	opened(r)
	if c.result, c.err = r.Backup(t.Context(), dir, BackupOptions{Kind: Final}); c.err == nil {
		c.outcome, c.err = r.VerifyStored(t.Context(), c.result.Snapshot)
	}
	return c
}

// requireClaimTrue restores the snapshot from each provider that is said to hold it whole, by itself.
func requireClaimTrue(t *testing.T, c claim, source map[string]string, memories ...*storagetest.Memory) {
	t.Helper()
	for _, memory := range memories {
		if !c.whole(memory.URL()) {
			continue
		}
		target := filepath.Join(t.TempDir(), "target")
		_, err := openAndRestore(t.Context(), newTestMirror(t, storage.PolicyAll, memory), c.result.Snapshot, target)
		require.NoError(t, err, "%s is said to hold everything", memory.URL())
		compareRecords(t, source, treeRecords(t, target))
	}
}

// smallSource is a directory with a little of everything.
func smallSource(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	writeFiles(t, dir, map[string][]byte{
		"a": randomBytes(1, 9000), "d/b": randomBytes(2, 5000), "d/e/c": []byte("c"), "empty": nil, "d/same": randomBytes(1, 9000),
		"still/f": []byte("as it was"),
	})
	return dir
}
