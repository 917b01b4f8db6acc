package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// cost is what one command took.
type cost struct {
	wall time.Duration
	cpu  time.Duration // user and system time, of its children too
	peak int64         // bytes of the largest resident set
}

// command is a command line, with what it needs.
type command struct {
	line        []string
	directory   string
	environment []string // added to a plain one
}

// killDelay is how long a command that was told to end may take to do it.
const killDelay = 5 * time.Second

// start prepares a command in a process group of its own, which ends with ctx.
func (c command) start(ctx context.Context) *exec.Cmd {
	child := exec.CommandContext(ctx, c.line[0], c.line[1:]...)
	child.Dir = c.directory
	child.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "LANG=C"}, c.environment...)
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	child.Cancel = func() error { return syscall.Kill(-child.Process.Pid, syscall.SIGTERM) }
	child.WaitDelay = killDelay
	return child
}

// run runs a command to its end and returns what it cost and printed.
func (c command) run(ctx context.Context, timeout time.Duration) (cost, string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %s", timeout))
	defer cancel()
	child := c.start(ctx)
	var output, failure bytes.Buffer
	child.Stdout, child.Stderr = &output, &failure
	lowerPeak()
	began := time.Now()
	err := child.Run()
	spent := cost{wall: time.Since(began)}
	if child.ProcessState != nil {
		if usage, ok := child.ProcessState.SysUsage().(*syscall.Rusage); ok {
			spent.cpu = child.ProcessState.UserTime() + child.ProcessState.SystemTime()
			spent.peak = usage.Maxrss << 10
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return spent, output.String(), fmt.Errorf("%s: %w%s", strings.Join(c.line, " "), err, lastLines(failure.String(), output.String()))
	}
	return spent, output.String(), nil
}

// lastLines is the end of what a failed command printed, for its error.
func lastLines(texts ...string) string {
	var lines []string
	for _, text := range texts {
		if text = strings.TrimSpace(text); text != "" {
			lines = append(lines, strings.Split(text, "\n")...)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return "\n\t" + strings.Join(lines[max(0, len(lines)-8):], "\n\t")
}

// lowerPeak forgets this process's own largest resident set. The kernel counts it into that of a child that is started
// from here, which would hide every smaller one.
func lowerPeak() {
	debug.FreeOSMemory()
	const resetPeak = "5"
	err := os.WriteFile("/proc/self/clear_refs", []byte(resetPeak), 0)
	_ = err // without it peaks below this process's own are reported too high
}
