package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

func pathsOf(e *Excluded) (paths []string) {
	for _, exclusion := range e.Paths {
		paths = append(paths, exclusion.Path)
	}
	return paths
}

// TestExcludes: what rules leave out is not stored, and is told by the backup, the list and the restore, with the rule.
func TestExcludes(t *testing.T) {
	repository, provider := directoryRepository(t)
	r := newTestRepository(t, storage.PolicyAll, provider)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{
		IgnoreFile: []byte("# made again by a build\n*.o\n/build/\n.*\n!keep.o\n"), "main.c": []byte("c"), "main.o": []byte("o"), "keep.o": []byte("k"),
		"build/out": []byte("b"), "build/deep/er": []byte("b"), "lib/build/x": []byte("x"), "lib/a.o": []byte("o"), ".cache/x": []byte("x"),
		"lib/" + IgnoreFile: []byte("/tmp\n!/a.o\n"), "lib/tmp": []byte("t"), "lib/sub/tmp": []byte("t"),
		"secret": []byte("s"), "build/" + IgnoreFile: []byte("!out\n"), "na\xffme.o": nil,
	})
	result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final, Excludes: []string{"/secret"}})
	require.NoError(t, err)
	require.Empty(t, result.Omissions)
	require.Equal(t, &Excluded{Count: 6, Paths: []Exclusion{
		{Path: `"na\xffme.o"`, Pattern: "*.o", File: IgnoreFile},
		{Path: ".cache/", Pattern: ".*", File: IgnoreFile},
		{Path: "build/", Pattern: "/build/", File: IgnoreFile},
		{Path: "lib/tmp", Pattern: "/tmp", File: "lib/" + IgnoreFile},
		{Path: "main.o", Pattern: "*.o", File: IgnoreFile},
		{Path: "secret", Pattern: "/secret"},
	}}, result.Excluded)
	require.Equal(t, int64(7), result.Files)

	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(6), infos[0].Excluded)
	stored, err := r.resolveSnapshot(t.Context(), result.Snapshot)
	require.NoError(t, err)
	require.Equal(t, []string{"/secret", "*.o", ".*", "/build/", "/tmp"}, stored.Excludes, "restic's own field names the patterns")

	target := filepath.Join(t.TempDir(), "target")
	report, err := r.Restore(t.Context(), result.Snapshot, target, RestoreOptions{})
	require.NoError(t, err)
	require.Equal(t, result.Excluded, report.Excluded)
	var names []string
	require.NoError(t, filepath.WalkDir(target, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, strings.TrimPrefix(path, target+"/"))
		}
		return err
	}))
	require.Equal(t, []string{IgnoreFile, "keep.o", "lib/" + IgnoreFile, "lib/a.o", "lib/build/x", "lib/sub/tmp", "main.c"}, names)
	for _, restic := range everyRestic(t) {
		requireNoResticErrors(t, restic, repository)
		require.Contains(t, stock(t, restic, repository, "", "cat", "snapshot", result.Snapshot), `"/build/"`)
	}

	again, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final, Excludes: []string{"!/main.o", "!secret"}})
	require.NoError(t, err)
	require.Equal(t, []string{`"na\xffme.o"`, ".cache/", "build/", "lib/tmp"}, pathsOf(again.Excluded), "the call's rules weigh most")
	for _, wrong := range []string{"[a", "", "  ", "a\x00", "a\nb", "!"} {
		_, err = r.Backup(t.Context(), dir, BackupOptions{Excludes: []string{"ok", wrong}})
		require.ErrorIs(t, err, storage.ErrInvalid, "%q", wrong)
		_, err = StatDigest(t.Context(), dir, []string{wrong})
		require.ErrorIs(t, err, storage.ErrInvalid, "%q", wrong)
	}
}

// TestManyExcludes: the list is bounded, the count is not, and both are the same whoever found what when.
func TestManyExcludes(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	files := map[string][]byte{IgnoreFile: []byte("*.o\n"), "kept": nil}
	const count = 2*maxStoredExclusions + 700
	var want []string
	for i := range count {
		name := fmt.Sprintf("d%d/%05d.o", i%7, i)
		files[name] = nil
		want = append(want, name)
	}
	slices.Sort(want)
	writeFiles(t, dir, files)
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(count), result.Excluded.Count)
	require.Len(t, result.Excluded.Paths, maxStoredExclusions)
	require.Equal(t, want[:maxStoredExclusions], pathsOf(result.Excluded))
}

// TestVoidRules: an ignore file that cannot be had, or has a mistake in it, leaves nothing out, and this is told. Rules of
// other files stay.
func TestVoidRules(t *testing.T) {
	for name, test := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"a link": {want: "not a regular file", make: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path+".there", []byte("*\n"), 0o644))
			require.NoError(t, os.Symlink(IgnoreFile+".there", path))
		}},
		"a directory": {want: "not a regular file", make: func(t *testing.T, path string) {
			writeFiles(t, path, map[string][]byte{"x": nil})
		}},
		"no pattern": {want: "line 2: \"[a\" is not a pattern", make: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte("*\n[a\n"), 0o644))
		}},
		"not text": {want: "zero byte", make: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte("*\n\x00"), 0o644))
		}},
		"too large": {want: "more than 1048576 bytes", make: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("*\n", maxIgnoreFile/2+1)), 0o644))
		}},
		"too many rules": {want: "more than 10000 rules", make: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("*\n", maxIgnorePatterns+1)), 0o644))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := wholeMemoryRepository(t)
			dir := t.TempDir()
			writeFiles(t, dir, map[string][]byte{IgnoreFile: []byte("top\n"), "d/f": nil, "d/top": nil})
			test.make(t, filepath.Join(dir, "d", IgnoreFile))
			result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
			require.NoError(t, err)
			require.Empty(t, result.Omissions)
			require.Equal(t, []string{"d/top"}, pathsOf(result.Excluded))
			require.Len(t, result.Excluded.Problems, 1)
			require.Contains(t, result.Excluded.Problems[0], "d/"+IgnoreFile+" leaves nothing out: ")
			require.Contains(t, result.Excluded.Problems[0], test.want)
			dumped(t, r, result.Snapshot, "d/f")
			digest, err := StatDigest(t.Context(), dir, nil)
			require.NoError(t, err)
			require.Equal(t, result.StatDigest, digest)
		})
	}
}

// TestExcludesHideNoOmission: what an ordinary user may not read is an omission unless a rule leaves it out, and an ignore
// file that may not be read is one, too.
func TestExcludesHideNoOmission(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_EXCLUDES"); base != "" {
		r := wholeMemoryRepository(t)
		dir := filepath.Join(base, "dir")
		writeFiles(t, dir, map[string][]byte{
			IgnoreFile: []byte("wanted-away*\n"), "wanted-away": nil, "wanted-away-dir/f": nil, "closed": nil,
			"d/" + IgnoreFile: []byte("*\n"), "d/f": []byte("f"),
		})
		for _, name := range []string{"wanted-away", "wanted-away-dir", "closed", "d/" + IgnoreFile} {
			require.NoError(t, os.Chmod(filepath.Join(dir, name), 0))
		}
		result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
		var omitted []string
		for _, o := range result.Omissions {
			omitted = append(omitted, o.Path)
		}
		require.Equal(t, []string{"closed", "d/" + IgnoreFile}, omitted)
		require.Equal(t, []string{"wanted-away", "wanted-away-dir/"}, pathsOf(result.Excluded))
		require.Len(t, result.Excluded.Problems, 1)
		require.Equal(t, "f", string(dumped(t, r, result.Snapshot, "d/f")))
		return
	}
	base := t.TempDir()
	for dir := base; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o777))
	}
	asNobody(t, "TestExcludesHideNoOmission", "SNAPSHOT_TEST_EXCLUDES="+base)
}

// TestRulesThatChangeMeanwhile: a snapshot whose ignore file is not the one that it was made by says so, which keeps the
// content (invariant 1).
func TestRulesThatChangeMeanwhile(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written":  func(path string) error { return os.WriteFile(path, []byte("*.p\n"), 0o644) },
		"removed":  os.Remove,
		"replaced": func(path string) error { return os.Rename(path+".new", path) },
	} {
		for _, kind := range []Kind{Live, Final} {
			t.Run(fmt.Sprint(name, " ", kind), func(t *testing.T) {
				r := wholeMemoryRepository(t)
				dir := t.TempDir()
				writeFiles(t, dir, map[string][]byte{"d/" + IgnoreFile: []byte("*.o\n"), "d/" + IgnoreFile + ".new": []byte("*.o\n"), "d/a.o": nil})
				r.moments.listed = func(path string) {
					if path == "d" {
						require.NoError(t, change(filepath.Join(dir, "d", IgnoreFile)))
					}
				}
				result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: kind})
				require.NoError(t, err)
				require.NotEmpty(t, result.Omissions)
				require.Equal(t, "d/"+IgnoreFile, result.Omissions[0].Path)
				require.Equal(t, OmissionChanged, result.Omissions[0].Kind)
			})
		}
	}
}

// TestStatDigestWithExcludes: changes of what is left out do not count, those of the rules do (invariant 1).
func TestStatDigestWithExcludes(t *testing.T) {
	r := wholeMemoryRepository(t)
	write := func(name, content string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644) }
	}
	for name, test := range map[string]struct {
		change func(dir string) error
		equal  bool
	}{
		"a file that is left out":                    {write("log", "more"), true},
		"one by the call's rule":                     {write("called", "more"), true},
		"a new file in a directory that is left out": {write("cache/d/new", "x"), true},
		"a rule below such a directory":              {write("cache/"+IgnoreFile, "x"), true},
		"a file that is kept":                        {write("kept", "more"), false},
		"a new file that is kept":                    {write("new", ""), false},
		"the same rules written again":               {write(IgnoreFile, "log\n/cache/\n"), false},
		"more rules":                                 {write(IgnoreFile, "log\n/cache/\nkept\n"), false},
		"fewer rules":                                {write(IgnoreFile, ""), false},
		"rules below":                                {write("d/"+IgnoreFile, "kept\n"), false},
		"rules that are gone":                        {func(dir string) error { return os.Remove(filepath.Join(dir, IgnoreFile)) }, false},
		"rules that are void": {func(dir string) error {
			return os.Rename(filepath.Join(dir, "kept"), filepath.Join(dir, IgnoreFile))
		}, false},
		"the directory that is left out": {func(dir string) error { return os.Rename(filepath.Join(dir, "cache/d"), filepath.Join(dir, "cache/e")) }, true},
		"one in its place that is kept": {func(dir string) error {
			if err := os.RemoveAll(filepath.Join(dir, "cache")); err != nil {
				return err
			}
			return write("cache", "a file now")(dir)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, map[string][]byte{
				IgnoreFile: []byte("log\n/cache/\n"), "log": []byte("l"), "cache/d/f": nil, "kept": []byte("k"), "d/kept": nil, "called": nil,
			})
			result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final, Excludes: []string{"called"}})
			require.NoError(t, err)
			require.NoError(t, test.change(dir))
			digest, err := StatDigest(t.Context(), dir, []string{"called"})
			require.NoError(t, err)
			require.Equal(t, test.equal, digest == result.StatDigest)
			without, err := StatDigest(t.Context(), dir, nil)
			require.NoError(t, err)
			require.NotEqual(t, result.StatDigest, without, "other rules are another digest")
		})
	}
}
