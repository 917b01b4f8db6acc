package activities

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/keys"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// retained is a rig over two directories, of which one would be enough for everything else, with a running instance that a timer snapshots.
type retained struct {
	*rig
	dirs      [2]string
	plain     []storage.Provider // without faults
	target    workspace.Target
	sequence  uint64
	snapshots []string // that a timer made, the oldest first
}

func newRetained(t *testing.T) *retained {
	t.Helper()
	r := &retained{rig: newRig(t, storage.PolicyAny)}
	var providers []storage.Provider
	for i := range r.stores {
		r.dirs[i] = t.TempDir()
		provider, err := storage.OpenDirectory(r.dirs[i], storage.DirectoryOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, provider.Close()) })
		r.stores[i], r.inner[i] = faulty.New(provider), nil
		r.plain = append(r.plain, provider)
		providers = append(providers, r.stores[i])
	}
	r.catalog = catalog.New(providers, r.policy)
	r.node.Catalog, r.control.Catalog = r.catalog, r.catalog
	r.node.PruneGrace = -1
	r.target = r.started(1)
	return r
}

// make makes a live snapshot of changed content; commit may change what is committed, and nothing is with false.
func (r *retained) make(timed bool, commit func(*workspace.Commit) bool) string {
	r.t.Helper()
	r.sequence++
	r.write(r.target.Token, "notes.txt", fmt.Sprintf("instance %d, version %d\n", r.target.Token, r.sequence))
	r.write(r.target.Token, "large", strings.Repeat(fmt.Sprintf("%d.%d ", r.target.Token, r.sequence), 40000))
	made, err := run(r.rig, r.node.Backup, workspace.BackupInput{Target: r.target, Kind: "live", Sequence: r.sequence, Timed: timed})
	require.NoError(r.t, err)
	c := commitOf(r.target, made)
	c.Sequence, c.Kind, c.Timed = r.sequence, "live", timed
	if commit == nil || commit(&c) {
		require.NoError(r.t, runPlain(r.rig, r.node.Commit, workspace.CommitInput{Target: r.target, Commit: c}))
	}
	return made.Backup.Snapshot
}

// timed makes so many timed snapshots.
func (r *retained) timed(n int) {
	r.t.Helper()
	for range n {
		r.snapshots = append(r.snapshots, r.make(true, nil))
	}
}

func (r *retained) newest() string { return r.snapshots[len(r.snapshots)-1] }

// keepLast forgets all timed snapshots but so many.
func (r *retained) keepLast(n int, protect ...string) (workspace.ForgetResult, error) {
	r.t.Helper()
	return run(r.rig, r.node.Forget, workspace.ForgetInput{Target: r.target, Retention: workspace.Retention{Last: n}, Head: r.newest(), Protect: protect})
}

// on lists the snapshots that a store holds.
func (r *retained) on(store int) (ids []string) {
	r.t.Helper()
	entries, err := os.ReadDir(r.path(store, workspace.RepositoryPrefix(id)+"/snapshots"))
	require.NoError(r.t, err)
	for _, entry := range entries {
		ids = append(ids, entry.Name())
	}
	return ids
}

func (r *retained) path(store int, key string) string {
	return filepath.Join(r.dirs[store], filepath.FromSlash(key))
}

func (r *retained) commitPath(store int, sequence int) string {
	return r.path(store, fmt.Sprintf("catalog/workspaces/%s/commits/%020d/%020d.json", id, r.target.Token, sequence))
}

// holds asserts what both stores hold, and that all of it is whole.
func (r *retained) holds(want ...string) {
	r.t.Helper()
	for store := range r.dirs {
		require.ElementsMatch(r.t, want, r.on(store), "store %d", store)
	}
	for _, snapshot := range want {
		verified, err := run(r.rig, r.node.Verify, workspace.VerifyInput{Target: r.target, Snapshot: snapshot})
		require.NoError(r.t, err)
		require.Empty(r.t, verified.Owed)
	}
}

// goBack has a person go back to an older version, with a new instance.
func (r *retained) goBack(base string) {
	r.t.Helper()
	r.target, r.sequence = r.rig.target(r.target.Token+1), 0
	r.record(r.target.Token, base)
	_, err := run(r.rig, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target, Snapshot: base})
	require.NoError(r.t, err)
	_, err = run(r.rig, r.node.StartInstance, workspace.StartInstanceInput{Target: r.target, Image: "image:", Secrets: r.sealed.Secrets})
	require.NoError(r.t, err)
}

// finishedLive is rig.finished after live snapshots.
func (r *retained) finishedLive() workspace.RemoveInstanceInput {
	r.t.Helper()
	require.NoError(r.t, r.halt(workspace.StopInstanceInput{Target: r.target, GraceSeconds: 1}))
	r.sequence++
	made, err := run(r.rig, r.node.Backup, workspace.BackupInput{Target: r.target, Kind: "final", Sequence: r.sequence})
	require.NoError(r.t, err)
	c := commitOf(r.target, made)
	c.Sequence = r.sequence
	require.NoError(r.t, runPlain(r.rig, r.node.Commit, workspace.CommitInput{Target: r.target, Commit: c}))
	return workspace.RemoveInstanceInput{Target: r.target, Snapshot: made.Backup.Snapshot, StatDigest: made.StatDigest}
}

// bytes is how much the packs on a store have.
func (r *retained) bytes(store int) (total int64) {
	r.t.Helper()
	err := filepath.WalkDir(r.path(store, workspace.RepositoryPrefix(id)+"/data"), func(_ string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		total += info.Size()
		return err
	})
	require.NoError(r.t, err)
	return total
}

// check has stock restic read all of both stores, when it is here.
func (r *retained) check() {
	r.t.Helper()
	restic, err := exec.LookPath("restic")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), "restic") {
			r.t.Fatal("restic is required (HOLDFAST_REQUIRE) and is not here")
		}
		r.t.Log("restic is not here: what it says of the stores is not asked")
		return
	}
	password, err := r.node.Identity.Open(r.sealed.Password, keys.PurposeRepositoryPassword)
	require.NoError(r.t, err)
	for store := range r.dirs {
		command := exec.Command(restic, "--no-cache", "--no-lock", "-r", r.path(store, workspace.RepositoryPrefix(id)), "check", "--read-data")
		command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(password))
		out, err := command.CombinedOutput()
		require.NoError(r.t, err, "store %d: %s", store, out)
		require.Contains(r.t, string(out), "no errors were found")
		require.NotContains(r.t, strings.ToLower(string(out)), "missing")
	}
}

// recommit changes a commit on one store alone.
func (r *retained) recommit(store, sequence int, change func(*workspace.Commit)) {
	r.t.Helper()
	path := r.commitPath(store, sequence)
	data, err := os.ReadFile(path)
	require.NoError(r.t, err)
	var commit workspace.Commit
	require.NoError(r.t, json.Unmarshal(data, &commit))
	change(&commit)
	changed, err := json.Marshal(commit)
	require.NoError(r.t, err)
	require.NoError(r.t, os.Remove(path))
	require.NoError(r.t, os.WriteFile(path, changed, 0o644))
}

// lock puts a lock of another machine's restic on the first store: a copy of what a running backup of this package leaves
// would be one of this process.
func (r *retained) lock() {
	r.t.Helper()
	require.NoError(r.t, os.MkdirAll(r.path(0, workspace.RepositoryPrefix(id)+"/locks"), 0o755))
	require.NoError(r.t, os.WriteFile(r.path(0, workspace.RepositoryPrefix(id)+"/locks/"+strings.Repeat("ab", 32)), bytes.Repeat([]byte("x"), 200), 0o644))
}

// atRemoval calls something when the n-th snapshot is removed from the second store, which answers nothing meanwhile.
func (r *retained) atRemoval(n int, do func()) {
	removals := 0
	r.stores[1].Inject(faulty.Rule{Op: faulty.Delete, Match: func(key string) bool {
		if strings.Contains(key, "/snapshots/") {
			if removals++; removals == n {
				do()
			}
		}
		return false
	}, Kind: faulty.Error})
}

// pruneIs says whether a prune has come to the removal of indexes (new ones are there), or of packs (old ones are gone).
func (r *retained) pruneIs(part string) bool {
	entries, err := os.ReadDir(r.path(0, workspace.RepositoryPrefix(id)+"/index"))
	if err != nil {
		return false
	}
	if part == "/index/" {
		return len(entries) > 3
	}
	return len(entries) == 1
}
