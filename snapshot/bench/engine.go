package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"holdfast/snapshot"
	"holdfast/storage"
)

// engineArgument makes this program the one that is measured: the engine alone, without what measures it.
const engineArgument = "engine"

// engineMain does one thing with a repository: `create`, `backup SOURCE`, `restore TARGET`, `check`, or `resident SOURCE`,
// which backs up as often as it is told to. cost is that of a new repository's key.
func engineMain(arguments []string, cost snapshot.KDFParameters) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := engine(ctx, arguments, cost); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func engine(ctx context.Context, arguments []string, cost snapshot.KDFParameters) (err error) {
	if len(arguments) < 2 {
		return errors.New("engine: what, and on which repository?")
	}
	verb, path := arguments[0], arguments[len(arguments)-1]
	if os.Getenv("GOGC") == "" && verb != "resident" { // as `holdfast snapshot` does, and a node's worker does not
		debug.SetGCPercent(snapshot.GCPercent)
	}
	stopProfiles, err := startProfiles(os.Getenv("HOLDFAST_BENCH_PROFILES"), verb)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopProfiles()) }()
	provider, err := storage.OpenDirectory(path, storage.DirectoryOptions{Create: verb == "create"})
	if err != nil {
		return err
	}
	mirror, err := storage.NewMirror([]storage.Provider{provider}, storage.MirrorOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mirror.Close()) }()
	secret := []byte(os.Getenv("HOLDFAST_BENCH_PASSWORD"))
	open := snapshot.Open
	if verb == "create" {
		open = snapshot.Create
	}
	repository, err := open(ctx, mirror, secret, snapshot.Options{KDF: cost})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	state := path + ".state" // as `holdfast snapshot` keeps one, and a node's agent
	switch verb {
	case "create":
		return nil
	case "backup":
		_, err := backUp(ctx, repository, arguments[1], state)
		return err
	case "resident":
		return resident(ctx, repository, arguments[1], state, os.Stdin, os.Stdout)
	case "restore":
		report, err := repository.Restore(ctx, "latest", arguments[1], snapshot.RestoreOptions{})
		if err == nil && len(report.Warnings) > 0 {
			err = fmt.Errorf("the restore warns: %s", strings.Join(report.Warnings, "; "))
		}
		return err
	case "check":
		report, err := repository.Check(ctx, snapshot.CheckOptions{ReadData: true})
		if err == nil && len(report.Errors) > 0 {
			err = fmt.Errorf("the check found: %s", strings.Join(report.Errors, "; "))
		}
		return err
	default:
		return fmt.Errorf("engine: %q is nothing it does", verb)
	}
}

func backUp(ctx context.Context, repository *snapshot.Repository, source, state string) (*snapshot.BackupResult, error) {
	result, err := repository.Backup(ctx, source, snapshot.BackupOptions{StateFile: state})
	if err == nil && len(result.Omissions) > 0 {
		err = fmt.Errorf("the backup left out %d entries, first %s: %s", len(result.Omissions), result.Omissions[0].Path, result.Omissions[0].Reason)
	}
	return result, err
}

// residentAnswer is what the resident engine says after each backup.
type residentAnswer struct {
	Wall, CPU time.Duration
	Peak      int64 // of the whole process so far
}

// resident makes a backup for each line that it reads, in a repository that stays open.
func resident(ctx context.Context, repository *snapshot.Repository, source, state string, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		before, err := usedCPU()
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := backUp(ctx, repository, source, state); err != nil {
			return err
		}
		answer := residentAnswer{Wall: time.Since(began)}
		after, err := usedCPU()
		if err != nil {
			return err
		}
		answer.CPU = after - before
		if answer.Peak, err = ownPeak(); err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(answer); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
	}
	return lines.Err()
}

func usedCPU() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("asking for the time used: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

func ownPeak() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	var kilobytes int64
	for line := range strings.SplitSeq(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
				return 0, fmt.Errorf("reading VmHWM: %w", err)
			}
		}
	}
	return kilobytes << 10, nil
}

// startProfiles begins a CPU profile of this process in dir, and takes a heap profile whenever the heap has grown. The
// function that it returns ends both.
func startProfiles(dir, verb string) (func() error, error) {
	if dir == "" {
		return func() error { return nil }, nil
	}
	name := func(kind string) string {
		return filepath.Join(dir, fmt.Sprintf("%s-%d.%s.pprof", verb, os.Getpid(), kind))
	}
	processor, err := os.Create(name("cpu"))
	if err != nil {
		return nil, fmt.Errorf("profiling: %w", err)
	}
	runtime.MemProfileRate = 64 << 10
	if err := pprof.StartCPUProfile(processor); err != nil {
		return nil, fmt.Errorf("profiling: %w", err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- watchHeap(name("heap"), stop) }()
	return func() error {
		pprof.StopCPUProfile()
		close(stop)
		return errors.Join(processor.Close(), <-stopped)
	}, nil
}

// watchHeap keeps the profile of the largest heap that it sees.
func watchHeap(name string, stop <-chan struct{}) error {
	var largest uint64
	for ticker := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case <-stop:
			ticker.Stop()
			return nil
		case <-ticker.C:
		}
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		if memory.HeapInuse <= largest {
			continue
		}
		largest = memory.HeapInuse
		file, err := os.Create(name)
		if err != nil {
			return fmt.Errorf("profiling: %w", err)
		}
		if err := errors.Join(pprof.WriteHeapProfile(file), file.Close()); err != nil {
			return fmt.Errorf("profiling: %w", err)
		}
	}
}
