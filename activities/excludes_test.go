package activities

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// What rules in the content leave out is told by the backup, by the list of snapshots and by the restore.
func TestExcludesAreTold(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	r.write(1, snapshot.IgnoreFile, "/build/\n*.log\n")
	r.write(1, "sub/"+snapshot.IgnoreFile, "[\n")
	for i := range 2 * workspace.MaxExclusions {
		r.write(1, fmt.Sprintf("logs/%02d.log", i), "x")
	}
	r.write(1, "build/out", "made again by a build")
	require.NoError(t, r.halt(workspace.StopInstanceInput{Target: target, GraceSeconds: 1}))
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
	require.NoError(t, err)
	const count = 1 + 2*workspace.MaxExclusions
	require.EqualValues(t, count, made.Backup.Excluded)
	require.EqualValues(t, count, made.Excluded.Count)
	require.Len(t, made.Excluded.Paths, workspace.MaxExclusions)
	require.Equal(t, workspace.Exclusion{Path: "build/", Pattern: "/build/", File: snapshot.IgnoreFile}, made.Excluded.Paths[0])
	require.Len(t, made.Excluded.Problems, 1)
	require.Contains(t, made.Excluded.Problems[0], "sub/"+snapshot.IgnoreFile)
	require.Zero(t, made.Backup.Omitted)

	require.NoError(t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: commitOf(target, made)}))
	commits, _, _ := r.catalog.Commits(t.Context(), id)
	require.Equal(t, made.Excluded, commits[0].Excluded)

	r.record(2, made.Backup.Snapshot)
	prepared, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(2), Snapshot: made.Backup.Snapshot})
	require.NoError(t, err)
	require.EqualValues(t, count, prepared.Restored.Excluded)
	require.NoDirExists(t, filepath.Join(r.content(2), "build"))
	require.FileExists(t, filepath.Join(r.content(2), snapshot.IgnoreFile))
}

// invariant 1, where rules leave something out: a change of what they leave out keeps nothing, for it is in no snapshot
// anyway; a change of the rules does, for what they left out before is not what they leave out now.
func TestRemovalWithExcludes(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, r *rig)
		kept   bool
	}{
		"nothing":                 {change: func(*testing.T, *rig) {}},
		"a file that is left out": {change: func(_ *testing.T, r *rig) { r.write(1, "build/out", "more") }},
		"a new one beside it":     {change: func(_ *testing.T, r *rig) { r.write(1, "build/more", "x") }},
		"a file that is not":      {change: func(_ *testing.T, r *rig) { r.write(1, "notes.txt", "more") }, kept: true},
		"the rules":               {change: func(_ *testing.T, r *rig) { r.write(1, snapshot.IgnoreFile, "build/\nnotes.txt\n") }, kept: true},
		"the rules, to the same":  {change: func(_ *testing.T, r *rig) { r.write(1, snapshot.IgnoreFile, "build/\n") }, kept: true},
		"rules below":             {change: func(_ *testing.T, r *rig) { r.write(1, "src/"+snapshot.IgnoreFile, "main.go\n") }, kept: true},
		"the rules, which are gone": {change: func(t *testing.T, r *rig) {
			require.NoError(t, os.Remove(filepath.Join(r.content(1), snapshot.IgnoreFile)))
		}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			target := r.started(1)
			r.write(1, snapshot.IgnoreFile, "build/\n")
			r.write(1, "build/out", "made again by a build")
			input := r.finished(target)
			test.change(t, r)
			err := runPlain(r, r.node.RemoveInstance, input)
			if !test.kept {
				require.NoError(t, err)
				require.NoDirExists(t, r.content(1))
				return
			}
			typed(t, err, workspace.ErrorContentChanged)
			require.FileExists(t, filepath.Join(r.content(1), "build/out"))
		})
	}
}
