package main

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
)

// stateFilesUnused is how long a state file in the cache directory stays that no backup and no restore has used.
const stateFilesUnused = 90 * 24 * time.Hour

// stateFlags choose where what a directory was is remembered from one backup to the next.
func stateFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "state-file", Usage: "`FILE` that remembers what the directory was, outside of it (default: one in this user's cache directory, kept for 90 days after its last use)"},
		&cli.BoolFlag{Name: "no-state-file", Usage: "remember nothing: what changed is found with the parent snapshot"},
	}
}

// stateFile is the state file of a directory's backups: the one that was asked for, or one for this repository, host and
// directory in the cache directory, from which those are removed that nobody has used for long. Where there is no such
// directory nothing is remembered.
func stateFile(c *cli.Context, now time.Time, repository, host, dir string) (string, error) {
	chosen := c.String("state-file")
	switch {
	case c.Bool("no-state-file") && chosen != "":
		return "", usage("--state-file and --no-state-file: one of the two")
	case c.Bool("no-state-file"):
		return "", nil
	case chosen != "":
		file, err := filepath.Abs(chosen)
		if err != nil {
			return "", usage("--state-file: %w", err)
		}
		if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
			return "", usage("--state-file: there is no directory %s", filepath.Dir(file)).withMend("make it first")
		}
		if inside, err := filepath.Rel(dir, file); err == nil && filepath.IsLocal(inside) {
			return "", usage("--state-file: %s is in the directory itself", file).withMend("choose a place outside: every backup would find it changed")
		}
		return file, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil //nolint:nilerr // a user without a home directory is no reason not to back up
	}
	cache = filepath.Join(cache, "holdfast", "state")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", nil //nolint:nilerr // nor is one that cannot be written to
	}
	if host == "" {
		if host, err = os.Hostname(); err != nil {
			return "", nil //nolint:nilerr // the backup itself says so
		}
	}
	name := sha256.Sum256([]byte(repository + "\x00" + host + "\x00" + dir))
	file := filepath.Join(cache, snapshot.StateFileName([16]byte(name[:16])))
	// What cannot be removed now is looked at by the next command: no backup fails for its cache.
	_, _ = snapshot.RemoveStateFiles(cache, now.Add(-stateFilesUnused))
	if inside, err := filepath.Rel(dir, file); err == nil && filepath.IsLocal(inside) {
		return "", nil // a backup of the home directory
	}
	return file, nil
}
