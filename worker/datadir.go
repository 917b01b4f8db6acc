package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// holdDataDir takes a node's data directory for this process alone. Two agents on one directory would each do one
// operation at a time on a workspace, together two (invariant 6), and take each other's lease away for ever. A second
// one waits: most likely the first is on its way out. The kernel lets go when the process dies, however it does.
func holdDataDir(ctx context.Context, dir string, logger *slog.Logger) (release func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { file.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("locking the data directory: %w", err), file.Close())
		case !told:
			told = true
			logger.Warn("another agent has this data directory; waiting until it has ended", "directory", dir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for another agent to leave the data directory: %w", ctx.Err()), file.Close())
		}
	}
}
