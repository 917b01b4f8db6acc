package activities

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// invariant 5: nothing is snapshotted whose identity does not match.
func TestBackupWantsTheIdentity(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(t *testing.T, r *rig)
		kind  workspace.ErrorType
	}{
		"foreign":      {func(t *testing.T, r *rig) { foreign(t, r, 1) }, workspace.ErrorContentForeign},
		"missing":      {func(t *testing.T, r *rig) { require.NoError(t, os.RemoveAll(r.node.Volumes.dir(id, 1))) }, workspace.ErrorContentMissing},
		"lost content": {func(t *testing.T, r *rig) { require.NoError(t, os.RemoveAll(r.content(1))) }, workspace.ErrorContentMissing},
		"half restored": {func(t *testing.T, r *rig) {
			require.NoError(t, r.node.Volumes.mark(identity{WorkspaceID: id, Token: 1, State: contentPreparing}))
		}, workspace.ErrorContentMissing},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			target := r.started(1)
			test.spoil(t, r)
			before := r.stores[0].Calls(faulty.Put)
			_, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
			typed(t, err, test.kind)
			require.Equal(t, before, r.stores[0].Calls(faulty.Put), "nothing was stored")
		})
	}
}

// A final snapshot is of content that nothing writes to: an instance that came up again is stopped first.
func TestFinalBackupHalts(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	name := "holdfast-" + workspace.InstanceName(id, 1)
	_, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
	require.NoError(t, err)
	require.Equal(t, engine.StatusRunning, r.engine.status(name), "a live one disturbs nobody")
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	require.Equal(t, engine.StatusExited, r.engine.status(name))
	require.Equal(t, int64(2), made.Backup.Files)
	require.NotEmpty(t, made.StatDigest)

	// invariant 8: a lost result costs a look; the same content gives the same digest and sends nothing again.
	again, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	require.Equal(t, made.StatDigest, again.StatDigest)
	require.Zero(t, again.Backup.PacksUploaded)
}

// What the last backup knew of the content is kept beside it, and moves with it: the next one reads no tree from the store.
func TestBackupRemembersTheContent(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	_, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
	require.NoError(t, err)
	require.FileExists(t, r.node.Volumes.state(id, 1))
	require.NoError(t, r.node.Volumes.adopt(id, target.Name, 1, 2))
	target.Token = 2
	packs := 0
	r.stores[0].Inject(faulty.Rule{Op: faulty.Get, Times: 1, Match: func(key string) bool {
		if strings.Contains(key, "/data/") {
			packs++
		}
		return false
	}})
	again, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
	require.NoError(t, err)
	require.Equal(t, int64(2), again.Backup.Files)
	require.Zero(t, packs)

	require.NoError(t, os.Remove(r.node.Volumes.state(id, 2)))
	_, err = run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live"})
	require.NoError(t, err)
	require.NotZero(t, packs, "without it the snapshot's trees are read")
}

// A14, invariant 1: what is not in the snapshot is counted and named; a socket blocks nothing.
func TestOmissions(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	listener, err := net.Listen("unix", filepath.Join(r.content(1), "agent.sock"))
	require.NoError(t, err)
	defer listener.Close()
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	require.Zero(t, made.Backup.Omitted)
	require.Empty(t, made.Omissions)

	var found []snapshot.Omission
	for i := range 30 {
		found = append(found, snapshot.Omission{Path: fmt.Sprint(i), Kind: "unreadable", Reason: "EIO"})
	}
	found = append(found, snapshot.Omission{Path: "s", Kind: "unsupported kind"}, snapshot.Omission{Path: "c", Kind: "changed while read"})
	count, first := omissions(found)
	require.Equal(t, int64(31), count)
	require.Len(t, first, workspace.MaxOmissions)
}

// A13: when the look finds that a store has lost something, backing up again stores it again: the loop of the workflow
// ends.
func TestBackupAgainMendsALoss(t *testing.T) {
	for name, lose := range map[string]func(key string) bool{
		"data":  func(key string) bool { return strings.Contains(key, "/data/") },
		"index": func(key string) bool { return strings.Contains(key, "/index/") },
		"all": func(key string) bool {
			return strings.Contains(key, "/data/") || strings.Contains(key, "/index/") || strings.Contains(key, "/snapshots/")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			input := r.stopped(1)
			for _, inner := range r.inner {
				for _, key := range inner.Keys() {
					if lose(key) {
						require.NoError(t, inner.Delete(t.Context(), key))
					}
				}
			}
			_, err := run(r, r.node.Verify, workspace.VerifyInput{Target: input.Target, Snapshot: input.Snapshot})
			if name != "index" { // without it nothing is known yet
				typed(t, err, workspace.ErrorNotStored)
			}
			require.Error(t, err)
			made, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "final"})
			require.NoError(t, err)
			verified, err := run(r, r.node.Verify, workspace.VerifyInput{Target: input.Target, Snapshot: made.Backup.Snapshot})
			require.NoError(t, err)
			require.Empty(t, verified.Owed)
			require.Equal(t, input.StatDigest, made.StatDigest)
		})
	}
}

// A2: what was stored before a failure is found and not sent again.
func TestBackupResumes(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	for i := range 6 {
		r.write(1, fmt.Sprintf("large-%d", i), noise(i, 1<<20))
	}
	require.NoError(t, r.halt(workspace.StopInstanceInput{Target: target}))
	isPack := func(key string) bool { return strings.Contains(key, "/data/") }
	isSnapshot := func(key string) bool { return strings.Contains(key, "/snapshots/") }
	// It is cut at the last moment: all packs are stored, the snapshot is not.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, store := range r.stores {
		store.Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.Error, Match: func(key string) bool {
			if isSnapshot(key) {
				cancel()
			}
			return isSnapshot(key)
		}})
	}
	_, err := run(r, func(inner context.Context, input workspace.BackupInput) (workspace.BackupResult, error) {
		inner, stop := context.WithCancel(inner)
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		return r.node.Backup(inner, input)
	}, workspace.BackupInput{Target: target, Kind: "final"})
	require.Error(t, err)
	var stored int
	for _, key := range r.inner[0].Keys() {
		if isPack(key) {
			stored++
		}
	}
	require.Positive(t, stored)
	for _, store := range r.stores {
		store.Clear()
	}
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	require.LessOrEqual(t, made.Backup.BytesUploaded, int64(1<<20), "of 6 MiB, all but what was in flight was there")
	require.Equal(t, int64(8), made.Backup.Files)
}

// noise is text that neither compresses nor repeats.
func noise(seed, n int) string {
	state := uint64(seed)*2654435761 + 88172645463325252
	data := make([]byte, n)
	for i := range data {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		data[i] = byte(state >> 32)
	}
	return string(data)
}

// packsOf lists the keys of a repository's packs on a store.
func packsOf(r *rig, store int) []string {
	var packs []string
	for _, key := range r.inner[store].Keys() {
		if strings.HasPrefix(key, workspace.RepositoryPrefix(id)+"/data/") {
			packs = append(packs, key)
		}
	}
	return packs
}

// A13, invariant 1: verifying is a look at every object on every store; the policy says how many must be whole.
func TestVerify(t *testing.T) {
	for _, policy := range []storage.Policy{storage.PolicyAny, storage.PolicyAll} {
		for name, test := range map[string]struct {
			spoil func(t *testing.T, r *rig)
			// whole is what policy any answers; none means an error: kind, or one that passes.
			whole, owed int
			kind        workspace.ErrorType
		}{
			"all is there": {func(*testing.T, *rig) {}, 2, 0, ""},
			"a pack is missing on one": {func(t *testing.T, r *rig) {
				require.NoError(t, r.inner[1].Delete(t.Context(), packsOf(r, 1)[0]))
			}, 1, 1, workspace.ErrorNotStored},
			"a pack is short on one": {func(t *testing.T, r *rig) {
				r.inner[1].Corrupt(packsOf(r, 1)[0], func(data []byte) []byte { return data[:len(data)-1] })
			}, 1, 1, workspace.ErrorNotStored},
			"one is away": {func(_ *testing.T, r *rig) { away(r.stores[1]) }, 1, 1, ""},
			"a pack is missing on both": {func(t *testing.T, r *rig) {
				for i := range r.inner {
					require.NoError(t, r.inner[i].Delete(t.Context(), packsOf(r, i)[0]))
				}
			}, 0, 2, workspace.ErrorNotStored},
			"missing on one, the other away": {func(t *testing.T, r *rig) {
				require.NoError(t, r.inner[0].Delete(t.Context(), packsOf(r, 0)[0]))
				cannotLook(r.stores[1])
			}, 0, 2, ""},
			"one denies, the other is away": {func(t *testing.T, r *rig) {
				r.stores[0].Inject(faulty.Rule{Op: faulty.List, Match: isWhole, Kind: faulty.Error, Err: storage.ErrPermission})
				cannotLook(r.stores[1])
			}, 0, 2, ""},
		} {
			t.Run(policy.String()+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, policy)
				input := r.stopped(1)
				test.spoil(t, r)
				result, err := run(r, r.node.Verify, workspace.VerifyInput{Target: input.Target, Snapshot: input.Snapshot})
				if test.whole == 2 || test.whole == 1 && policy == storage.PolicyAny {
					require.NoError(t, err)
					require.Len(t, result.Whole, test.whole)
					require.Len(t, result.Owed, test.owed)
					require.Len(t, result.Why, test.owed)
					return
				}
				if test.kind == "" {
					transient(t, err)
				} else {
					typed(t, err, test.kind)
				}
			})
		}
	}
}

// isWhole tells the listing that the look is made with.
func isWhole(prefix string) bool { return prefix == workspace.RepositoryPrefix(id)+"/" }

func cannotLook(store *faulty.Provider) {
	store.Inject(faulty.Rule{Op: faulty.List, Match: isWhole, Kind: faulty.Error, Err: errors.New("lookup: i/o timeout")})
}

// invariants 3 and 7: a commit needs a live lease and the newest token.
func TestCommit(t *testing.T) {
	r := newRig(t, storage.PolicyAll)
	target := r.started(1)
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	input := workspace.CommitInput{Target: target, Commit: commitOf(target, made)}

	r.pass(7 * time.Second)
	transient(t, runPlain(r, r.node.Commit, input))
	require.Nil(t, r.catalog.ReadHead(t.Context(), id).Providers[0].Head)
	r.node.Lease = r.lease()

	// It goes while the stores are asked which token is the newest.
	r.stores[1].Inject(faulty.Rule{Op: faulty.List, Match: func(string) bool {
		r.pass(7 * time.Second)
		return false
	}})
	transient(t, runPlain(r, r.node.Commit, input))
	require.Nil(t, r.catalog.ReadHead(t.Context(), id).Providers[0].Head)
	r.stores[1].Clear()
	r.node.Lease = r.lease()

	r.stores[0].Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.LostAnswer, Times: 1})
	transient(t, runPlain(r, r.node.Commit, input))
	for range 2 { // invariant 8
		require.NoError(t, runPlain(r, r.node.Commit, input))
	}
	for _, provider := range r.catalog.ReadHead(t.Context(), id).Providers {
		require.Equal(t, made.Backup.Snapshot, provider.Head.Snapshot)
	}
	other := input
	other.Commit.Snapshot = strings.Repeat("0", 64)
	typed(t, runPlain(r, r.node.Commit, other), workspace.ErrorConflict)

	r.record(2, made.Backup.Snapshot)
	input.Commit.Sequence = 2
	typed(t, runPlain(r, r.node.Commit, input), workspace.ErrorStaleToken) // A12
}

// invariant 2: what is owed to a late store is brought there, as it is.
func TestRepair(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	away(r.stores[1])
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	require.Equal(t, []string{r.stores[1].URL()}, made.Owed)
	require.NoError(t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: commitOf(target, made)}))
	verified, err := run(r, r.node.Verify, workspace.VerifyInput{Target: target, Snapshot: made.Backup.Snapshot})
	require.NoError(t, err)
	require.Equal(t, []string{r.stores[1].URL()}, verified.Owed)

	_, err = run(r, r.node.Repair, workspace.RepairInput{Target: target})
	transient(t, err)
	r.stores[1].Clear()
	repaired, err := run(r, r.node.Repair, workspace.RepairInput{Target: target})
	require.NoError(t, err)
	require.Positive(t, repaired.Objects)
	verified, err = run(r, r.node.Verify, workspace.VerifyInput{Target: target, Snapshot: made.Backup.Snapshot})
	require.NoError(t, err)
	require.Empty(t, verified.Owed)
	heads := r.catalog.ReadHead(t.Context(), id).Providers
	require.Equal(t, heads[0].Head, heads[1].Head)
	repaired, err = run(r, r.node.Repair, workspace.RepairInput{Target: target})
	require.NoError(t, err)
	require.Zero(t, repaired.Objects)
}

// A7: a timed snapshot of what has not changed is a look at the directory: nothing is read, no store is asked, and what
// has changed is backed up.
func TestBackupUnlessUnchanged(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	r.write(1, "notes", "first")
	input := workspace.BackupInput{Target: target, Kind: "live"}
	made, err := run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.False(t, made.Unchanged)
	require.False(t, made.Unsettled)

	input.UnlessStatDigest = made.StatDigest
	for _, store := range r.stores { // away
		store.Inject(faulty.Rule{Kind: faulty.Error})
	}
	again, err := run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.True(t, again.Unchanged)
	require.Empty(t, again.Backup.Snapshot)
	for _, store := range r.stores {
		store.Clear()
	}

	r.write(1, "notes", "later")
	changed, err := run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.False(t, changed.Unchanged)
	require.NotEqual(t, made.Backup.Snapshot, changed.Backup.Snapshot)

	// A final one is always made: a stop is acknowledged by one of its own.
	final, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final", UnlessStatDigest: changed.StatDigest})
	require.NoError(t, err)
	require.False(t, final.Unchanged)
	require.NotEmpty(t, final.Backup.Snapshot)

	// invariant 5: also the look wants the identity.
	foreign(t, r, 1)
	input.UnlessStatDigest = changed.StatDigest
	_, err = run(r, r.node.Backup, input)
	typed(t, err, workspace.ErrorContentForeign)
}

// What was written to while it was read makes a snapshot unsettled: an equal digest later would prove nothing.
func TestChangedMeanwhile(t *testing.T) {
	omission := func(kind snapshot.OmissionKind) snapshot.Omission { return snapshot.Omission{Path: "/a", Kind: kind} }
	for name, test := range map[string]struct {
		omissions []snapshot.Omission
		want      bool
	}{
		"nothing left out":          {nil, false},
		"a socket, a locked file":   {[]snapshot.Omission{omission(snapshot.OmissionUnsupported), omission(snapshot.OmissionUnreadable)}, false},
		"written to among the rest": {[]snapshot.Omission{omission(snapshot.OmissionUnsupported), omission(snapshot.OmissionChanged)}, true},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, changedMeanwhile(test.omissions)) })
	}
}
