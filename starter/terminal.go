package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"golang.org/x/term"

	"holdfast/dataport"
	"holdfast/engine"
)

// rawTerminal hands this terminal to a command elsewhere: keys go through as they are, and its size is passed on. The
// returned function gives the terminal back.
func (p *program) rawTerminal(ctx context.Context, request *dataport.ExecRequest, streams *dataport.Streams) (func(), error) {
	in, ok := p.stdin.(*os.File)
	if !ok || !p.stdinTerminal {
		return nil, usage("--tty: standard input is not a terminal").withMend("leave --tty out")
	}
	fd := int(in.Fd())
	request.Size = terminalSize(fd)
	saved, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fail(exitFailed, "putting the terminal into raw mode: %w", err)
	}
	sizes := make(chan engine.Size, 1)
	if request.Size != (engine.Size{}) {
		sizes <- request.Size // engines learn sizes from the channel
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				select {
				case sizes <- terminalSize(fd):
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	streams.Resize = sizes
	return func() {
		signal.Stop(changed)
		cancel()
		<-done
		_ = term.Restore(fd, saved)
	}, nil
}

func terminalSize(fd int) engine.Size {
	width, height, err := term.GetSize(fd)
	if err != nil || width <= 0 || height <= 0 || width > 0xffff || height > 0xffff {
		return engine.Size{}
	}
	return engine.Size{Columns: uint16(width), Rows: uint16(height)}
}

// countingReader knows whether any input has been taken.
type countingReader struct {
	r    io.Reader
	read atomic.Bool
}

func (c *countingReader) Read(data []byte) (int, error) {
	n, err := c.r.Read(data)
	if n > 0 {
		c.read.Store(true)
	}
	return n, err
}

func (c *countingReader) any() bool { return c.read.Load() }
