package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/snapshot"
)

// The test's own binary is the engine that it measures, with keys that cost nothing.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == engineArgument {
		os.Exit(engineMain(os.Args[2:], snapshot.KDFParameters{N: 1024, R: 8, P: 1}))
	}
	os.Exit(m.Run())
}

// writeSources makes a few hundred kilobytes that look like sources.
func writeSources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a/one.go", "a/two.go", "b/c/three.go", "b/four.txt"} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		var text bytes.Buffer
		for line := range 4000 {
			text.WriteString(strings.Repeat(name, line%5) + " " + time.Unix(int64(line), 0).UTC().String() + "\n")
		}
		require.NoError(t, os.WriteFile(path, text.Bytes(), 0o644))
	}
	return dir
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries, "what the program made is gone")
}

// TestWholeRun measures everything once with data sets of a few files, and with restic where there is one.
func TestWholeRun(t *testing.T) {
	work := t.TempDir()
	arguments := []string{"--work", work, "--repositories", work, "--scale", "0.001", "--rounds", "1", "--source", writeSources(t)}
	restic, err := exec.LookPath("restic")
	if err == nil {
		arguments = append(arguments, "--peer", restic)
	} else if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), "restic") {
		t.Fatal("restic is required (HOLDFAST_REQUIRE) and is not here")
	}
	var out, log bytes.Buffer
	require.NoError(t, run(t.Context(), arguments, &out, &log), log.String())
	for _, set := range setNames {
		require.Contains(t, out.String(), "### Data set "+set)
	}
	for _, title := range stepTitles {
		require.Equal(t, len(setNames), strings.Count(out.String(), "| "+title+" | Holdfast |"), title)
	}
	require.Equal(t, 2*len(setNames), strings.Count(out.String(), "| Holdfast, resident |"))
	require.Contains(t, out.String(), "restores were compared")
	require.Equal(t, len(setNames), strings.Count(out.String(), "| 1.000 | scrypt 1024, 8, 1 |"), "what opening ours costs, in tests")
	require.NotContains(t, out.String(), "NaN")
	require.NotContains(t, out.String(), "Inf")
	if restic != "" {
		require.Contains(t, out.String(), "read Holdfast's repository of each data set: no errors")
		require.Contains(t, out.String(), "| restic ")
	}
	requireEmpty(t, work)
}

// TestInterrupted: who presses Ctrl-C in the middle gets an error and a clean machine.
func TestInterrupted(t *testing.T) {
	work := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	err := run(ctx, []string{"--work", work, "--repositories", work, "--scale", "0.001", "--source", writeSources(t)}, &out,
		writerFunc(func(text []byte) (int, error) {
			if bytes.Contains(text, []byte(unchangedStep)) {
				cancel()
			}
			return len(text), nil
		}))
	require.ErrorContains(t, err, "interrupted")
	require.Empty(t, out.String())
	requireEmpty(t, work)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWrongArguments(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho something else\n"), 0o755))
	for want, arguments := range map[string][]string{
		"only flags are expected":          {"restic"},
		`no data set "small"`:              {"--sets", "small"},
		`no step "second"`:                 {"--steps", "second"},
		"--rounds 0":                       {"--rounds", "0"},
		"--scale -1":                       {"--scale", "-1"},
		"--timeout 0s":                     {"--timeout", "0"},
		"no such file":                     {"--work", filepath.Join(t.TempDir(), "none")},
		"not a directory":                  {"--work", script},
		"neither restic nor kopia":         {"--peer", script},
		"is not a program":                 {"--peer", t.TempDir()},
		"flag provided but not defined":    {"--peers", "x"},
		"invalid value":                    {"--scale", "big"},
		"--peer: stat ":                    {"--peer", filepath.Join(t.TempDir(), "none")},
		"name another directory, or a sma": {"--scale", "10", "--work", smallDirectory(t), "--repositories", smallDirectory(t), "--source", t.TempDir()},
	} {
		if slices.Contains(arguments, "") {
			continue
		}
		require.ErrorContains(t, run(t.Context(), arguments, io.Discard, io.Discard), want, "%v", arguments)
	}
}

// smallDirectory is one on a file system that cannot have room for a hundred times the data sets; "" without one.
func smallDirectory(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/run/lock", "/dev"} {
		if isMemory(dir) {
			return dir
		}
	}
	return ""
}

// TestTimeout: a command that hangs is ended, with whatever it started.
func TestTimeout(t *testing.T) {
	_, _, err := command{line: []string{"/bin/sh", "-c", "sleep 1000 & wait"}}.run(t.Context(), 50*time.Millisecond)
	require.ErrorContains(t, err, "longer than")
}

// TestDifferencesAreSeen: no difference between a source and its restore goes unnoticed.
func TestDifferencesAreSeen(t *testing.T) {
	for what, spoil := range map[string]func(dir string) error{
		"a byte": func(dir string) error {
			return rewrite(filepath.Join(dir, "d/file"), func(b []byte) []byte { b[70_000] ^= 1; return b })
		},
		"the length": func(dir string) error {
			return rewrite(filepath.Join(dir, "d/file"), func(b []byte) []byte { return b[:len(b)-1] })
		},
		"the time":     func(dir string) error { return os.Chtimes(filepath.Join(dir, "d/file"), time.Time{}, time.Unix(5, 0)) },
		"the mode":     func(dir string) error { return os.Chmod(filepath.Join(dir, "d"), 0o700) },
		"a link":       func(dir string) error { return relink(filepath.Join(dir, "link"), "elsewhere") },
		"one missing":  func(dir string) error { return os.Remove(filepath.Join(dir, "d/empty")) },
		"one too many": func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/more"), nil, 0o600) },
		"nothing":      func(string) error { return nil },
	} {
		t.Run(what, func(t *testing.T) {
			want, got := t.TempDir(), t.TempDir()
			at := time.Unix(1_000_000, 0)
			for _, dir := range []string{want, got} {
				require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
				for name, size := range map[string]int{"d/file": 100_000, "d/empty": 0} {
					path := filepath.Join(dir, name)
					require.NoError(t, os.WriteFile(path, make([]byte, size), 0o644))
					require.NoError(t, os.Chtimes(path, at, at))
				}
				require.NoError(t, os.Symlink("target", filepath.Join(dir, "link")))
			}
			require.NoError(t, spoil(got))
			err := compareTrees(t.Context(), want, got)
			if what == "nothing" {
				require.NoError(t, err)
			} else {
				require.Error(t, err)
			}
		})
	}
}

func rewrite(path string, change func([]byte) []byte) error {
	stat, err := os.Stat(path)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, change(content), 0); err != nil {
		return err
	}
	return os.Chtimes(path, stat.ModTime(), stat.ModTime())
}

func relink(path, target string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// TestChangesAreUndone: every round begins with the same content.
func TestChangesAreUndone(t *testing.T) {
	source, dir := writeSources(t), filepath.Join(t.TempDir(), "set")
	require.NoError(t, makeSet(t.Context(), tinySet, dir, 0.003, []string{source}))
	before, err := contents(dir)
	require.NoError(t, err)
	require.Len(t, before, 300)
	changes, err := changeFiles(dir, 7)
	require.NoError(t, err)
	require.NotEmpty(t, changes)
	during, err := contents(dir)
	require.NoError(t, err)
	different := 0
	for path := range before {
		if before[path] != during[path] {
			different++
		}
	}
	require.Equal(t, len(changes), different)
	require.NoError(t, undo(changes))
	after, err := contents(dir)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func contents(dir string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		found[path] = string(content)
		return err
	})
	return found, err
}

// TestSetsAreTheSameEachTime: numbers of two runs are of the same data.
func TestSetsAreTheSameEachTime(t *testing.T) {
	source := writeSources(t)
	for _, name := range setNames {
		var sets []map[string]string
		for range 2 {
			dir := filepath.Join(t.TempDir(), "set")
			require.NoError(t, makeSet(t.Context(), name, dir, 0.0002, []string{source}))
			found, err := contents(dir)
			require.NoError(t, err)
			relative := map[string]string{}
			for path, content := range found {
				relative[strings.TrimPrefix(path, dir)] = content
			}
			sets = append(sets, relative)
		}
		require.NotEmpty(t, sets[0])
		require.Equal(t, sets[0], sets[1])
	}
}

// TestDerivation reads what opening a repository costs from a key file as restic writes it.
func TestDerivation(t *testing.T) {
	dir := t.TempDir()
	got, err := derivation(dir)
	require.NoError(t, err)
	require.Empty(t, got, "another format")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "keys"), 0o700))
	key := filepath.Join(dir, "keys", "0af1")
	require.NoError(t, os.WriteFile(key, []byte(`{"created":"2026-12-01T02:28:05Z","kdf":"scrypt","N":32768,"r":8,"p":6,"salt":"","data":""}`), 0o600))
	got, err = derivation(dir)
	require.NoError(t, err)
	require.Equal(t, "scrypt 32768, 8, 6", got)
	require.NoError(t, os.WriteFile(key, []byte("{"), 0o600))
	_, err = derivation(dir)
	require.Error(t, err)
}

func TestMedians(t *testing.T) {
	require.Equal(t, 2.0, median([]float64{3, 1, 2}))
	require.Equal(t, 2.5, median([]float64{4, 1, 2, 3}))
	require.Equal(t, []float64{2, 3}, ratios([]float64{4, 9}, []float64{2, 3}))
}
