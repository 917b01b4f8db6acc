package dataport

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"holdfast/engine"
)

// ClientOptions configures a Client.
type ClientOptions struct {
	Address     string // host:port, as Server.Address says
	Fingerprint string // as Server.Fingerprint says
	Token       string // from Sign
	// DialContext opens the TCP connection; default: a net.Dialer. It is where a resolver of one's own goes.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)

	timing timing // for tests
}

// Client speaks to one data port with one token. Every method opens a connection of its own. A token for exec, shell or
// upload is good for one call.
//
// A stream that ends before it says that it is complete is an error that wraps ErrCut. What the node refused is a
// *RemoteError, in which errors.Is finds this package's errors. When the context ends, its cause is returned.
type Client struct{ options ClientOptions }

// Dial prepares a client; nothing is sent before a method is called. fingerprint is Server.Fingerprint.
func Dial(address, fingerprint, token string) (*Client, error) {
	return NewClient(ClientOptions{Address: address, Fingerprint: fingerprint, Token: token})
}

// NewClient is Dial with more to say.
func NewClient(options ClientOptions) (*Client, error) {
	if _, _, err := net.SplitHostPort(options.Address); err != nil {
		return nil, fmt.Errorf("%w: the data port's address: %w", ErrInvalid, err)
	}
	options.Fingerprint = strings.ToLower(options.Fingerprint)
	if sum, err := hex.DecodeString(options.Fingerprint); err != nil || len(sum) != 32 {
		return nil, fmt.Errorf("%w: the data port's fingerprint must be 64 hexadecimal digits", ErrInvalid)
	}
	// It goes into a header as it is.
	if options.Token == "" || len(options.Token) > maxTokenBytes || strings.ContainsFunc(options.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("%w: the data port's token is not one", ErrInvalid)
	}
	if options.DialContext == nil {
		options.DialContext = (&net.Dialer{KeepAliveConfig: keepAlive()}).DialContext
	}
	options.timing = options.timing.applyDefaults()
	return &Client{options: options}, nil
}

// Format writes the address, whatever the verb.
func (c *Client) Format(s fmt.State, _ rune) { io.WriteString(s, "data port "+c.options.Address) }

// Exec runs a command and returns its exit code. When ctx ends the command is killed.
//
// After Exec has returned, one Read of streams.Stdin may still be waiting, since nothing can interrupt it: a caller who
// goes on to read the same input (a terminal) closes it or takes that into account.
func (c *Client) Exec(ctx context.Context, request ExecRequest, streams Streams) (int, error) {
	return c.exec(ctx, VerbExec, request, streams)
}

// Shell is Exec with a token for VerbShell; an empty command is the workspace's shell.
func (c *Client) Shell(ctx context.Context, request ExecRequest, streams Streams) (int, error) {
	return c.exec(ctx, VerbShell, request, streams)
}

func (c *Client) exec(ctx context.Context, verb Verb, request ExecRequest, streams Streams) (int, error) {
	end, err := c.call(ctx, verb, streamRequest{Exec: &request, Notices: streams.Notice != nil}, exchange{
		input: streams.Stdin, hasInput: true, stdout: orDiscard(streams.Stdout), stderr: orDiscard(streams.Stderr), resize: streams.Resize,
		notice: streams.Notice,
	})
	if err != nil {
		return -1, fmt.Errorf("%s on the node: %w", verb, err)
	}
	return end.ExitCode, nil
}

// Logs writes the main process's output to w.
func (c *Client) Logs(ctx context.Context, options engine.LogOptions, w io.Writer) error {
	return c.logs(ctx, streamRequest{Logs: &options}, w)
}

// HookLog writes the end of what the instance's hooks printed to w.
func (c *Client) HookLog(ctx context.Context, w io.Writer) error {
	return c.logs(ctx, streamRequest{Logs: &engine.LogOptions{}, Hooks: true}, w)
}

func (c *Client) logs(ctx context.Context, request streamRequest, w io.Writer) error {
	count := &countingWriter{w: orDiscard(w)}
	end, err := c.call(ctx, VerbLogs, request, exchange{stdout: count})
	if err == nil && end.Bytes != count.n {
		err = fmt.Errorf("%w: %d of %d bytes arrived", ErrCut, count.n, end.Bytes)
	}
	if err != nil {
		return fmt.Errorf("reading the logs from the node: %w", err)
	}
	return nil
}

// Download calls begin with what is going to be given and writes the tar to the writer that begin returns. nil means that
// all of it arrived; a stream that was cut is ErrCut, whatever was written until then.
func (c *Client) Download(ctx context.Context, request DownloadRequest, begin BeginDownload) error {
	count := &countingWriter{}
	end, err := c.call(ctx, VerbDownload, streamRequest{Download: &request}, exchange{
		stdout: count,
		begin: func(info DownloadInfo) error {
			if count.w != nil {
				return fmt.Errorf("%w: the download was begun twice", errProtocol)
			}
			info.Note = printable(info.Note)
			w, err := begin(info)
			count.w = orDiscard(w)
			return err
		},
	})
	switch {
	case err != nil:
	case count.w == nil:
		err = fmt.Errorf("%w: it ended before it was begun", ErrCut)
	case end.Bytes != count.n:
		err = fmt.Errorf("%w: %d of %d bytes arrived", ErrCut, count.n, end.Bytes)
	}
	if err != nil {
		return fmt.Errorf("downloading from the node: %w", err)
	}
	return nil
}

// Upload sends the tar stream r and returns once the node has put its content in place. When r fails, the upload is
// cut and nothing is put in place. After an error, one Read of r may still be waiting.
func (c *Client) Upload(ctx context.Context, r io.Reader) (UploadResult, error) {
	end, err := c.call(ctx, VerbUpload, streamRequest{}, exchange{input: r, hasInput: true})
	if err != nil {
		return UploadResult{}, fmt.Errorf("uploading to the node: %w", err)
	}
	return UploadResult{Files: end.Files, Bytes: end.Bytes}, nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// countingWriter counts what arrived. Without a writer, nothing may arrive yet.
type countingWriter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	if c.w == nil {
		return 0, errors.New("content came before it was announced")
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
