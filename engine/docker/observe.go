package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// probeScript succeeds when /workspace is a mount of its own, and says the inode that is seen there. It needs nothing but a
// shell; ls is asked for the inode where it is there.
const probeScript = `while read -r id parent device root point rest; do
  [ "$point" = /workspace ] && { cd /workspace || exit 4; ls -di /workspace 2>/dev/null; exit 0; }
done < /proc/self/mountinfo
exit 3`

// Ready runs the probe until it succeeds.
func (e *Engine) Ready(ctx context.Context, id string) error {
	var last error
	for {
		found, err := e.inspect(ctx, id)
		if err != nil {
			return err
		}
		switch status(found) {
		case engine.StatusCreated, engine.StatusExited:
			return e.notRunning(ctx, found)
		case engine.StatusPaused:
			last = engine.ErrPaused
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
			return fmt.Errorf("waiting for the container to be ready: %w (last: %w)", err, last)
		}
	}
}

func (e *Engine) probe(ctx context.Context, found container.InspectResponse) error {
	source := ""
	for _, mounted := range found.Mounts {
		if mounted.Destination == workspacePath {
			source = mounted.Source
		}
	}
	if source == "" {
		return errors.New("the engine reports no mount at " + workspacePath)
	}
	var out bytes.Buffer
	code, err := e.Exec(ctx, found.ID, engine.ExecSpec{Command: []string{"/bin/sh", "-c", probeScript}, Stdout: &out, Stderr: &out})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("the probe ended with code %d: %q", code, engine.Redact(out.String(), environmentOf(found)))
	}
	// A directory that was renamed away and made anew is another one, although its path is the same.
	var content unix.Stat_t
	if err := unix.Stat(source, &content); err != nil {
		return fmt.Errorf("looking at the content directory: %w", err)
	}
	inode, _, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
	if seen, err := strconv.ParseUint(inode, 10, 64); err == nil && seen != content.Ino {
		return errors.New("the container does not see its content directory")
	}
	return nil
}

func (e *Engine) notRunning(ctx context.Context, found container.InspectResponse) error {
	var output bytes.Buffer
	err := e.logs(ctx, found.ID, engine.LogOptions{Tail: 20}, &output)
	reason := engine.Redact(strings.TrimSpace(found.State.Error), environmentOf(found))
	text := engine.Redact(output.String(), environmentOf(found))
	return errors.Join(fmt.Errorf("%w: %s is %s with code %d %s; its last output: %q", engine.ErrNotRunning,
		strings.TrimPrefix(found.Name, "/"), statusOf(found.State), found.State.ExitCode, reason, text), err)
}

// Logs writes the container's output, stdout and stderr together.
func (e *Engine) Logs(ctx context.Context, id string, options engine.LogOptions, w io.Writer) error {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	return e.logs(ctx, found.ID, options, w)
}

func (e *Engine) logs(ctx context.Context, id string, options engine.LogOptions, w io.Writer) error {
	wanted := container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: options.Follow, Tail: "all"}
	if options.Tail > 0 {
		wanted.Tail = strconv.Itoa(options.Tail)
	}
	stream, err := e.client.ContainerLogs(ctx, id, wanted)
	if err != nil {
		return mapError("asking for the output", err)
	}
	defer stream.Close()
	if _, err := stdcopy.StdCopy(w, w, stream); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("reading the output: %w", ctx.Err())
		}
		return fmt.Errorf("reading the output: %w", err)
	}
	if err := ctx.Err(); err != nil && options.Follow {
		return fmt.Errorf("following the output: %w", err)
	}
	return nil
}

// Stats asks once, without the engine's wait for a second sample.
func (e *Engine) Stats(ctx context.Context, id string) (engine.Usage, error) {
	sample, err := e.sample(ctx, id)
	if err != nil {
		return engine.Usage{}, err
	}
	memory := sample.MemoryStats.Usage
	// Files that the kernel keeps in memory only because there is room are not used: "total_" is cgroup v1.
	for _, name := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := sample.MemoryStats.Stats[name]; ok && cache < memory {
			memory -= cache
			break
		}
	}
	return engine.Usage{CPUSeconds: cpuSeconds(sample), MemoryBytes: int64(memory), PIDs: int64(sample.PidsStats.Current)}, nil
}

// Work asks as Stats does. What is only written to the kernel's cache shows as CPU time, and as bytes once it reaches the
// disk, where the kernel knows then whose it was (not with cgroup v1).
func (e *Engine) Work(ctx context.Context, id string) (engine.Work, error) {
	sample, err := e.sample(ctx, id)
	if err != nil {
		return engine.Work{}, err
	}
	return engine.Work{CPUSeconds: cpuSeconds(sample), IOBytes: ioBytes(sample)}, nil
}

func cpuSeconds(sample container.StatsResponse) float64 {
	return float64(sample.CPUStats.CPUUsage.TotalUsage) / 1e9
}

// ioBytes adds up what went to and from block devices and the network.
func ioBytes(sample container.StatsResponse) int64 {
	var total uint64
	for _, entry := range sample.BlkioStats.IoServiceBytesRecursive {
		// "Total" and, with cgroup v1, "Sync" and "Async" count the same bytes once more.
		if strings.EqualFold(entry.Op, "read") || strings.EqualFold(entry.Op, "write") {
			total += entry.Value
		}
	}
	for _, network := range sample.Networks {
		total += network.RxBytes + network.TxBytes
	}
	return int64(total)
}

func (e *Engine) sample(ctx context.Context, id string) (container.StatsResponse, error) {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return container.StatsResponse{}, err
	}
	if !found.State.Running {
		return container.StatsResponse{}, fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, id, statusOf(found.State))
	}
	answer, err := e.client.ContainerStatsOneShot(ctx, found.ID)
	if err != nil {
		return container.StatsResponse{}, mapError("asking for the usage", err)
	}
	defer answer.Body.Close()
	var sample container.StatsResponse
	if err := json.NewDecoder(answer.Body).Decode(&sample); err != nil {
		return container.StatsResponse{}, mapError("reading the usage", err)
	}
	return sample, nil
}
