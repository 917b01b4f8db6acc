package dataport

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"holdfast/engine"
)

// Host does what the data port was asked for; the agent implements it. The claims have been verified: signature, expiry,
// node and verb. What is left to the host is whether the workspace and the instance (Claims.Token) are here, which it
// answers with an error that wraps ErrNotHere, ErrNotRunning or ErrPaused, and ErrConflict when another operation is under way.
//
// The context ends when the client goes away, the server is shut down, or the stream fails: a command must then be
// killed. Errors are sent to the client; none may contain a secret (values of ExecRequest.Environment are blotted out
// once more before an error is sent or logged).
type Host interface {
	// Exec runs a command in the instance and returns its exit code; a code that is not 0 is not an error. It must not
	// wait for Stdin to end once the command has ended.
	Exec(ctx context.Context, claims Claims, request ExecRequest, streams Streams) (exitCode int, err error)

	// Logs writes the output of the instance's main process to w.
	Logs(ctx context.Context, claims Claims, options engine.LogOptions, w io.Writer) error

	// HookLog writes the end of what the instance's hooks printed.
	HookLog(ctx context.Context, claims Claims, w io.Writer) error

	// Download calls begin once, when it knows what it is going to give, and writes a tar stream to the writer that it
	// returns. Returning nil says that the tar is complete.
	Download(ctx context.Context, claims Claims, request DownloadRequest, begin BeginDownload) error

	// Upload reads a tar stream and puts its content in place. It must read r until io.EOF, and only then put anything
	// in place: any other error from r (ErrCut) means that the stream was cut and is to be refused whole. A host that
	// answers success without having read to the end fails the request.
	Upload(ctx context.Context, claims Claims, r io.Reader) (UploadResult, error)
}

// ExecRequest is a command to be run in an instance.
type ExecRequest struct {
	// Command is the program and its arguments. Empty is permitted to VerbShell only: the workspace's shell.
	Command []string `json:"command,omitempty"`
	// Environment is added to the instance's own. Values are secret: never in logs or errors.
	Environment map[string]string `json:"environment,omitempty"`
	TTY         bool              `json:"tty,omitempty"` // stdout and stderr arrive together on Stdout
	Size        engine.Size       `json:"size"`          // the terminal's first size; zero when not known
}

// Format writes the request without its arguments and its environment's values, whatever the verb.
func (r ExecRequest) Format(s fmt.State, _ rune) {
	program := "shell"
	if len(r.Command) > 0 {
		program = r.Command[0]
	}
	fmt.Fprintf(s, "exec %s (%d arguments, %d variables, tty %t)", program, max(len(r.Command)-1, 0), len(r.Environment), r.TTY)
}

// LogValue is what slog writes: the same as Format.
func (r ExecRequest) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// Streams are a command's streams, on either side. On the client's side any of them may be nil: no input, output
// dropped, no resizing. On the host's side only Resize may be nil (no terminal); it is closed when the stream ends.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Resize <-chan engine.Size
	// Notice, when set, is given what the node has to say to the person meanwhile, such as that the instance is paused. It is
	// called by one goroutine at a time, of its own.
	Notice func(text string)
}

// DownloadRequest asks for content.
type DownloadRequest struct {
	// Path is a file or directory inside the content, relative, slash-separated; "" is all of it. It must lie within
	// Claims.Path. It has been checked as text only: a host must not follow links out of the content.
	Path string `json:"path,omitempty"`
}

// Source says where downloaded content comes from.
type Source string

// The sources of a download.
const (
	SourceLive     Source = "live"     // the files of a running instance, as they are now
	SourceNode     Source = "node"     // the files that a stopped instance left on the node
	SourceSnapshot Source = "snapshot" // a snapshot, from the object store
)

// DownloadInfo says what a download is going to give, before its first byte.
type DownloadInfo struct {
	Source   Source    `json:"source"`
	Time     time.Time `json:"time"`               // of the content: now for live, the snapshot's time for a snapshot
	Snapshot string    `json:"snapshot,omitempty"` // the snapshot's id
	Note     string    `json:"note,omitempty"`     // what a person should know, such as how old it is
}

// BeginDownload announces a download and returns where the tar goes.
type BeginDownload func(DownloadInfo) (io.Writer, error)

// UploadResult says what was put in place.
type UploadResult struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// Warnings name what was left out or could not be set, the first of it.
	Warnings []string `json:"warnings,omitempty"`
}
