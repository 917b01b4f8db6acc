package activities

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/workspace"
)

// packCounter counts the packs that come to a store, and takes no more once it has so many.
type packCounter struct {
	storage.Provider
	mutex sync.Mutex
	most  int // 0: any number
	packs int
	bytes int64
}

func (p *packCounter) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if strings.Contains(key, "/data/") {
		p.mutex.Lock()
		full := p.most > 0 && p.packs >= p.most
		if !full {
			p.packs++
			p.bytes += int64(len(data))
		}
		p.mutex.Unlock()
		if full {
			return storage.Object{}, errDead
		}
	}
	return p.Provider.Put(ctx, key, data, options)
}

// A3, A5: a backup that was cut with its node goes on on another node that has the volume. Of what was stored, at most the packs
// that no index names are sent again.
func TestBackupGoesOnOnAnotherNode(t *testing.T) {
	s := newSharedRig(t)
	old := s.runs(1)
	const files, size = 24, 2 << 20
	random := rand.NewChaCha8([32]byte{1})
	for i := range files {
		data := make([]byte, size)
		_, _ = random.Read(data)
		require.NoError(t, os.WriteFile(filepath.Join(s.dir(1), "content", "file"+string(rune('a'+i))), data, 0o644))
	}
	counted := func(node *Node, most int) [2]*packCounter {
		counters := [2]*packCounter{{Provider: s.stores[0], most: most}, {Provider: s.stores[1], most: most}}
		node.Catalog = catalog.New([]storage.Provider{counters[0], counters[1]}, s.policy)
		return counters
	}
	first := counted(s.node, 9)
	_, err := run(s.rig, s.node.Backup, workspace.BackupInput{Target: old, Kind: "final", Sequence: 1})
	require.Error(t, err)

	s.record(2, "")
	require.NoError(t, s.takes(s.other, 1, 2))
	target := s.target(2)
	target.Node = s.other.Name
	second := counted(s.other, 0)
	made, err := run(s.rig, s.other.Backup, workspace.BackupInput{Target: target, Kind: "final", Sequence: 1})
	require.NoError(t, err)
	require.EqualValues(t, files+1, made.Backup.Files)
	for i := range first {
		const pack = 4 << 20 // of these tests
		again := first[i].bytes + second[i].bytes - files*size
		t.Logf("store %d: %d bytes in %d packs by the first node, %d bytes in %d packs by the second", i, first[i].bytes, first[i].packs, second[i].bytes, second[i].packs)
		require.GreaterOrEqual(t, first[i].packs, 4)
		require.Less(t, again, int64(5*pack), "at most what was in flight is sent again")
		require.Less(t, second[i].bytes, int64(files*size-2*pack), "what was stored is not sent again")
	}
	_, err = run(s.rig, s.other.Verify, workspace.VerifyInput{Target: target, Snapshot: made.Backup.Snapshot})
	require.NoError(t, err)
	require.NoError(t, runPlain(s.rig, s.other.Commit, workspace.CommitInput{Target: target, Commit: commitOf(target, made)}))

	// What the first node still commits is not the newest version (invariant 3).
	late := commitOf(old, made)
	typed(t, runPlain(s.rig, s.node.Commit, workspace.CommitInput{Target: old, Commit: late}), workspace.ErrorStaleToken)
}
