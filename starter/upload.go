package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"holdfast/snapshot"
	"holdfast/workspace"
)

// upload sends a directory to the node that waits for a workspace's first content.
type upload struct {
	program       *program
	control       control
	name, subject string
	dir           string
	// tar writes the directory; nil is snapshot.TarDirectory.
	tar func(ctx context.Context, dir string, w io.Writer) ([]snapshot.Omission, error)

	mu      sync.Mutex
	leftOut []snapshot.Omission // of the newest send that ended well
}

// omissions is what the directory has and the workspace did not get.
func (u *upload) omissions() []snapshot.Omission {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.leftOut
}

// errUnreadable means that a promised directory cannot be sent whole.
var errUnreadable = errors.New("some of it cannot be read")

// send streams the directory once.
func (u *upload) send(ctx context.Context) error {
	input := workspace.AccessInput{Name: u.name, Verb: workspace.VerbUpload, Subject: u.subject}
	return u.program.throughGrants(ctx, u.control, input, func(grant workspace.Grant, client dataClient) (bool, error) {
		return true, u.sendTo(ctx, grant, client)
	})
}

func (u *upload) sendTo(ctx context.Context, grant workspace.Grant, client dataClient) error {
	show := newProgress(u.program.stderr, u.program.stderrTerminal, u.program.now)
	defer show.Close()
	reader, writer := io.Pipe()
	tarCtx, stop := context.WithCancel(ctx)
	defer stop()

	archive := u.tar
	if archive == nil {
		archive = snapshot.TarDirectory
	}
	var omissions []snapshot.Omission
	read := make(chan error, 1)
	go func() {
		sent := &countingWriter{w: writer, tell: func(n int64) {
			show.Update(status{key: "upload", quiet: true, text: fmt.Sprintf("%s: sending %s to node %s, %s sent", u.name, u.dir, grant.Node, size(n))})
		}}
		var err error
		omissions, err = archive(tarCtx, u.dir, sent)
		if err == nil {
			err = unreadable(omissions)
		}
		writer.CloseWithError(err) // an error cuts the stream, so that the node puts nothing in place
		read <- err
	}()
	result, err := client.Upload(ctx, reader)
	stop()
	reader.CloseWithError(io.ErrClosedPipe) // whatever ended the sending, the reading ends too
	readErr := <-read

	switch {
	case err == nil:
		u.mu.Lock()
		u.leftOut = omissions
		u.mu.Unlock()
		show.Close()
		fmt.Fprintf(u.program.stderr, "%s: %s files, %s sent to node %s\n", u.name, count(result.Files), size(result.Bytes), grant.Node)
		for _, warning := range result.Warnings {
			fmt.Fprintln(u.program.stderr, wrapText(u.name+": "+warning, 2))
		}
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case readErr != nil && !errors.Is(readErr, io.ErrClosedPipe) && !errors.Is(readErr, context.Canceled):
		return fail(exitFailed, "reading %s: %w", u.dir, readErr).
			withSafe("the directory is as it was, and nothing of it was put in place").
			withMend("make all of it readable; `holdfast unstick %s` gives this start up, then start again", u.name)
	default:
		return fmt.Errorf("sending %s to node %s: %w", u.dir, grant.Node, err)
	}
}

// unreadable is an error when something of the directory could not be read at all: a workspace must not begin with
// less than the person believes. Sockets and the like are named afterwards instead.
func unreadable(omissions []snapshot.Omission) error {
	for _, omission := range omissions {
		if omission.Kind == snapshot.OmissionUnreadable {
			return fmt.Errorf("%s: %s: %w", omission.Path, omission.Reason, errUnreadable)
		}
	}
	return nil
}
