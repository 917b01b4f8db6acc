package guard

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// identity names a process so that a later one with the same number is not taken for it.
type identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since the machine was started
	Boot      string `json:"boot"`
}

func identify(pid int) (identity, error) {
	if pid <= 1 {
		return identity{}, fmt.Errorf("process %d is no guard", pid)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return identity{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	// The command's name may hold spaces and parentheses; the start time is field 22.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("identifying process %d: a short line", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return identity{}, err
	}
	return identity{PID: pid, StartTime: start, Boot: boot}, nil
}

// open takes hold of that very process: the handle comes first, so that the number cannot change hands before it is compared.
// ok is false when it is gone.
func (i identity) open() (fd int, ok bool, err error) {
	if i.PID <= 1 || i.StartTime == 0 || i.Boot == "" {
		return -1, false, fmt.Errorf("refusing to take process %d for a guard", i.PID)
	}
	fd, err = unix.PidfdOpen(i.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, false, nil
	}
	if err != nil {
		return -1, false, fmt.Errorf("opening process %d: %w", i.PID, err)
	}
	if now, err := identify(i.PID); err != nil || now != i {
		unix.Close(fd)
		return -1, false, nil
	}
	return fd, true, nil
}

// kill kills that very process; one that is gone is no error.
func (i identity) kill() error {
	fd, ok, err := i.open()
	if err != nil || !ok {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", i.PID, err)
	}
	return nil
}

// gone waits until the process behind a handle has ended.
func gone(fd int, within time.Duration) (bool, error) {
	deadline := time.Now().Add(within)
	for {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(left.Milliseconds(), 0)))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("waiting for a process's end: %w", err)
		case n > 0:
			return true, nil
		}
		if left <= 0 {
			return false, nil
		}
	}
}
