package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// StatDigest hashes the stat records (path, kind, mode, owner, size, mtime, ctime, inode) of everything below dir, dir
// itself included. It equals BackupResult.StatDigest exactly while nothing in the directory has changed since the
// backup looked: any write, even one that puts the times back, changes a ctime. What cannot be read counts as it is
// found; ErrSourceMissing when dir itself cannot be read.
//
// excludes are BackupOptions.Excludes of that backup. What they and the ignore files in the directory leave out does not
// count. The ignore files do: two equal digests are of the same rules.
func StatDigest(ctx context.Context, dir string, excludes []string) (string, error) {
	rules, err := callRules(excludes)
	if err != nil {
		return "", fmt.Errorf("examining %s without what is excluded: %w", quotePath(dir), err)
	}
	root, err := openRoot(dir)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	s := &scan{root: root, workers: runtime.GOMAXPROCS(0), handler: digestHandler{}, excludes: rules}
	top, err := s.run(ctx)
	if err != nil {
		return "", fmt.Errorf("examining %s: %w", quotePath(dir), err)
	}
	return top.statDigest(), nil
}

// statDigest is the digest of a whole scan; d is its root.
func (d *scanDir) statDigest() string {
	h := sha256.New()
	h.Write([]byte(statDigestVersion))
	h.Write(d.stat.appendRecord(nil, ""))
	h.Write(d.digest[:])
	return hex.EncodeToString(h.Sum(nil))
}

// digestHandler only lets the scan look.
type digestHandler struct{}

func (digestHandler) enter(context.Context, *scanDir, int) error                  { return nil }
func (digestHandler) listed(context.Context, *scanDir) error                      { return nil }
func (digestHandler) entry(context.Context, int, *scanDir, int, *scanEntry) error { return nil }
func (digestHandler) leave(context.Context, *scanDir) error                       { return nil }
func (digestHandler) omit(string, OmissionKind, string)                           {}
func (digestHandler) vanished(string)                                             {}
func (digestHandler) excluded(string, bool, *ignorePattern, *ignoreRules)         {}
func (digestHandler) voidRules(string, error)                                     {}
