package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"holdfast/dataport"
	"holdfast/workspace"
)

// compareNow compares a workspace's content, where it runs, with what its snapshot had to hold.
func (d *demo) compareNow(space *demoSpace) error {
	now, err := takeManifest(d.contentDir(space))
	if err != nil {
		return err
	}
	for _, difference := range space.before.compare(now) {
		space.problem("%s", difference)
	}
	return nil
}

// tellSame says that workspaces are as they were; what is not is an error here, because what follows would mean nothing.
func (d *demo) tellSame(spaces []*demoSpace, how string) error {
	for _, space := range spaces {
		if len(space.problems) > 0 {
			return fmt.Errorf("%s on %s is not as it was: %s", space.name, space.node, strings.Join(space.problems[:min(len(space.problems), 5)], "; "))
		}
		d.out.say("%s runs on %s, and all its %s entries are %s: content, modes, owners, times, links.", space.name, space.node, count(int64(len(space.before))), how)
	}
	return nil
}

// untilSpace waits for a condition on a workspace's state.
func (d *demo) untilSpace(ctx context.Context, space *demoSpace, what string, done func(workspace.State) bool) (workspace.State, error) {
	return awaited(ctx, d, "workspace "+space.name+" "+what, func(ctx context.Context) (workspace.State, error) { return d.control.State(ctx, space.name) }, done)
}

// untilNode is untilSpace for a node.
func (d *demo) untilNode(ctx context.Context, node, what string, done func(workspace.NodeState) bool) (workspace.NodeState, error) {
	return awaited(ctx, d, node+" "+what, func(ctx context.Context) (workspace.NodeState, error) { return d.control.Node(ctx, node) }, done)
}

// demoPatience is how long anything of the demo may take that has to happen by itself.
const demoPatience = 10 * time.Minute

func awaited[T any](ctx context.Context, d *demo, what string, ask func(context.Context) (T, error), done func(T) bool) (T, error) {
	deadline := time.Now().Add(demoPatience)
	for {
		state, err := ask(ctx)
		switch {
		case err == nil && done(state):
			return state, nil
		case err != nil && !transient(err):
			return state, err
		case time.Now().After(deadline):
			return state, errors.Join(fmt.Errorf("waiting until %s: still not after %s", what, demoPatience), err)
		}
		if err := d.p.wait(ctx, 250*time.Millisecond); err != nil {
			return state, err
		}
	}
}

// quoteWhy shows what the command tells of a workspace once a condition holds for it.
func (d *demo) quoteWhy(ctx context.Context, space *demoSpace, when func(workspace.State) bool) error {
	state, err := d.untilSpace(ctx, space, "can be explained", when)
	if err != nil {
		return err
	}
	pending, err := d.control.Pending(ctx, space.name)
	if err != nil {
		return err
	}
	var why strings.Builder
	renderExplanation(&why, workspace.Explain(state, pending, d.p.now()), d.p.now(), false)
	d.out.quote("holdfast why "+space.name, why.String())
	return nil
}

// downloadedSums downloads a snapshot and returns the SHA-256 of every file in the stream, by path; hard links have that of
// the file that they name.
func (d *demo) downloadedSums(ctx context.Context, space *demoSpace, snapshot string) (sums map[string]string, err error) {
	input := workspace.AccessInput{Name: space.name, Verb: workspace.VerbDownload, Subject: demoSubject, Snapshot: snapshot}
	err = d.quietly().throughGrants(ctx, d.control, input, func(_ workspace.Grant, client dataClient) (bool, error) {
		reader, writer := io.Pipe()
		read := make(chan error, 1)
		go func() {
			var err error
			sums, err = tarSums(reader)
			reader.CloseWithError(err)
			read <- err
		}()
		err := client.Download(ctx, dataport.DownloadRequest{}, func(dataport.DownloadInfo) (io.Writer, error) { return writer, nil })
		writer.CloseWithError(err)
		return true, errors.Join(err, <-read)
	})
	return sums, err
}

func tarSums(from io.Reader) (map[string]string, error) {
	sums, stream := map[string]string{}, tar.NewReader(from)
	for {
		header, err := stream.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, from)
			return sums, err
		}
		if err != nil {
			return sums, fmt.Errorf("reading the download: %w", err)
		}
		switch name := path.Clean(header.Name); header.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			hash := sha256.New()
			if _, err := io.Copy(hash, stream); err != nil {
				return sums, fmt.Errorf("reading the download: %w", err)
			}
			sums[name] = hex.EncodeToString(hash.Sum(nil))
		case tar.TypeLink:
			sums[name] = sums[path.Clean(header.Linkname)]
		}
	}
}

func (d *demo) lossSummary(ctx context.Context) error {
	if err := d.checkRepositories(ctx); err != nil {
		return err
	}
	rows := make([][]string, 0, len(d.spaces))
	for _, space := range d.spaces {
		files, bytes := space.before.files()
		behind, away, saved, result := "-", "-", "-", "nothing lost"
		if recovery := space.lost.recovery; recovery != nil {
			behind, away, saved = seconds(recovery.LostWork), seconds(space.lost.away), workspace.Short(space.lost.saved)
		}
		if len(space.problems) > 0 {
			result = "NOT as it was"
		}
		rows = append(rows, []string{space.name, count(files), size(bytes), away, behind, saved, result})
	}
	fmt.Fprintln(d.p.stdout)
	renderTable(d.p.stdout, []column{
		{name: "workspace"}, {name: "files", right: true}, {name: "bytes", right: true}, {name: "away", right: true},
		{name: "behind", right: true}, {name: "saved as"}, {name: "result"},
	}, rows)
	fmt.Fprintln(d.p.stdout)
	d.out.say("Away is how long nothing ran after the loss of power. Behind is how much of the last work was not in the snapshot that was gone on with: it was on node-1, and is offered in the snapshot of the next column (`holdfast restore NAME --snapshot ID` goes on with it).")
	d.tellWhere()
	lost := false
	for _, space := range d.spaces {
		for _, problem := range space.problems {
			lost = true
			d.out.say("%s: %s", space.name, problem)
		}
	}
	if lost {
		return errLost
	}
	return nil
}
