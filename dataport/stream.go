package dataport

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"holdfast/engine"
)

// lingerTimeout is how long a stream that has ended is still read, so that its last frame is not lost to a reset: a
// connection closed with unread bytes takes back what was sent.
const lingerTimeout = 5 * time.Second

// stream is one upgraded connection on the server's side.
type stream struct {
	server *Server
	frames *frameConn
	claims Claims
	remote string
	token  string // only to be blotted out

	redact redactor
	input  *input
	resize chan engine.Size // nil without a terminal
}

// run reads the request, has the host do it, sends how it went, and leaves the connection to be closed.
func (s *stream) run() {
	options := s.server.options
	logger := options.Logger.With(
		"subject", s.claims.Subject, "verb", s.claims.Verb, "workspace", s.claims.Name, "workspace_id", s.claims.WorkspaceID,
		"instance", s.claims.Token, "remote", s.remote, "nonce", s.claims.Nonce)
	started := time.Now()

	request, err := s.readRequest()
	exec := ExecRequest{}
	if request.Exec != nil {
		exec = *request.Exec
	}
	s.redact = newRedactor(s.token, exec)
	s.frames.silence = options.timing.silence()
	// The audit line. The command is left out with its environment: arguments can hold secrets.
	logger.Info("data port: authorised")

	ctx, cancel := context.WithCancelCause(s.server.base)
	defer cancel(nil)
	s.input = newInput(s.frames)
	if exec.TTY {
		s.resize = make(chan engine.Size, 1)
	}
	var background sync.WaitGroup
	over := make(chan struct{})
	background.Go(func() { s.receive(cancel) })
	background.Go(func() { s.frames.ping(options.timing.ping, over) })
	unblock := context.AfterFunc(ctx, func() {
		s.input.cut(context.Cause(ctx))
		s.frames.interrupt()
	})

	var outcome result
	if err == nil {
		outcome, err = s.perform(ctx, request)
	}
	if err != nil && ctx.Err() != nil {
		// Why the context ended is what the client has to tell apart; what the host made of it is only text.
		err = fmt.Errorf("%w (%v)", context.Cause(ctx), err)
	}
	unblock()
	s.finish(outcome, err)
	close(over)
	// The peer closes once it has the last frame; who does not is not waited for.
	s.frames.conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	linger := time.AfterFunc(lingerTimeout, func() { closeNow(s.frames) })
	background.Wait()
	linger.Stop()

	attributes := []any{"duration", time.Since(started).Round(time.Millisecond), "input_bytes", s.input.bytes(), "exit_code", outcome.ExitCode, "bytes", outcome.Bytes}
	if err != nil {
		logger.Log(context.Background(), levelOf(err), "data port: failed",
			append(attributes, "code", codeOf(err).name, "error", s.redact.clean(err.Error()))...)
		return
	}
	logger.Info("data port: done", attributes...)
}

func levelOf(err error) slog.Level {
	if codeOf(err).sentinel == ErrInternal {
		return slog.LevelError
	}
	return slog.LevelWarn
}

// finish sends the last frame and ends this side's half of the connection.
func (s *stream) finish(outcome result, err error) {
	s.input.cut(fmt.Errorf("%w: it has ended", ErrCut))
	if err == nil {
		err = s.frames.writeJSON(frameResult, outcome)
	} else {
		err = s.frames.writeJSON(frameError, RemoteError{Code: codeOf(err).name, Message: s.redact.clean(err.Error())})
	}
	if err == nil {
		closeWrite(s.frames.conn)
	} else {
		closeNow(s.frames) // the peer is gone: it sees a stream without an end, which it takes for cut
	}
}

// perform has the host do what was asked.
func (s *stream) perform(ctx context.Context, request streamRequest) (outcome result, err error) {
	defer func() {
		if value := recover(); value != nil {
			s.server.options.Logger.Error("data port: the host panicked", "verb", s.claims.Verb,
				"panic", s.redact.clean(fmt.Sprint(value)), "stack", s.redact.clean(string(debug.Stack())))
			err = fmt.Errorf("%w: it panicked", ErrInternal)
		}
	}()
	host := s.server.options.Host
	out := &dataWriter{conn: s.frames, kind: frameStdout}
	switch s.claims.Verb {
	case VerbExec, VerbShell:
		if err := s.input.open(); err != nil {
			return outcome, err
		}
		streams := Streams{Stdin: s.input, Stdout: out, Stderr: &dataWriter{conn: s.frames, kind: frameStderr}, Resize: s.resize}
		if request.Notices {
			streams.Notice = s.notice
		}
		outcome.ExitCode, err = host.Exec(ctx, s.claims, *request.Exec, streams)
	case VerbLogs:
		if request.Hooks {
			err = host.HookLog(ctx, s.claims, out)
		} else {
			err = host.Logs(ctx, s.claims, *request.Logs, out)
		}
		outcome.Bytes = out.sent.Load()
	case VerbDownload:
		err = s.download(ctx, *request.Download, out)
		outcome.Bytes = out.sent.Load()
	case VerbUpload:
		if err := s.input.open(); err != nil {
			return outcome, err
		}
		var uploaded UploadResult
		uploaded, err = host.Upload(ctx, s.claims, s.input)
		if err == nil && !s.input.complete() {
			err = fmt.Errorf("%w: the upload was accepted before its end had been read", ErrInternal)
		}
		outcome.Files, outcome.Bytes = uploaded.Files, uploaded.Bytes
	}
	return outcome, err
}

// notice tells the client something that the command does not print. Whoever reads the stream notices when it has failed.
func (s *stream) notice(text string) {
	_ = s.frames.write(frameNotice, []byte(printable(s.redact.clean(text))))
}

func (s *stream) download(ctx context.Context, request DownloadRequest, out io.Writer) error {
	var buffered *bufio.Writer
	err := s.server.options.Host.Download(ctx, s.claims, request, func(info DownloadInfo) (io.Writer, error) {
		if buffered != nil {
			return nil, fmt.Errorf("%w: the download was begun twice", ErrInternal)
		}
		if err := s.frames.writeJSON(frameBegin, info); err != nil {
			return nil, err
		}
		buffered = bufio.NewWriterSize(out, maxData) // tar writes in small pieces
		return buffered, nil
	})
	if err != nil {
		return err
	}
	if buffered == nil {
		return fmt.Errorf("%w: the download ended before it was begun", ErrInternal)
	}
	return buffered.Flush()
}

// receive reads the connection until it ends, and ends the stream's context with it.
func (s *stream) receive(cancel context.CancelCauseFunc) {
	if s.resize != nil {
		defer close(s.resize)
	}
	for {
		kind, payload, err := s.frames.read()
		if err == nil {
			err = s.take(kind, payload)
		}
		if err != nil {
			cause := fmt.Errorf("%w: the client went away: %w", ErrCut, err)
			if errors.Is(err, errProtocol) {
				cause = fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			// The context first: it is the reason that counts.
			cancel(cause)
			s.input.cut(cause)
			return
		}
	}
}

func (s *stream) take(kind frameType, payload []byte) error {
	switch kind {
	case framePing:
		return nil
	case frameInput:
		return s.input.push(payload)
	case frameEnd:
		s.input.end(io.EOF)
		return nil
	case frameResize:
		var size engine.Size
		if err := json.Unmarshal(payload, &size); err != nil {
			return fmt.Errorf("%w: a terminal size that is none", errProtocol)
		}
		s.setSize(size)
		return nil
	}
	return fmt.Errorf("%w: a %q frame from the client", errProtocol, string(kind))
}

// setSize leaves the newest size for the host and never waits for it.
func (s *stream) setSize(size engine.Size) {
	if s.resize == nil {
		return
	}
	select {
	case <-s.resize:
	default:
	}
	s.resize <- size // only this goroutine sends, and there is room now
}
