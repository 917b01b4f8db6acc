package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
)

// stateFlags choose where what a directory was is remembered from one backup to the next.
func stateFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "state-file", Usage: "`FILE` that remembers what the directory was, outside of it (default: one in this user's cache directory)"},
		&cli.BoolFlag{Name: "no-state-file", Usage: "remember nothing: what changed is found with the parent snapshot"},
	}
}

// stateFile is the state file of a directory's backups: the one that was asked for, or one for this repository, host and
// directory in the cache directory. Where there is no such directory nothing is remembered.
func stateFile(c *cli.Context, repository, host, dir string) (string, error) {
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
	file := filepath.Join(cache, hex.EncodeToString(name[:16]))
	if inside, err := filepath.Rel(dir, file); err == nil && filepath.IsLocal(inside) {
		return "", nil // a backup of the home directory
	}
	return file, nil
}
