package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// ticksPerSecond is USER_HZ, which Linux fixes at 100 for what it shows in /proc on every architecture that Go knows.
const ticksPerSecond = 100

// Ready asks the init whether its workspace is the content directory, by device and inode, and runs a command.
func (e *Engine) Ready(ctx context.Context, id string) error {
	var last error
	for {
		found, err := e.load(id)
		if err != nil {
			return err
		}
		switch found.status {
		case engine.StatusCreated, engine.StatusExited:
			return e.notRunning(ctx, found)
		case engine.StatusPaused:
			last = fmt.Errorf("%w: %s", engine.ErrPaused, found.record.Spec.Name)
		default:
			err := e.probe(ctx, found)
			if err == nil {
				return nil
			}
			if ctx.Err() == nil || last == nil { // an error of the context's end says nothing about the instance
				last = err
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the instance to be ready: %w (last: %w)", err, last)
		}
	}
}

func (e *Engine) notRunning(ctx context.Context, found *instance) error {
	var output bytes.Buffer
	err := e.Logs(ctx, found.record.ID, engine.LogOptions{Tail: 20}, &output)
	described := found.describe()
	text := engine.Redact(output.String(), found.record.Spec.Environment)
	return errors.Join(fmt.Errorf("%w: %s is %s with code %d; its last output: %q",
		engine.ErrNotRunning, described.Name, described.Status, described.ExitCode, text), err)
}

func (e *Engine) probe(ctx context.Context, found *instance) error {
	conn, err := found.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if err := sendRequest(conn, controlRequest{Version: controlVersion, Look: true}, nil); err != nil {
		return err
	}
	var answer controlAnswer
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return fmt.Errorf("asking for the workspace: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	var content unix.Stat_t
	if err := unix.Stat(found.record.Spec.ContentDir, &content); err != nil {
		return fmt.Errorf("looking at the content directory: %w", err)
	}
	if answer.Device != uint64(content.Dev) || answer.Inode != content.Ino {
		return errors.New("the instance does not see its content directory")
	}
	code, err := e.Exec(ctx, found.record.ID, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "exit 0"}})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("the probe ended with code %d", code)
	}
	return nil
}

// Stats adds up what the instance's processes use; where a cgroup counts, also what ended ones used.
func (e *Engine) Stats(ctx context.Context, id string) (engine.Usage, error) {
	found, members, err := e.running(ctx, id)
	if err != nil {
		return engine.Usage{}, err
	}
	var usage engine.Usage
	for _, current := range members {
		usage.MemoryBytes += current.residentPages * int64(os.Getpagesize())
		usage.PIDs += current.threads
	}
	usage.CPUSeconds = found.cpuSeconds(members)
	if memory, ok := cgroupSet(found.run.Cgroups).memory(); ok {
		usage.MemoryBytes = memory
	}
	return usage, nil
}

// Work adds up what the instance's processes have done. The bytes are those of the processes that are there and of the
// children that they waited for: no cgroup counts what goes through the kernel's cache on every machine.
func (e *Engine) Work(ctx context.Context, id string) (engine.Work, error) {
	found, members, err := e.running(ctx, id)
	if err != nil {
		return engine.Work{}, err
	}
	work := engine.Work{CPUSeconds: found.cpuSeconds(members)}
	for pid := range members {
		// One that has ended meanwhile is told by the next count. What another user's process did may not be readable
		// without privileges; its CPU time is.
		if bytes, err := readIO(pid); err == nil {
			work.IOBytes += bytes
		}
	}
	return work, nil
}

// running loads an instance that runs, or is paused, and its processes.
func (e *Engine) running(ctx context.Context, id string) (*instance, map[int]stat, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	found, err := e.load(id)
	if err != nil {
		return nil, nil, err
	}
	if found.status != engine.StatusRunning && found.status != engine.StatusPaused {
		return nil, nil, fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, found.record.Spec.Name, found.status)
	}
	members, err := found.members()
	return found, members, err
}

// cpuSeconds is the CPU time of the processes; where a cgroup counts, also that of ended ones.
func (i *instance) cpuSeconds(members map[int]stat) float64 {
	if seconds, ok := cgroupSet(i.run.Cgroups).cpu(); ok {
		return seconds
	}
	var ticks uint64
	for _, current := range members {
		ticks += current.ticks
	}
	return float64(ticks) / ticksPerSecond
}
