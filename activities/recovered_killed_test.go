package activities

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// mortal ends a node at one of its calls to the outside, before or after it has its effect: from then on nothing of it happens.
type mortal struct {
	mutex sync.Mutex
	calls int
	at    int // 0: never
	after bool
	dead  bool
	where string
}

// errDead is none that anything tries again by itself.
var errDead = fmt.Errorf("this agent was killed: %w", storage.ErrPermission)

func (m *mortal) call(where string, do func() error) error {
	m.mutex.Lock()
	m.calls++
	dies := m.calls == m.at
	if m.dead || dies && !m.after {
		m.dead = true
		if dies {
			m.where = "before " + where
		}
		m.mutex.Unlock()
		return errDead
	}
	m.mutex.Unlock()
	err := do()
	if dies {
		m.mutex.Lock()
		defer m.mutex.Unlock()
		m.dead, m.where = true, "after "+where
		return errDead
	}
	return err
}

func (m *mortal) died() bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.dead
}

type mortalStore struct {
	storage.Provider
	m *mortal
}

func (s mortalStore) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (o storage.Object, err error) {
	err = s.m.call("put "+key, func() (err error) { o, err = s.Provider.Put(ctx, key, data, options); return err })
	return o, err
}

func (s mortalStore) Get(ctx context.Context, key string, offset, length int64) (body io.ReadCloser, err error) {
	err = s.m.call("get "+key, func() (err error) { body, err = s.Provider.Get(ctx, key, offset, length); return err })
	if err != nil {
		return nil, err
	}
	return body, nil
}

func (s mortalStore) Stat(ctx context.Context, key string) (o storage.Object, err error) {
	err = s.m.call("stat "+key, func() (err error) { o, err = s.Provider.Stat(ctx, key); return err })
	return o, err
}

func (s mortalStore) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	return s.m.call("list "+prefix, func() error { return s.Provider.List(ctx, prefix, each) })
}

func (s mortalStore) Delete(ctx context.Context, key string) error {
	return s.m.call("delete "+key, func() error { return s.Provider.Delete(ctx, key) })
}

type mortalEngine struct {
	*fakeEngine
	m *mortal
}

func (e mortalEngine) List(ctx context.Context, labels map[string]string) (found []engine.Instance, err error) {
	err = e.m.call("engine list", func() (err error) { found, err = e.fakeEngine.List(ctx, labels); return err })
	return found, err
}

func (e mortalEngine) Stop(ctx context.Context, id string, grace time.Duration) error {
	return e.m.call("engine stop", func() error { return e.fakeEngine.Stop(ctx, id, grace) })
}

func (e mortalEngine) Remove(ctx context.Context, id string) error {
	return e.m.call("engine remove", func() error { return e.fakeEngine.Remove(ctx, id) })
}

// agent is one start of the node's agent on its disk.
func (r *rig) agent(m *mortal) *Node {
	r.t.Helper()
	providers := []storage.Provider{mortalStore{r.stores[0], m}, mortalStore{r.stores[1], m}}
	node := r.another("node-1", catalog.New(providers, r.policy))
	var err error
	node.Volumes, err = OpenVolumes(r.root)
	require.NoError(r.t, err)
	require.NoError(r.t, node.Volumes.EmptyTrash(r.t.Context()))
	node.Engine = mortalEngine{r.engine, m}
	return node
}

// salvages does what a workflow asks for, step by step, each as often as it fails, by agents that are started again.
func (r *rig) salvages(target workspace.Target, first *mortal) {
	r.t.Helper()
	node := r.agent(first)
	again := func(step func() error) {
		r.t.Helper()
		for range 3 {
			err := step()
			if err == nil {
				return
			}
			require.True(r.t, first.died(), "%v", err)
			node = r.agent(&mortal{})
		}
		r.t.Fatalf("killed %s: it does not go on", first.where)
	}
	again(func() error {
		_, err := run(r, node.StopInstance, workspace.StopInstanceInput{Target: target, GraceSeconds: 1})
		return err
	})
	var made workspace.BackupResult
	again(func() (err error) {
		made, err = run(r, node.Backup, workspace.BackupInput{Target: target, Kind: "recovered"})
		return err
	})
	again(func() error {
		_, err := run(r, node.Verify, workspace.VerifyInput{Target: target, Snapshot: made.Backup.Snapshot})
		return err
	})
	for repaired := false; ; repaired = true {
		var late error
		again(func() error {
			late = runPlain(r, node.RemoveInstance, workspace.RemoveInstanceInput{Target: target, Snapshot: made.Backup.Snapshot, StatDigest: made.StatDigest, Recovered: true})
			if late != nil && strings.Contains(late.Error(), "not every store holds") {
				return nil
			}
			return late
		})
		if late == nil {
			return
		}
		require.False(r.t, repaired, "%v", late)
		again(func() error { _, err := run(r, node.Repair, workspace.RepairInput{Target: target}); return err })
	}
}

// A19, invariants 1, 6 and 8: wherever the agent is killed while it salvages what a replaced instance had, before or after any of
// its calls to the stores and the engine, it ends in the same place: nothing on the disk, nothing in the engine, one recovered
// snapshot that restores byte for byte, and the head as it was.
func TestKilledSalvageEndsInTheSamePlace(t *testing.T) {
	whole := newRig(t, storage.PolicyAny)
	none := &mortal{}
	whole.salvages(whole.replaced(), none)
	require.Greater(t, none.calls, 40)
	t.Logf("%d calls", none.calls)
	for at := 1; at <= none.calls; at++ {
		for _, after := range []bool{false, true} {
			if after == (at%2 == 0) && os.Getenv("HOLDFAST_CAMPAIGN") == "" {
				continue
			}
			t.Run(fmt.Sprintf("%d/after=%t", at, after), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, storage.PolicyAny)
				target := r.replaced()
				head := r.catalog.ReadHead(t.Context(), id)
				m := &mortal{at: at, after: after}
				r.salvages(target, m)
				require.NoDirExists(t, r.node.Volumes.dir(id, 1), m.where)
				require.Empty(t, r.engine.names(), m.where)
				trash, err := os.ReadDir(filepath.Join(r.root, "trash"))
				require.NoError(t, err)
				require.Empty(t, trash)
				require.Equal(t, head, r.catalog.ReadHead(t.Context(), id))
				found := r.recoveredOnes()
				require.Len(t, found, 1, m.where)
				r.requireRestores(found[0].ID, map[string]string{
					"src/main.go": "package main\n", "notes.txt": "what a person wrote\n", "late.txt": "written after the first snapshot\n",
				})
			})
		}
	}
}

// The same where only the disk tells: it was killed between the renaming to the trash and the end of the deleting.
func TestKilledInTheMiddleOfARemoval(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.salvaged()
	require.NoError(t, os.Rename(r.node.Volumes.dir(id, 1), filepath.Join(r.root, "trash", workspace.InstanceName(id, 1)+".1")))
	require.NoError(t, os.Remove(filepath.Join(r.root, "trash", workspace.InstanceName(id, 1)+".1", "content", "notes.txt")))
	node := r.agent(&mortal{}) // it empties the trash
	require.NoError(t, runPlain(r, node.RemoveInstance, input))
	require.Empty(t, r.engine.names())
	trash, err := os.ReadDir(filepath.Join(r.root, "trash"))
	require.NoError(t, err)
	require.Empty(t, trash)
	r.requireRestores(input.Snapshot, map[string]string{
		"src/main.go": "package main\n", "notes.txt": "what a person wrote\n", "late.txt": "written after the first snapshot\n",
	})
}
