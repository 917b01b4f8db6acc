package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// earlierBackup is a repository on two providers with one snapshot, and its source, which has changed since.
type earlierBackup struct {
	dir      string
	source   map[string]string // of dir as it is now
	memories []*storagetest.Memory
	keys     map[string]string // one object of each kind that the next backup has to do with
	snapshot string
}

func makeEarlierBackup(t *testing.T) *earlierBackup {
	t.Helper()
	e := &earlierBackup{dir: smallSource(t), memories: []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}}
	r := newTestRepository(t, storage.PolicyAll, e.memories[0], e.memories[1])
	result, err := r.Backup(t.Context(), e.dir, BackupOptions{Kind: Final})
	require.NoError(t, err)
	e.snapshot = result.Snapshot
	e.keys = map[string]string{}
	for _, key := range e.memories[0].Keys() {
		if kind := objectKind(key); kind != "" {
			e.keys[kind] = key
		}
	}
	r.eachBlob(func(b packedBlob) bool {
		e.keys[b.location.kind.String()+" pack"] = packKey(b.location.pack)
		return true
	})
	require.Len(t, e.keys, len(objectKinds))
	writeFiles(t, e.dir, map[string][]byte{"new": randomBytes(9, 7000), "d/e/c": []byte("changed")})
	e.source = treeRecords(t, e.dir)
	return e
}

// clone copies the providers' content to providers with other addresses.
func (e *earlierBackup) clone(t *testing.T) (memories []*storagetest.Memory) {
	t.Helper()
	for _, memory := range e.memories {
		other := storagetest.NewMemory()
		for _, key := range memory.Keys() {
			overwrite(t, other, key, read(t, memory, key))
		}
		memories = append(memories, other)
	}
	return memories
}

// The incident of seed 004 for what a backup reads: every kind of object that is there already, its reading failing in
// every way, at the first provider, the second, or both. With one good copy the backup is as good as any, and the
// fallback counted; with none it either fails with the cause, or does without the object.
func TestBackupWhenReadingFails(t *testing.T) {
	t.Parallel()
	earlier := makeEarlierBackup(t)
	for _, kind := range objectKinds {
		for _, way := range faultWays {
			for _, where := range faultPlaces {
				if way.rule.Kind == faulty.NotStored {
					continue // no reading: TestBackupOverDamage
				}
				t.Run(fmt.Sprintf("%s/%s/%s", kind, way.name, where), func(t *testing.T) {
					t.Parallel()
					failReads(t, earlier, kind, way, where)
				})
			}
		}
	}
}

func failReads(t *testing.T, earlier *earlierBackup, kind string, way faultWay, where string) {
	memories := earlier.clone(t)
	faults := []*faulty.Provider{faulty.New(memories[0]), faulty.New(memories[1])}
	rule := way.rule
	rule.Op = faulty.Get
	rule.Match = func(key string) bool { return key == earlier.keys[kind] }
	for i := range faults {
		if faultyAt(where, i) {
			faults[i].Inject(rule)
		}
	}
	mirror := limitedMirror(t, storage.PolicyAll, way.limit(), faults[0], faults[1])
	said := backUpAndLook(t, mirror, earlier.dir, func(*Repository) {})
	requireClaimTrue(t, said, earlier.source, memories...)
	if where != "both" {
		require.NoError(t, said.err)
		for _, memory := range memories {
			require.True(t, said.whole(memory.URL()), "%v", said.outcome[memory.URL()])
		}
		// Of data nothing is read in a backup.
		fellBack := where == "primary" && kind != "data pack"
		require.Equal(t, fellBack, mirror.Fallbacks()[memories[0].URL()] > 0, "%v", mirror.Fallbacks())
		return
	}
	if said.err != nil {
		known := func(err error) bool { return errors.Is(said.err, err) }
		require.Truef(t, slices.ContainsFunc(way.causes, known), "got %v, want one of %v", said.err, way.causes)
		for _, memory := range memories {
			require.ErrorContains(t, said.err, memory.URL())
		}
		name := earlier.keys[kind]
		require.ErrorContains(t, said.err, name[strings.LastIndexByte(name, '/')+1:])
	}
	switch kind {
	case "config", "key", "tree pack": // a backup ends without the trees, and the look after it needs them
		require.Error(t, said.err)
	case "snapshot": // what it says may be had from the files themselves
		require.NoError(t, said.err)
	case "data pack": // not read
		require.NoError(t, said.err)
	}
	for _, f := range faults {
		f.Clear()
	}
	again := backUpAndLook(t, limitedMirror(t, storage.PolicyAll, time.Hour, faults[0], faults[1]), earlier.dir, func(*Repository) {})
	requireClaimTrue(t, again, earlier.source, memories...)
	require.NoError(t, again.err)
	for _, memory := range memories {
		require.True(t, again.whole(memory.URL()), "%v", again.outcome[memory.URL()])
	}
}

// What is stored is gone or damaged for good, at the first provider, the second, or both: a backup brings it back, from
// the other provider or from the files that are still there. Only without a config or a key nothing can be done, and
// that is said.
func TestBackupOverDamage(t *testing.T) {
	earlier := makeEarlierBackup(t)
	for _, kind := range objectKinds {
		for name, change := range map[string]func([]byte) []byte{
			"not stored":   nil,
			"truncated":    func(data []byte) []byte { return data[:len(data)/2] },
			"empty":        func([]byte) []byte { return nil },
			"wrong bytes":  func(data []byte) []byte { return flip(data, len(data)/2) },
			"wrong length": func(data []byte) []byte { return append(bytes.Clone(data), 'x') },
		} {
			for _, where := range faultPlaces {
				t.Run(fmt.Sprintf("%s/%s/%s", kind, name, where), func(t *testing.T) {
					t.Parallel()
					memories := earlier.clone(t)
					for i, memory := range memories {
						switch key := earlier.keys[kind]; {
						case !faultyAt(where, i):
						case change == nil:
							require.NoError(t, memory.Delete(t.Context(), key))
						default:
							memory.Corrupt(key, change)
						}
					}
					said := backUpAndLook(t, limitedMirror(t, storage.PolicyAll, time.Hour, memories[0], memories[1]), earlier.dir, func(*Repository) {})
					requireClaimTrue(t, said, earlier.source, memories...)
					if where == "both" && (kind == "config" || kind == "key") {
						require.ErrorIs(t, said.err, ErrDamaged)
						if change != nil {
							require.ErrorContains(t, said.err, memories[0].URL())
							require.ErrorContains(t, said.err, memories[1].URL())
						}
						return
					}
					require.NoError(t, said.err)
					for _, memory := range memories {
						require.True(t, said.whole(memory.URL()), "%v", said.outcome[memory.URL()])
					}
					// The snapshot before is as good as it can be: whole, unless it or its own data was nowhere.
					if where != "both" || kind == "index" {
						target := filepath.Join(t.TempDir(), "before")
						_, err := openAndRestore(t.Context(), newTestMirror(t, storage.PolicyAll, memories[1]), earlier.snapshot, target)
						require.NoError(t, err)
					}
				})
			}
		}
	}
}
