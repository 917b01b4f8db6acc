package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holdDataDir takes a node's data directory for this process alone. Two agents on one directory would each do one
// operation at a time on a workspace, together two (invariant 6), and take each other's lease away for ever. A second
// one waits: most likely the first is on its way out. The kernel lets go when the process dies, however it does.
//
// The lock's name is of this file on this boot of this machine: of two agents with the same one the first is dead.
func holdDataDir(ctx context.Context, dir string, logger *slog.Logger) (release func(), name string, err error) {
	file, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("locking the data directory: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			if name, err = lockName(file); err != nil {
				return nil, "", errors.Join(err, file.Close())
			}
			return func() { file.Close() }, name, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, "", errors.Join(fmt.Errorf("locking the data directory: %w", err), file.Close())
		case !told:
			told = true
			logger.Warn("another agent has this data directory; waiting until it has ended", "directory", dir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, "", errors.Join(fmt.Errorf("waiting for another agent to leave the data directory: %w", ctx.Err()), file.Close())
		}
	}
}

// lockName tells a locked file from every other, also on other machines: a copy of a directory has another.
func lockName(file *os.File) (string, error) {
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("looking at the data directory's lock: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // no such system tells its boots apart: it is not said
	}
	if err != nil {
		return "", fmt.Errorf("naming the data directory's lock: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", nil
	}
	return fmt.Sprintf("%s.%d.%d", strings.TrimSpace(string(boot)), stat.Dev, stat.Ino), nil
}
