package snapshot

import (
	"bytes"
	"context"
	"math/rand"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// keptFiles collects what a scan does not leave out.
type keptFiles struct {
	digestHandler
	mu    sync.Mutex
	names []string
	void  []string
}

func (k *keptFiles) entry(_ context.Context, _ int, d *scanDir, _ int, e *scanEntry) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.name != IgnoreFile {
		k.names = append(k.names, d.join(e.name))
	}
	return nil
}

func (k *keptFiles) voidRules(path string, _ error) { k.void = append(k.void, path) }

// keptByUs are the files below dir that our rules do not leave out.
func keptByUs(t *testing.T, dir string, excludes []string) []string {
	t.Helper()
	rules, err := callRules(excludes)
	require.NoError(t, err)
	root, err := openRoot(dir)
	require.NoError(t, err)
	file := os.NewFile(uintptr(root), dir)
	defer file.Close()
	kept := &keptFiles{}
	s := &scan{root: root, workers: 2, handler: kept, excludes: rules}
	_, err = s.run(t.Context())
	require.NoError(t, err)
	require.Empty(t, kept.void)
	slices.Sort(kept.names)
	return kept.names
}

// keptByGit are those that git would not ignore, with the same files and patterns.
func keptByGit(t *testing.T, git, repository, dir string, excludes []string) []string {
	t.Helper()
	arguments := []string{"--git-dir", repository, "--work-tree", dir, "-c", "core.excludesFile=/dev/null", "ls-files", "--others", "-z", "--exclude-per-directory=" + IgnoreFile}
	for _, pattern := range excludes {
		arguments = append(arguments, "--exclude="+pattern)
	}
	command := exec.Command(git, arguments...)
	command.Dir = dir
	var failure bytes.Buffer
	command.Stderr = &failure
	out, err := command.Output()
	require.NoError(t, err, failure.String())
	var kept []string
	for name := range strings.SplitSeq(string(out), "\x00") {
		if name != "" && path.Base(name) != IgnoreFile {
			kept = append(kept, name)
		}
	}
	slices.Sort(kept)
	return kept
}

func emptyGit(t *testing.T) (git, repository string) {
	t.Helper()
	git = requireCommand(t, "git")
	repository = filepath.Join(t.TempDir(), "git")
	out, err := exec.Command(git, "init", "--bare", "--quiet", repository).CombinedOutput()
	require.NoError(t, err, string(out))
	return git, repository
}

// TestPatternsAreGits: every form that gitignore(5) names, and where matchers are known to differ, on one tree.
func TestPatternsAreGits(t *testing.T) {
	t.Parallel()
	git, repository := emptyGit(t)
	dir := t.TempDir()
	for _, name := range []string{
		"a", "b", "ab", "abc", "a.o", "b.o", ".hidden", "#x", "!x", "x y", "x ", `x\`, "[ab]", "*", "?", "a]", "a-", "ä", "A", "_", "7", "\xff",
		"d/a", "d/b.o", "d/e/a", "d/e/f/a", "d/e/f/b.o", "d/x/e/a", "doc/a", "e/a", "e/d/a", "f/e/a", "f/g/e/a", "ab/a", "b/c/d/e/f", "abd/e", "x/abc/y/b.o", "x/y/z/abc",
	} {
		if strings.HasPrefix(name, "ab/") || strings.HasPrefix(name, "b/") {
			name = "sub/" + name
		}
		writeFiles(t, dir, map[string][]byte{name: nil})
	}
	require.NoError(t, os.Symlink("d", filepath.Join(dir, "link"))) // no directory to git, nor to us
	all := keptByUs(t, dir, nil)
	tried := 0
	for _, rules := range []string{
		"a", "/a", "a/", "/d/", "d/a", "/d/a", "d/e", "d/*", "d/**", "d/**/a", "**/a", "**/e/a", "d/**/", "**", "*", "/*", "/**", "**/", "/", "//", "!", "!/",
		"*.o", "*o", "*.", "?", "??", "a?c", "[ab]", "[!ab]", "[^ab]", "[a-c]", "[!a-c]", "[]]", "[!]a]", "[a-]", "a[]-]", "[-a]", "[[:alpha:]]", "[[:upper:]7]", "[![:alnum:]]",
		"[[:punct:]]", "[[:digit:][:space:]]", "x[[:blank:]]y", "[[:xdigit:]]", "[[:graph:]]", "[[:print:]]", "[[:cntrl:]]", "[[:lower:]]", "[[a]", "[[:a]", `[\]]`, `[a\-c]`, `[\a-\c]`, "[Z-a]", "[c-a]",
		`\#x`, "#x", `\!x`, "!x", `x\ y`, "x y", "x ", `x\ `, "x  ", `x\ \ `, `\*`, `\?`, `\[ab\]`, `\a`, `x\\`, "a ", "a\t",
		"*\n!a", "*\n!/d\n!/d/e", "*\n!d/\n!a", "d\n!d/a", "d/*\n!d/e", "/*\n!/d\n/d/*\n!/d/e\n/d/e/*\n!/d/e/a", "!a\na", "a\n!a\na", "*.o\n!b.o", "**/*.o\n!d/**/b.o",
		"a\r\nb\r\n\r\n", "\n\n  \n", "\ufeffa", "a\\ \r\n", "link", "link/", "ä", "[ä]", "?\n", "\xff", "*/a", "*/*/a", "d/*/a", "d/?/a", "d/[e]/a", "d[/]a", "*/e", "**/d/**/a", "**/e/**", "***", "d/***/a", "/***/a",
		"a*b*c", "*b*", "*a*b*c*d", "abc/**/b.o", "x/**/abc", "x/**/abc/**", "**/*bc", "e/**/d", "x/*/*/abc", "x/*/abc", "sub/**/f", "sub/**/d/*/f", ".*", "[.]hidden", "d/e/", "d/e/f/**", "d/e//", "foo", "A",
		`**\/a`, `d/**\/a`, "d/**/e/**/a", "*/**/a", "**/*/a", "**/**/a", "?/e**/a", "?/**e/a", "*/e**", "?/a", "d/e/*", "d/e/**/a", "*c*/*/*", "doc/*", "/doc/a", "doc",
	} {
		writeFiles(t, dir, map[string][]byte{IgnoreFile: []byte(rules)})
		want := keptByGit(t, git, repository, dir, nil)
		require.Equal(t, want, keptByUs(t, dir, nil), "%q", rules)
		if len(want) < len(all) {
			tried++
		}
	}
	require.Greater(t, tried, 100, "most rules must leave something out here, or nothing is shown")
}

// TestIgnoreFilesAreGits: random trees with random ignore files at the top and below, and rules of the call.
func TestIgnoreFilesAreGits(t *testing.T) {
	t.Parallel()
	git, repository := emptyGit(t)
	rounds := 150
	if os.Getenv("HOLDFAST_CAMPAIGN") != "" {
		rounds = 3000
	}
	names := []string{"a", "b", "c", "ab", "abc", "a.o", "b.o", "a b", ".c", "#a", "[a]", "é"}
	excluded, included := 0, 0
	for seed := range rounds {
		random := rand.New(rand.NewSource(int64(seed)))
		pick := func(from []string) string { return from[random.Intn(len(from))] }
		segment := func() string {
			name := pick(names)
			switch random.Intn(8) {
			case 0:
				return "*"
			case 1:
				return "*" + name[len(name)-1:]
			case 2:
				return strings.TrimLeft(name[:1], "[") + "*" // a [ would have to be closed
			case 3:
				return "[" + pick([]string{"", "!", "^"}) + pick([]string{"ab", "a-c", "]b", "b-", "[:alpha:]", ".", `\]a`}) + "]" + pick([]string{"", "*"})
			case 4:
				return strings.Repeat("?", 1+random.Intn(3))
			case 5:
				return `\` + name
			default:
				return name
			}
		}
		pattern := func() string {
			var segments []string
			for range 1 + random.Intn(3) {
				if random.Intn(5) == 0 {
					segments = append(segments, "**")
				} else {
					segments = append(segments, segment())
				}
			}
			return pick([]string{"", "", "", "!", "/", "!/"}) + strings.Join(segments, "/") + pick([]string{"", "", "", "/"})
		}
		dir := t.TempDir()
		dirs := []string{""}
		for range 3 + random.Intn(8) {
			below := filepath.Join(pick(dirs), pick(names))
			require.NoError(t, os.MkdirAll(filepath.Join(dir, below), 0o755))
			dirs = append(dirs, below)
		}
		total := 0
		for _, below := range dirs {
			for range 4 {
				file := filepath.Join(dir, below, pick(names))
				if _, err := os.Lstat(file); err != nil {
					require.NoError(t, os.WriteFile(file, nil, 0o644))
					total++
				}
			}
			if below == "" || random.Intn(3) == 0 {
				var lines strings.Builder
				for range 1 + random.Intn(4) {
					lines.WriteString(pattern() + pick([]string{"\n", "\n", "\r\n", " \n", "\n#a\n\n"}))
				}
				writeFiles(t, filepath.Join(dir, below), map[string][]byte{IgnoreFile: []byte(lines.String())})
			}
		}
		var excludes []string
		for range random.Intn(3) {
			excludes = append(excludes, pattern())
		}
		want := keptByGit(t, git, repository, dir, excludes)
		require.Equal(t, want, keptByUs(t, dir, excludes), "seed %d, %q", seed, excludes)
		excluded += total - len(want)
		included += len(want)
	}
	t.Logf("%d files left out and %d kept as git does", excluded, included)
	require.Greater(t, min(excluded, included), 2*rounds, "both must be common")
}

// TestNotPatterns: what git silently never matches is a mistake to us, and the line is named.
func TestNotPatterns(t *testing.T) {
	for rules, want := range map[string]string{
		"a\n[b":               "line 2",
		"[[:letter:]]":        "[:letter:]",
		"a\n\nb\\":            "line 3",
		"a\x00b":              "zero byte",
		"[a-":                 "not closed",
		`[\`:                  "not closed",
		"[[:alpha:":           "not closed",
		"# fine\n*[!\n":       "line 2",
		`a\` + "/":            "backslash",
		"x\n" + `[a-\` + "\n": "line 2",
	} {
		_, err := parseIgnoreFile(rules)
		require.ErrorIs(t, err, errPattern, "%q", rules)
		require.ErrorContains(t, err, want, "%q", rules)
	}
}

// TestPatternsTakeBoundedTime: a pattern that makes backtracking matchers take for ever.
func TestPatternsTakeBoundedTime(t *testing.T) {
	p, err := parseIgnorePattern(strings.Repeat("*a", 60) + "/" + strings.Repeat("**/*a/", 60) + "b")
	require.NoError(t, err)
	require.False(t, p.match("x", strings.Repeat(strings.Repeat("a", 100)+"/", 40)+"c", false))
	p, err = parseIgnorePattern("/" + strings.Repeat("a*", 100))
	require.NoError(t, err)
	require.True(t, p.match("x", strings.Repeat("ab", 100), false))
}

func FuzzIgnoreFile(f *testing.F) {
	for _, seed := range []string{"*.o", "!/a/**/b/", `[!a-\]]`, "a\\ \r\n", "**/", "[[:alpha:]]"} {
		f.Add(seed, "d/a.o")
	}
	f.Fuzz(func(t *testing.T, data, path string) {
		patterns, err := parseIgnoreFile(data)
		if err != nil {
			require.Empty(t, patterns)
			return
		}
		rules := &ignoreRules{patterns: patterns}
		name := path[strings.LastIndexByte(path, '/')+1:]
		pattern, _ := rules.decide(path, name, false)
		if pattern != nil {
			require.Contains(t, data, pattern.text)
		}
	})
}
