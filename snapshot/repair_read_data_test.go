package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// twoAlike is a repository on two stores whose listings have no checksums, with one object of each kind.
func twoAlike(t *testing.T) (first, second storage.Provider, keys map[string]string, snapshot string) {
	t.Helper()
	base := t.TempDir()
	first, second = openDirectory(t, filepath.Join(base, "first")), openDirectory(t, filepath.Join(base, "second"))
	r := newTestRepository(t, storage.PolicyAll, first, second)
	result, err := r.Backup(t.Context(), smallSource(t), BackupOptions{})
	require.NoError(t, err)
	keys = map[string]string{}
	for _, key := range allKeys(t, first) {
		if kind := objectKind(key); kind != "" {
			keys[kind] = key
		}
	}
	r.eachBlob(func(b packedBlob) bool {
		keys[b.location.kind.String()+" pack"] = packKey(b.location.pack)
		return true
	})
	require.Len(t, keys, len(objectKinds))
	return first, second, keys, result.Snapshot
}

func spoil(t *testing.T, p storage.Provider, key string) (damaged []byte) {
	t.Helper()
	data := read(t, p, key)
	damaged = flip(data, len(data)/2)
	overwrite(t, p, key, damaged)
	return damaged
}

func requireAlike(t *testing.T, first, second storage.Provider) {
	t.Helper()
	require.Equal(t, allKeys(t, first), allKeys(t, second))
	for _, key := range allKeys(t, first) {
		require.Equal(t, read(t, first, key), read(t, second, key), key)
	}
}

// TestRepairReadsEveryCopy: a copy that is damaged and has its size, of whatever kind and on whichever store, is replaced from
// the other one; stock restic finds nothing wrong in either afterwards. Without ReadData nobody looks.
func TestRepairReadsEveryCopy(t *testing.T) { eachRestic(t, testRepairReadsEveryCopy) }

func testRepairReadsEveryCopy(t *testing.T, version resticVersion) {
	restic := version.path
	first, second, keys, snapshot := twoAlike(t)
	whole := map[string][]byte{}
	for _, key := range keys {
		whole[key] = read(t, first, key)
	}
	for kind, key := range keys {
		for i, p := range []storage.Provider{first, second} {
			damaged := spoil(t, p, key)
			r := newTestRepository(t, storage.PolicyAll, first, second)
			found, err := r.Check(t.Context(), CheckOptions{ReadData: true})
			require.NoError(t, err)
			require.Len(t, found.Damage, 1)
			require.Equal(t, kind != "config", found.Damage[0].Stores[0].Hidden, "what only a repair that reads finds")
			if kind != "config" { // which is read in any case
				report, err := r.Repair(t.Context(), RepairOptions{})
				require.NoError(t, err)
				require.Zero(t, report.Replaced)
				require.Equal(t, damaged, read(t, p, key))
			}
			var last storage.RepairProgress
			report, err := r.Repair(t.Context(), RepairOptions{ReadData: kind != "config", Progress: func(now storage.RepairProgress) { last = now }})
			require.NoError(t, err, "%s on %d", kind, i)
			require.Equal(t, 1, report.Replaced, "%s on %d", kind, i)
			require.Equal(t, map[string]int{p.URL(): 1}, report.Copied)
			require.Equal(t, whole[key], read(t, p, key))
			require.Equal(t, last.Total, last.Done)
		}
	}
	// All at once, half of them here and half there.
	for i, kind := range objectKinds {
		spoil(t, []storage.Provider{first, second}[i%2], keys[kind])
	}
	report, err := newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{ReadData: true})
	require.NoError(t, err)
	require.Equal(t, len(objectKinds), report.Replaced)
	requireAlike(t, first, second)
	for _, p := range []storage.Provider{first, second} {
		whole, err := newTestRepository(t, storage.PolicyAll, p).Check(t.Context(), CheckOptions{ReadData: true})
		require.NoError(t, err)
		require.Empty(t, whole.Errors)
		stock(t, restic, strings.TrimPrefix(p.URL(), "file://"), "", "check", "--read-data")
		stock(t, restic, strings.TrimPrefix(p.URL(), "file://"), "", "ls", snapshot)
	}
	report, err = newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{ReadData: true})
	require.NoError(t, err)
	require.Empty(t, report.Copied)
}

// TestRepairNeverSpreadsDamage: what is damaged everywhere stays as it is, byte for byte, and is named; what else is damaged is
// replaced all the same, but nothing is copied that would promise the lost.
func TestRepairNeverSpreadsDamage(t *testing.T) {
	first, second, keys, snapshot := twoAlike(t)
	lost := keys["data pack"]
	one := spoil(t, first, lost)
	other := flip(read(t, second, lost), 3)
	overwrite(t, second, lost, other)
	spoil(t, second, keys["index"])
	spoil(t, first, keys["tree pack"])
	require.NoError(t, second.Delete(t.Context(), snapshotPrefix+snapshot))
	report, err := newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{ReadData: true})
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, lost)
	require.Equal(t, []string{lost}, report.Lost)
	require.Equal(t, 2, report.Replaced)
	require.Equal(t, one, read(t, first, lost))
	require.Equal(t, other, read(t, second, lost))
	require.NotContains(t, allKeys(t, second), snapshotPrefix+snapshot)
}

// TestRepairKeepsTheDamagedUntilTheGoodIsWritten: nothing is deleted; a store that does not take the good copy keeps what it
// has, and the next repair mends it.
func TestRepairKeepsTheDamagedUntilTheGoodIsWritten(t *testing.T) {
	for _, way := range []faulty.Rule{{Kind: faulty.Error, Err: storage.ErrPermission}, {Kind: faulty.Reset}, {Kind: faulty.LostAnswer}} {
		t.Run(fmt.Sprint(way.Kind), func(t *testing.T) {
			first, second, keys, _ := twoAlike(t)
			good := read(t, first, keys["data pack"])
			damaged := spoil(t, second, keys["data pack"])
			watched := faulty.New(second)
			objects := func(key string) bool { return !strings.HasPrefix(key, lockPrefix) }
			watched.Inject(faulty.Rule{Op: faulty.Delete, Match: objects})
			way.Op, way.Match = faulty.Put, objects
			watched.Inject(way)
			_, err := newTestRepository(t, storage.PolicyAll, first, watched).Repair(t.Context(), RepairOptions{ReadData: true})
			require.Error(t, err)
			require.ErrorContains(t, err, keys["data pack"])
			require.Equal(t, 1, watched.Fired(), "one write, and no removal")
			if way.Kind == faulty.LostAnswer {
				damaged = good
			}
			require.Equal(t, damaged, read(t, second, keys["data pack"]))
			_, err = newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{ReadData: true})
			require.NoError(t, err)
			requireAlike(t, first, second)
		})
	}
}

// TestRepairWritesOverNoCopyThatItCouldNotRead: a copy that cannot be had is neither good nor damaged.
func TestRepairWritesOverNoCopyThatItCouldNotRead(t *testing.T) {
	first, second, keys, _ := twoAlike(t)
	for _, way := range []faulty.Rule{{Kind: faulty.Error, Err: storage.ErrPermission}, {Kind: faulty.Reset}, {Kind: faulty.LostAnswer}} {
		before := read(t, second, keys["data pack"])
		closed := faulty.New(second)
		way.Op, way.Match = faulty.Get, func(key string) bool { return key == keys["data pack"] }
		closed.Inject(way)
		var written []string
		closed.Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool {
			if !strings.HasPrefix(key, lockPrefix) {
				written = append(written, key)
			}
			return false
		}})
		report, err := newTestRepository(t, storage.PolicyAll, first, closed).Repair(t.Context(), RepairOptions{ReadData: true})
		require.Error(t, err)
		require.ErrorContains(t, err, closed.URL())
		require.False(t, errors.Is(err, ErrDamaged), err)
		require.Zero(t, report.Replaced)
		require.Empty(t, written)
		require.Equal(t, before, read(t, second, keys["data pack"]))
	}
}

// TestRepairOfData: nobody prunes meanwhile, and what is no part of the repository is left alone.
func TestRepairOfData(t *testing.T) {
	first, second := storagetest.NewMemory(), storagetest.NewMemory()
	owing(t, first, second)
	for i, p := range []storage.Provider{first, second} {
		overwrite(t, p, "data/README", bytes.Repeat([]byte("x"), i+1))
		overwrite(t, p, "keys/old", []byte{byte(i)})
	}
	other := newTestRepository(t, storage.PolicyAll, first, second)
	lock, err := other.lockExclusive(t.Context(), 0)
	require.NoError(t, err)
	r := newTestRepository(t, storage.PolicyAll, first, second)
	_, err = r.Repair(t.Context(), RepairOptions{ReadData: true})
	require.ErrorIs(t, err, ErrLocked)
	lock.release(t.Context())
	var refused error
	_, err = r.Repair(t.Context(), RepairOptions{ReadData: true, Progress: func(storage.RepairProgress) {
		_, refused = other.lockExclusive(t.Context(), 0)
	}})
	require.NoError(t, err)
	require.ErrorIs(t, refused, ErrLocked)
	require.Equal(t, []byte("xx"), read(t, second, "data/README"))
	require.Equal(t, []byte{1}, read(t, second, "keys/old"))
}

// TestRepairOfAConfig: a config that is damaged is replaced on a store that has our key; where there is none it may be
// another repository's, and nothing is written.
func TestRepairOfAConfig(t *testing.T) {
	first, second, keys, _ := twoAlike(t)
	spoil(t, second, configKey)
	require.NoError(t, second.Delete(t.Context(), keys["key"]))
	before := allKeys(t, second)
	_, err := newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{ReadData: true})
	require.ErrorIs(t, err, ErrOtherRepository)
	require.Equal(t, before, allKeys(t, second))
	overwrite(t, second, keys["key"], read(t, first, keys["key"]))
	_, err = newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{})
	require.NoError(t, err)
	requireAlike(t, first, second)
}
