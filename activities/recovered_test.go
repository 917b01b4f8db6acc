package activities

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// replaced makes an instance that was replaced: a first snapshot is committed, something was written since, and another
// instance is recorded.
func (r *rig) replaced() workspace.Target {
	r.t.Helper()
	target := r.started(1)
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live", Sequence: 1})
	require.NoError(r.t, err)
	commit := commitOf(target, made)
	commit.Kind = "live"
	require.NoError(r.t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: commit}))
	r.write(1, "late.txt", "written after the first snapshot\n")
	recordOn(r.t, r, 2, "node-2", made.Backup.Snapshot)
	return target
}

// salvaged makes a replaced instance that is saved: what a removal is asked for.
func (r *rig) salvaged() workspace.RemoveInstanceInput {
	r.t.Helper()
	target := r.replaced()
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "recovered"})
	require.NoError(r.t, err)
	return workspace.RemoveInstanceInput{Target: target, Snapshot: made.Backup.Snapshot, StatDigest: made.StatDigest, Recovered: true}
}

// recoveredOnes are the recovered snapshots in the stores.
func (r *rig) recoveredOnes() (found []snapshot.Info) {
	r.t.Helper()
	repository, err := r.node.repository(r.t.Context(), id, r.sealed.Password)
	require.NoError(r.t, err)
	defer repository.Close()
	infos, err := repository.Snapshots(r.t.Context())
	require.NoError(r.t, err)
	for _, info := range infos {
		if info.Kind == snapshot.Recovered {
			found = append(found, info)
		}
	}
	return found
}

// invariants 1, 3, 5 and 7 (A12, A19): each violation alone keeps what a replaced instance had. Every check on the way to its
// removal has a case here that fails without it.
func TestRecoveredContentStays(t *testing.T) {
	for name, test := range map[string]struct {
		violate func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput)
		kind    workspace.ErrorType // empty: it passes, and is tried again
	}{
		"it was not replaced": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			for i := range r.inner {
				require.NoError(t, r.inner[i].Delete(t.Context(), fmt.Sprintf("catalog/workspaces/%s/instances/%020d.json", id, 2)))
			}
		}, kind: workspace.ErrorRefused},
		"nobody knows whether it was replaced": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			for i := range r.stores {
				r.stores[i].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool { return strings.HasSuffix(key, "/instances/") }})
			}
		}},
		"no such snapshot": {violate: func(_ *testing.T, _ *rig, input *workspace.RemoveInstanceInput) {
			input.Snapshot = strings.Repeat("0", 64)
		}, kind: workspace.ErrorNotStored},
		"its file is gone from one store": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			require.NoError(t, r.inner[0].Delete(t.Context(), workspace.RepositoryPrefix(id)+"/snapshots/"+input.Snapshot))
		}, kind: workspace.ErrorNotStored},
		"its file is gone from all stores": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			for i := range r.inner {
				require.NoError(t, r.inner[i].Delete(t.Context(), workspace.RepositoryPrefix(id)+"/snapshots/"+input.Snapshot))
			}
		}, kind: workspace.ErrorNotStored},
		"it is on a store that cannot be listed": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			require.NoError(t, r.inner[0].Delete(t.Context(), workspace.RepositoryPrefix(id)+"/snapshots/"+input.Snapshot))
			r.stores[1].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool { return strings.Contains(key, "/snapshots") }})
		}},
		"a live snapshot": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			made, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "live", Sequence: 2})
			require.NoError(t, err)
			input.Snapshot, input.StatDigest = made.Backup.Snapshot, made.StatDigest
		}, kind: workspace.ErrorNotStored},
		"a snapshot of another instance": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			repository, err := r.node.repository(t.Context(), id, r.sealed.Password)
			require.NoError(t, err)
			defer repository.Close()
			made, err := repository.Backup(t.Context(), r.content(1), snapshot.BackupOptions{Kind: snapshot.Recovered, Tags: []string{tagToken + "11"}})
			require.NoError(t, err)
			require.Equal(t, input.StatDigest, made.StatDigest)
			input.Snapshot = made.Snapshot
		}, kind: workspace.ErrorNotStored},
		"a snapshot of other content": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			r.write(1, "later", "x")
			digest, err := snapshot.StatDigest(t.Context(), r.content(1), nil)
			require.NoError(t, err)
			input.StatDigest = digest
		}, kind: workspace.ErrorNotStored},
		"no digest": {violate: func(_ *testing.T, _ *rig, input *workspace.RemoveInstanceInput) {
			input.StatDigest = ""
		}, kind: workspace.ErrorNotStored},
		"a pack missing on one store": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			require.NoError(t, r.inner[1].Delete(t.Context(), packsOf(r, 1)[0]))
		}, kind: workspace.ErrorNotStored},
		"a pack with a wrong bit on one store": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.inner[1].Corrupt(packsOf(r, 1)[0], func(data []byte) []byte { data[len(data)/2] ^= 1; return data })
		}, kind: workspace.ErrorNotStored},
		"a store that cannot be looked at": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			cannotLook(r.stores[1])
		}, kind: workspace.ErrorNotStored},
		"a file written after the snapshot": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.write(1, "later", "x")
		}, kind: workspace.ErrorContentChanged},
		"something that comes up again and writes": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			name := r.engine.add("node-1", id, 1, engine.StatusPaused)
			r.engine.before = func(call, what string) {
				if call == "stop" && what == name && r.engine.status(name) == engine.StatusPaused {
					r.write(1, "last words", "x")
				}
			}
		}, kind: workspace.ErrorContentChanged},
		"a lease that is gone": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.pass(7 * time.Second)
		}},
		"a lease that goes while it looks": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.engine.before = func(call, _ string) {
				if call == "list" && r.now.steady == 0 {
					r.pass(7 * time.Second)
				}
			}
		}},
		"an identity of another workspace": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			foreign(t, r, 1)
		}, kind: workspace.ErrorContentForeign},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, storage.PolicyAny)
			input := r.salvaged()
			container := "holdfast-" + workspace.InstanceName(id, 1)
			test.violate(t, r, &input)
			for range 2 {
				err := runPlain(r, r.node.RemoveInstance, input)
				if test.kind == "" {
					transient(t, err)
				} else {
					typed(t, err, test.kind)
				}
				require.FileExists(t, filepath.Join(r.content(1), "late.txt"))
				require.FileExists(t, filepath.Join(r.node.Volumes.dir(id, 1), "identity.json"))
				require.Contains(t, r.engine.names(), container)
			}
		})
	}
}

// againAsNobody runs a test of this binary as uid 65534: root reads every file.
func againAsNobody(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chown(dir, 65534, 65534))
	// A copy: that user may not go where it was built, and Temporal's test environment reads the binary that it is in.
	program, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	binary := filepath.Join(dir, "test")
	require.NoError(t, os.WriteFile(binary, program, 0o755))
	child := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run=^"+t.Name()+"$")
	child.Dir, child.Env = dir, append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := child.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Contains(t, string(output), "--- PASS: "+t.Name())
}

// A14: what the recovered snapshot lacks keeps the content.
func TestRecoveredContentWithOmissionsStays(t *testing.T) {
	if os.Geteuid() == 0 {
		againAsNobody(t)
		return
	}
	r := newRig(t, storage.PolicyAny)
	target := r.replaced()
	require.NoError(t, os.Chmod(filepath.Join(r.content(1), "notes.txt"), 0))
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "recovered"})
	require.NoError(t, err)
	input := workspace.RemoveInstanceInput{Target: target, Snapshot: made.Backup.Snapshot, StatDigest: made.StatDigest, Recovered: true}
	require.Equal(t, int64(1), made.Backup.Omitted)
	typed(t, runPlain(r, r.node.RemoveInstance, input), workspace.ErrorOmissions)
	require.FileExists(t, filepath.Join(r.content(1), "late.txt"))
	again, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "recovered"})
	require.NoError(t, err)
	require.Equal(t, made.Backup.Snapshot, again.Backup.Snapshot)
	require.Equal(t, made.Omissions, again.Omissions)

	// Once it can be read, it is saved again, and goes.
	require.NoError(t, os.Chmod(filepath.Join(r.content(1), "notes.txt"), 0o600))
	typed(t, runPlain(r, r.node.RemoveInstance, input), workspace.ErrorOmissions)
	made, err = run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "recovered"})
	require.NoError(t, err)
	require.Zero(t, made.Backup.Omitted)
	input.Snapshot, input.StatDigest = made.Backup.Snapshot, made.StatDigest
	require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
	require.NoDirExists(t, r.content(1))
}

// A14: a socket has no content that could be lost; everything else that a snapshot says it lacks keeps the content, named or not.
func TestWhatARecoveredSnapshotLetsGo(t *testing.T) {
	unreadable := snapshot.Omission{Path: "a", Kind: snapshot.OmissionUnreadable}
	changed := snapshot.Omission{Path: "c", Kind: snapshot.OmissionChanged}
	socket := snapshot.Omission{Path: "s", Kind: snapshot.OmissionUnsupported}
	input := workspace.RemoveInstanceInput{Target: workspace.Target{Token: 4}, Snapshot: "x", StatDigest: "d", Recovered: true}
	for name, test := range map[string]struct {
		count    int64
		named    []snapshot.Omission
		accepted bool
		kind     workspace.ErrorType // empty: it goes
	}{
		"nothing":             {},
		"a socket":            {count: 1, named: []snapshot.Omission{socket}},
		"an unreadable file":  {count: 1, named: []snapshot.Omission{unreadable}, kind: workspace.ErrorOmissions},
		"one that changed":    {count: 2, named: []snapshot.Omission{socket, changed}, kind: workspace.ErrorOmissions},
		"more than are named": {count: 2, named: []snapshot.Omission{socket}, kind: workspace.ErrorOmissions},
		"what was accepted":   {count: 1, named: []snapshot.Omission{unreadable}, accepted: true},
	} {
		t.Run(name, func(t *testing.T) {
			info := snapshot.Info{ID: "x", Kind: snapshot.Recovered, Tags: []string{"holdfast", "token:4"}, StatDigest: "d", Omissions: test.count}
			input := input
			input.AcceptedOmissions = test.accepted
			if test.kind == "" {
				require.NoError(t, letsGo(&info, test.named, input))
			} else {
				typed(t, letsGo(&info, test.named, input), test.kind)
			}
			for _, spoil := range []func(*snapshot.Info){
				func(i *snapshot.Info) { i.Kind = snapshot.Final },
				func(i *snapshot.Info) { i.Tags = []string{"holdfast", "token:44"} },
				func(i *snapshot.Info) { i.StatDigest = "e" },
			} {
				other := info
				spoil(&other)
				typed(t, letsGo(&other, test.named, input), workspace.ErrorNotStored)
			}
			// Two that say nothing of their content are not of the same content.
			silent, unsaid := info, input
			silent.StatDigest, unsaid.StatDigest = "", ""
			typed(t, letsGo(&silent, test.named, unsaid), workspace.ErrorNotStored)
		})
	}
}

// invariants 6 and 8: the removal removes exactly the replaced instance, once, and again finds nothing to do. What it had can be
// restored from the stores alone, byte for byte.
func TestRecoveredContentGoes(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.salvaged()
	first := r.catalog.ReadHead(t.Context(), id).Providers[0].Base
	// The one that took its place is on the same node by now.
	current := r.target(2)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: current, Snapshot: first})
	require.NoError(t, err)
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: current})
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
		require.NoDirExists(t, r.node.Volumes.dir(id, 1))
		require.Equal(t, []string{"holdfast-" + workspace.InstanceName(id, 2)}, r.engine.names())
		require.Equal(t, engine.StatusRunning, r.engine.status("holdfast-"+workspace.InstanceName(id, 2)))
		require.Equal(t, "what a person wrote\n", r.read(2, "notes.txt"))
	}
	left, err := os.ReadDir(filepath.Join(r.root, "trash"))
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, first, r.catalog.ReadHead(t.Context(), id).Providers[0].Base, "it is not the head")
	r.requireRestores(input.Snapshot, map[string]string{
		"src/main.go": "package main\n", "notes.txt": "what a person wrote\n", "late.txt": "written after the first snapshot\n",
	})
}

// requireRestores restores a snapshot from the stores and compares it with what it has to be.
func (r *rig) requireRestores(wanted string, want map[string]string) {
	r.t.Helper()
	repository, err := r.node.repository(r.t.Context(), id, r.sealed.Password)
	require.NoError(r.t, err)
	defer repository.Close()
	dir := filepath.Join(r.t.TempDir(), "restored")
	_, err = repository.Restore(r.t.Context(), wanted, dir, snapshot.RestoreOptions{})
	require.NoError(r.t, err)
	got := map[string]string{}
	require.NoError(r.t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		got[name] = string(data)
		return err
	}))
	require.Equal(r.t, want, got)
}

// invariant 8: what is saved is saved once, however often it is asked for; content that is another is saved beside it; and what
// the stores have lost since is stored again.
func TestRecoveredContentIsSavedOnce(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.salvaged()
	require.Equal(t, engine.StatusExited, r.engine.status("holdfast-"+workspace.InstanceName(id, 1)), "nothing writes to what is saved")
	save := func() workspace.BackupResult {
		made, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "recovered"})
		require.NoError(t, err)
		return made
	}
	again := save()
	require.Equal(t, input.Snapshot, again.Backup.Snapshot)
	require.Equal(t, input.StatDigest, again.StatDigest)
	require.Equal(t, int64(3), again.Backup.Files)
	require.Len(t, r.recoveredOnes(), 1)

	// Whoever stored it was killed before the second store had its name, and the policy is that both have it.
	r.node.Catalog = catalog.New(r.catalog.Providers(), storage.PolicyAll)
	name := workspace.RepositoryPrefix(id) + "/snapshots/" + input.Snapshot
	require.NoError(t, r.inner[1].Delete(t.Context(), name))
	require.Equal(t, input.Snapshot, save().Backup.Snapshot)
	_, err := r.inner[1].Stat(t.Context(), name)
	require.NoError(t, err)
	require.Len(t, r.recoveredOnes(), 1)
	r.node.Catalog = r.catalog

	r.write(1, "later", "x")
	other := save()
	require.NotEqual(t, input.Snapshot, other.Backup.Snapshot)
	require.Len(t, r.recoveredOnes(), 2)
	require.Equal(t, other.Backup.Snapshot, save().Backup.Snapshot)

	for i := range r.inner {
		for _, pack := range packsOf(r, i) {
			require.NoError(t, r.inner[i].Delete(t.Context(), pack))
		}
	}
	mended := save()
	require.NotEqual(t, other.Backup.Snapshot, mended.Backup.Snapshot)
	_, err = run(r, r.node.Verify, workspace.VerifyInput{Target: input.Target, Snapshot: mended.Backup.Snapshot})
	require.NoError(t, err)
}
