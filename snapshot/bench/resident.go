package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// residentName is Holdfast as a library whose repository stays open, as in a node's agent.
const residentName = "Holdfast, resident"

// residentEngine is a running `engine resident`.
type residentEngine struct {
	child  *exec.Cmd
	in     io.WriteCloser
	lines  *bufio.Scanner
	stderr bytes.Buffer
	cancel context.CancelFunc
}

func startResident(ctx context.Context, c command) (*residentEngine, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &residentEngine{child: c.start(ctx), cancel: cancel}
	e.child.Stderr = &e.stderr
	out, err := e.child.StdoutPipe()
	if err == nil {
		e.in, err = e.child.StdinPipe()
	}
	if err == nil {
		lowerPeak()
		err = e.child.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("starting the resident engine: %w", err)
	}
	e.lines = bufio.NewScanner(out)
	return e, nil
}

// backup has the engine make one backup. After an error only end may be called.
func (e *residentEngine) backup(timeout time.Duration) (cost, error) {
	timer := time.AfterFunc(timeout, e.cancel)
	defer timer.Stop()
	if _, err := io.WriteString(e.in, "backup\n"); err != nil {
		return cost{}, fmt.Errorf("asking the resident engine: %w", err)
	}
	if !e.lines.Scan() {
		return cost{}, errors.Join(errors.New("the resident engine ended"), e.lines.Err())
	}
	var answer residentAnswer
	if err := json.Unmarshal(e.lines.Bytes(), &answer); err != nil {
		return cost{}, fmt.Errorf("the resident engine's answer: %w", err)
	}
	return cost{wall: answer.Wall, cpu: answer.CPU, peak: answer.Peak}, nil
}

// end lets the engine finish.
func (e *residentEngine) end() error {
	defer e.cancel()
	_ = e.in.Close() // the child sees it, or has ended
	if err := e.child.Wait(); err != nil {
		return fmt.Errorf("the resident engine: %w%s", err, lastLines(e.stderr.String()))
	}
	return nil
}
