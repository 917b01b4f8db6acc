package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/engine"
)

// rotatingLog keeps the newest output in two files of at most half the bound each.
type rotatingLog struct {
	mu        sync.Mutex
	path, old string
	limit     int64
	size      int64
	file      *os.File
}

func newRotatingLog(path, old string, bound int64) (*rotatingLog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the output log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("opening the output log: %w", err)
	}
	return &rotatingLog{path: path, old: old, limit: bound / 2, size: info.Size(), file: file}, nil
}

// Write appends, and begins a new file at a line's end where one is full.
func (l *rotatingLog) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, os.ErrClosed
	}
	written := 0
	if l.size+int64(len(data)) > l.limit {
		if end := bytes.IndexByte(data, '\n'); end >= 0 {
			n, err := l.file.Write(data[:end+1])
			written, data = n, data[n:]
			if err != nil {
				return written, err
			}
		}
		if err := l.rotate(); err != nil {
			return written, err
		}
	}
	n, err := l.file.Write(data)
	l.size += int64(n)
	return written + n, err
}

func (l *rotatingLog) rotate() error {
	next, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("rotating the output log: %w", err)
	}
	if err := errors.Join(os.Rename(l.path, l.old), os.Rename(l.path+".new", l.path)); err != nil {
		next.Close()
		return fmt.Errorf("rotating the output log: %w", err)
	}
	err = l.file.Close()
	l.file, l.size = next, 0
	return err
}

// Close closes the log; a second time is no error.
func (l *rotatingLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// Logs writes the main process's output, oldest first. Following ends when the instance has exited.
func (e *Engine) Logs(ctx context.Context, id string, options engine.LogOptions, w io.Writer) error {
	found, err := e.load(id)
	if err != nil {
		return err
	}
	old, file, err := openLogs(ctx, found.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if !options.Follow {
			return nil
		}
		file, err = e.waitForLog(ctx, found)
	}
	if err != nil || file == nil {
		return err
	}
	defer func() { file.Close() }()
	current, err := io.ReadAll(file)
	if err != nil {
		return fmt.Errorf("reading the output log: %w", err)
	}
	if _, err := w.Write(lastLines(append(old, current...), options.Tail)); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	for options.Follow {
		// Asked before the read: what was written before the end is then read for certain.
		state, err := loadDir(found.dir)
		ended := errors.Is(err, engine.ErrNotFound) || (err == nil && state.status == engine.StatusExited)
		if err != nil && !ended {
			return err
		}
		if _, err := io.Copy(w, file); err != nil {
			return fmt.Errorf("following the output: %w", err)
		}
		if next := rotated(file, filepath.Join(found.dir, outputFile)); next != nil {
			if _, err := io.Copy(w, file); err != nil {
				next.Close()
				return fmt.Errorf("following the output: %w", err)
			}
			file.Close()
			file = next
			continue
		}
		if ended {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("following the output: %w", err)
		}
	}
	return nil
}

// openLogs opens the newest output and reads what came before it. A rotation between the two would leave out what it moves
// away, so that it looks again then. The error is fs.ErrNotExist when the instance never wrote any.
func openLogs(ctx context.Context, dir string) (old []byte, file *os.File, err error) {
	path, oldPath := filepath.Join(dir, outputFile), filepath.Join(dir, oldOutputFile)
	for {
		file, err = os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			// Just being rotated, or its supervisor died in the middle of that: what was moved away is the newest.
			file, err = os.Open(oldPath)
			return nil, file, err
		}
		if err != nil {
			return nil, nil, fmt.Errorf("opening the output log: %w", err)
		}
		if old, err = os.ReadFile(oldPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			file.Close()
			return nil, nil, fmt.Errorf("reading the output log: %w", err)
		}
		have, err := file.Stat()
		if now, nowErr := os.Stat(path); err == nil && nowErr == nil && os.SameFile(have, now) {
			return old, file, nil
		}
		file.Close()
		if err := ctx.Err(); err != nil {
			return nil, nil, fmt.Errorf("reading the output log: %w", err)
		}
	}
}

// waitForLog waits until the instance was started; nil when it was removed instead.
func (e *Engine) waitForLog(ctx context.Context, found *instance) (*os.File, error) {
	for {
		file, err := os.Open(filepath.Join(found.dir, outputFile))
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening the output log: %w", err)
		}
		if _, err := loadDir(found.dir); err != nil {
			if errors.Is(err, engine.ErrNotFound) {
				return nil, nil
			}
			return nil, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, fmt.Errorf("waiting for output: %w", err)
		}
	}
}

// rotated opens the file at path when it is another than the open one.
func rotated(open *os.File, path string) *os.File {
	have, err := open.Stat()
	if err != nil {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	info, err := next.Stat()
	if err != nil || os.SameFile(have, info) {
		next.Close()
		return nil
	}
	return next
}

// lastLines gives the last n lines of data, all when n is 0.
func lastLines(data []byte, n int) []byte {
	if n <= 0 {
		return data
	}
	at := len(data)
	if at > 0 && data[at-1] == '\n' {
		at--
	}
	for ; n > 0; n-- {
		at = bytes.LastIndexByte(data[:at], '\n')
		if at < 0 {
			return data
		}
	}
	return data[at+1:]
}
