package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked means that another process holds the lock.
var errLocked = errors.New("locked by another process")

// isLocked reports whether a process holds the lock, without keeping others who ask the same from the answer.
func isLocked(path string) (bool, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("opening the lock file: %w", err)
	}
	defer file.Close()
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at the lock %s: %w", path, err)
	}
	return false, nil
}

// tryLock takes an exclusive lock that ends with this process, however it ends. The file stays: removing it would let
// two processes hold locks on two files of one name.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock file: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		return file, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = errLocked
	}
	return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), file.Close())
}

// lockFile takes the lock, waiting for another process to let it go; waiting is called once if there is a wait.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	for said := false; ; {
		file, err := tryLock(path)
		if err == nil {
			return func() { _ = file.Close() }, nil // closing is what unlocks, and cannot fail in a way that keeps it
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		if !said {
			said = true
			waiting()
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("waiting for %s: %w", path, ctx.Err())
		case <-timer.C:
		}
	}
}
