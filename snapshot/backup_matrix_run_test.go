package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// TestBackupMatrix runs every cell: a backup with the fault, then the look at what is stored (invariant 1), and, once the
// fault is gone, what a node does about what is owed. What is said is true: each store that is said to hold the snapshot
// gives back every byte of it by itself.
func TestBackupMatrix(t *testing.T) {
	earlier := matrixScene(t)
	for _, op := range matrixOps {
		for _, way := range matrixWays {
			for _, place := range matrixPlaces {
				if !sensible(op, way) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", op.name, way.name, place), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						time.Sleep(time.Hour) // after the scene
						newMatrixCell(t, earlier, op, way, place).run()
					})
				})
			}
		}
	}
}

// matrixEarlier is a repository on three stores with one snapshot, and its directory, which has changed since.
type matrixEarlier struct {
	dir      string
	source   map[string]string // of the directory as it is now
	archive  string            // the same, as archived gives it
	memories []*storagetest.Memory
	locks    []string // that were seen
}

func matrixScene(t *testing.T) *matrixEarlier {
	t.Helper()
	e := &matrixEarlier{dir: smallSource(t)}
	synctest.Test(t, func(t *testing.T) { // in the time of the cells
		var providers []storage.Provider
		for range 3 {
			e.memories = append(e.memories, storagetest.NewMemory())
			providers = append(providers, e.memories[len(e.memories)-1])
		}
		seen := &lockSeen{Provider: providers[0]}
		providers[0] = seen
		_, err := newTestRepository(t, storage.PolicyAll, providers...).Backup(t.Context(), e.dir, BackupOptions{})
		require.NoError(t, err)
		e.locks = seen.keys
		writeFiles(t, e.dir, map[string][]byte{"new": randomBytes(9, 7000), "d/e/c": []byte("changed")})
		reference := memoryRepository(t)
		result, err := reference.Backup(t.Context(), e.dir, BackupOptions{})
		require.NoError(t, err)
		e.source = treeRecords(t, e.dir)
		e.archive = archived(t, reference, result.Snapshot)
	})
	return e
}

// has reports whether the earlier snapshot needs the object.
func (e *matrixEarlier) has(key string) bool {
	_, err := e.memories[0].Stat(context.Background(), key)
	return err == nil
}

type lockSeen struct {
	storage.Provider
	mu   sync.Mutex
	keys []string
}

func (l *lockSeen) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if strings.HasPrefix(key, lockPrefix) {
		l.mu.Lock()
		l.keys = append(l.keys, key)
		l.mu.Unlock()
	}
	return l.Provider.Put(ctx, key, data, options)
}

// archived is the hash of everything in a snapshot: every byte and all metadata.
func archived(t testing.TB, r *Repository, snapshot string) string {
	t.Helper()
	hash := sha256.New()
	require.NoError(t, r.Dump(t.Context(), snapshot, "/", hash, DumpOptions{}))
	return hex.EncodeToString(hash.Sum(nil))
}

// matrixCell is one run.
type matrixCell struct {
	t        *testing.T
	earlier  *matrixEarlier
	op       matrixOp
	way      matrixWay
	place    matrixPlace
	memories []*storagetest.Memory
	sorters  []*kindSorter
}

func newMatrixCell(t *testing.T, earlier *matrixEarlier, op matrixOp, way matrixWay, place matrixPlace) *matrixCell {
	c := &matrixCell{t: t, earlier: earlier, op: op, way: way, place: place}
	lands := make(chan struct{})
	time.AfterFunc(slowly, func() { close(lands) })
	for i, from := range earlier.memories {
		memory := storagetest.NewMemory()
		atFault := slices.Contains(place.faulty, i)
		for _, key := range from.Keys() {
			if !op.first && !(op.late && atFault && len(place.faulty) < 3) {
				overwrite(t, memory, key, read(t, from, key))
			}
		}
		sorter := &kindSorter{Provider: faulty.New(memory), kinds: map[string]string{}}
		if atFault {
			rule := way.rule
			rule.Op, rule.Until = op.op, lands
			rule.Match = func(key string) bool { return op.kind == "" || sorter.is(key, op.kind) || op.late && earlier.has(key) }
			if rule.Kind == faulty.Hang && rule.Times == 1 && (op.op == faulty.List || op.op == faulty.Any) {
				// Several listings are asked for at once: which of them hangs is the same on every store.
				rule.Match = func(key string) bool { return strings.HasPrefix(key, indexPrefix) }
			}
			sorter.Inject(rule)
		}
		c.memories, c.sorters = append(c.memories, memory), append(c.sorters, sorter)
	}
	return c
}

// with opens the repository as a new process does, with circuits and a mirror of its own, which are gone afterwards.
func (c *matrixCell) with(policy storage.Policy, work func(*storage.Mirror)) {
	var providers []storage.Provider
	for _, sorter := range c.sorters {
		providers = append(providers, storage.WithCircuit(sorter, storage.CircuitOptions{}))
	}
	mirror, err := storage.NewMirror(providers, storage.MirrorOptions{Policy: policy})
	require.NoError(c.t, err)
	work(mirror)
	require.NoError(c.t, mirror.Close())
	for _, p := range providers {
		require.NoError(c.t, p.Close())
	}
}

// backUp makes a backup, and looks at it; took is the time that it took, without the look.
func (c *matrixCell) backUp(policy storage.Policy) (said claim, took time.Duration) {
	c.with(policy, func(mirror *storage.Mirror) {
		began := time.Now()
		r, err := OpenOrCreate(c.t.Context(), mirror, testPassword, testOptions())
		if err != nil {
			said, took = claim{err: err}, time.Since(began)
			return
		}
		for _, sorter := range c.sorters {
			sorter.mu.Lock()
			sorter.repository = r
			sorter.mu.Unlock()
		}
		said.result, said.err = r.Backup(c.t.Context(), c.earlier.dir, BackupOptions{Kind: Final})
		took = time.Since(began)
		if said.err == nil {
			said.outcome, said.err = r.VerifyStored(c.t.Context(), said.result.Snapshot)
		}
		require.NoError(c.t, r.Close())
	})
	return said, took
}

func (c *matrixCell) fired() (sum int) {
	for _, sorter := range c.sorters {
		sum += sorter.Fired()
	}
	return sum
}

func (c *matrixCell) run() {
	t := c.t
	said, took := c.backUp(c.place.policy)
	c.judge(said, took)
	time.Sleep(2 * slowly) // what is late has landed
	c.proveClaim(said)

	// The fault is gone.
	for _, sorter := range c.sorters {
		sorter.Clear()
	}
	if said.err == nil && c.effect() != lies {
		c.with(storage.PolicyAll, func(mirror *storage.Mirror) { // what a node does about what is owed
			_, err := RepairMirror(t.Context(), mirror, nil)
			require.NoError(t, err)
		})
	} else { // a backup is made again
		again, _ := c.backUp(storage.PolicyAll)
		if len(c.place.faulty) == 3 && c.effect() == lies && c.op.first && !(c.op.kind == "config" && c.way.rule.Kind == faulty.NotStored) {
			require.Error(t, again.err, "there is nothing to open it with")
			return
		}
		require.NoError(t, again.err)
		said = again
	}
	for i, memory := range c.memories {
		require.Equal(t, c.earlier.archive, c.alone(i, said.result.Snapshot), "%s, when all has been made good", memory.URL())
	}
}

// alone is what one store gives back of a snapshot, by itself.
func (c *matrixCell) alone(i int, snapshot string) string {
	r := newTestRepository(c.t, storage.PolicyAll, c.memories[i])
	outcome, err := r.VerifyStored(c.t.Context(), snapshot)
	require.NoError(c.t, err)
	require.NoError(c.t, outcome[c.memories[i].URL()])
	return archived(c.t, r, snapshot)
}

// proveClaim restores from each store that is said to hold the snapshot whole, by itself (invariant 1), and from each that
// shows it although it is not.
func (c *matrixCell) proveClaim(said claim) {
	for i, memory := range c.memories {
		shows := said.result != nil && slices.Contains(memory.Keys(), snapshotPrefix+said.result.Snapshot)
		if !said.whole(memory.URL()) && !(shows && c.effect() != lies) {
			continue
		}
		require.Equal(c.t, c.earlier.archive, c.alone(i, said.result.Snapshot), "%s is said to hold everything", memory.URL())
		if errors.Is(c.way.cause, storage.ErrPermission) && c.place.policy.Required == 2 { // a few on a disk, as it is done
			target := filepath.Join(c.t.TempDir(), "target")
			_, err := openAndRestore(c.t.Context(), newTestMirror(c.t, storage.PolicyAll, memory), said.result.Snapshot, target)
			require.NoError(c.t, err)
			compareRecords(c.t, c.earlier.source, treeRecords(c.t, target))
		}
	}
}
