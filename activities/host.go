package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/snapshot"
	"holdfast/workspace"
)

var _ dataport.Host = (*Node)(nil)

// instance finds the running instance that a token names.
func (n *Node) instance(ctx context.Context, claims dataport.Claims) (engine.Instance, error) {
	instances, err := n.Engine.List(ctx, n.labels(workspace.Target{WorkspaceID: claims.WorkspaceID, Token: claims.Token}))
	if err != nil {
		return engine.Instance{}, fmt.Errorf("looking for the instance: %w", err)
	}
	if len(instances) == 0 {
		return engine.Instance{}, fmt.Errorf("workspace %s has no instance %d on node %s: %w", claims.Name, claims.Token, n.Name, dataport.ErrNotHere)
	}
	return instances[0], nil
}

// Exec runs a command in the instance.
func (n *Node) Exec(ctx context.Context, claims dataport.Claims, request dataport.ExecRequest, streams dataport.Streams) (int, error) {
	defer n.use.connect(claims)()
	connected, left := context.WithCancel(ctx)
	telling := n.tellOfPauses(connected, claims, streams.Notice) // before the look, so that no pause comes between
	defer telling()
	defer left()
	instance, err := n.instance(ctx, claims)
	if err != nil {
		return 0, err
	}
	if instance.Status == engine.StatusPaused { // a command in it would not begin before it goes on
		return 0, fmt.Errorf("instance %d of workspace %s is paused: %s: %w", claims.Token, claims.Name,
			n.Guard.Why(workspace.InstanceName(claims.WorkspaceID, claims.Token)), dataport.ErrPaused)
	}
	if instance.Status != engine.StatusRunning {
		return 0, fmt.Errorf("instance %d of workspace %s is %s: %w", claims.Token, claims.Name, instance.Status, dataport.ErrNotRunning)
	}
	command := request.Command
	if len(command) == 0 {
		command = n.Shell
	}
	if len(command) == 0 {
		command = []string{"/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"}
	}
	return n.Engine.Exec(ctx, instance.ID, engine.ExecSpec{
		Command: command, Environment: request.Environment, TTY: request.TTY,
		Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr, Resize: streams.Resize,
	})
}

// Logs writes the output of the instance's main process.
func (n *Node) Logs(ctx context.Context, claims dataport.Claims, options engine.LogOptions, w io.Writer) error {
	defer n.use.connect(claims)()
	instance, err := n.instance(ctx, claims)
	if err != nil {
		return err
	}
	return n.Engine.Logs(ctx, instance.ID, options, w)
}

// Download gives the content that is on this node, or a snapshot from the stores when the token names one.
func (n *Node) Download(ctx context.Context, claims dataport.Claims, request dataport.DownloadRequest, begin dataport.BeginDownload) error {
	if claims.Snapshot != "" {
		return n.downloadSnapshot(ctx, claims, request, begin)
	}
	defer n.use.connect(claims)()
	volumes, err := n.on(claims.Volume)
	if err != nil {
		return fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	content, err := volumes.readable(claims.WorkspaceID, claims.Token) // invariant 5
	if err != nil {
		return fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	dir, name, err := inside(content, request.Path)
	if err != nil {
		return err
	}
	info := dataport.DownloadInfo{Source: dataport.SourceNode, Time: time.Now(), Note: "nothing runs on them"}
	if instance, err := n.instance(ctx, claims); err == nil {
		switch instance.Status {
		case engine.StatusRunning:
			info.Source, info.Note = dataport.SourceLive, "what is being written may be in the middle of a change"
		case engine.StatusPaused:
			info.Note = "its instance is paused: " + n.Guard.Why(workspace.InstanceName(claims.WorkspaceID, claims.Token))
		}
	}
	w, err := begin(info)
	if err != nil {
		return err
	}
	var omitted []snapshot.Omission
	if name == "" {
		omitted, err = snapshot.TarDirectory(ctx, dir, w)
	} else {
		omitted, err = snapshot.TarFile(ctx, dir, name, w)
	}
	if err != nil {
		return fmt.Errorf("reading the content: %w", err)
	}
	for _, omission := range omitted {
		if omission.Kind == snapshot.OmissionUnreadable {
			return fmt.Errorf("%s could not be read (%s): what was sent is not all", omission.Path, omission.Reason)
		}
	}
	return nil
}

// inside returns a directory below content, and the name in it when the path is not one, following no link on the way.
func inside(content, path string) (dir, name string, err error) {
	path = strings.Trim(path, "/")
	if path == "" || path == "." {
		return content, "", nil
	}
	if !filepath.IsLocal(path) {
		return "", "", fmt.Errorf("path %q leads out of the workspace: %w", path, dataport.ErrNotHere)
	}
	dir = content
	parts := strings.Split(filepath.Clean(path), "/")
	for i, part := range parts {
		info, err := os.Lstat(filepath.Join(dir, part))
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", "", fmt.Errorf("the workspace has no %q: %w", path, dataport.ErrNotHere)
		case err != nil:
			return "", "", fmt.Errorf("looking for %q: %w", path, err)
		case info.IsDir():
			dir = filepath.Join(dir, part)
		case i == len(parts)-1:
			return dir, part, nil
		default:
			return "", "", fmt.Errorf("%q is in no directory: %q is none: %w", path, filepath.Join(parts[:i+1]...), dataport.ErrNotHere)
		}
	}
	return dir, "", nil
}

// downloadSnapshot reads a snapshot from the stores, without waiting for one that does not answer. Only when those that do answer do not
// have it are all waited for.
func (n *Node) downloadSnapshot(ctx context.Context, claims dataport.Claims, request dataport.DownloadRequest, begin dataport.BeginDownload) error {
	repository, err := n.readable(ctx, claims.WorkspaceID, claims.Sealed)
	if err == nil {
		defer repository.Close()
		found, unseen, listing := repository.SnapshotsSeen(ctx)
		if at := slices.IndexFunc(found, func(info snapshot.Info) bool { return info.ID == claims.Snapshot }); at >= 0 {
			return dumpSnapshot(ctx, repository, found[at], request, begin)
		}
		if err = listing; err == nil && unseen == nil {
			return noSnapshot(claims)
		}
	}
	if ctx.Err() != nil {
		return err
	}
	patient, err := n.repository(ctx, claims.WorkspaceID, claims.Sealed)
	if err != nil {
		return err
	}
	defer patient.Close()
	found, err := patient.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("reading snapshots: %w", err)
	}
	at := slices.IndexFunc(found, func(info snapshot.Info) bool { return info.ID == claims.Snapshot })
	if at < 0 {
		return noSnapshot(claims)
	}
	return dumpSnapshot(ctx, patient, found[at], request, begin)
}

func dumpSnapshot(ctx context.Context, repository *snapshot.Repository, found snapshot.Info, request dataport.DownloadRequest, begin dataport.BeginDownload) error {
	w, err := begin(dataport.DownloadInfo{Source: dataport.SourceSnapshot, Time: found.Time, Snapshot: found.ID})
	if err != nil {
		return err
	}
	return repository.Dump(ctx, found.ID, request.Path, w, snapshot.DumpOptions{Archive: "tar"})
}

func noSnapshot(claims dataport.Claims) error {
	return fmt.Errorf("snapshot %s: %w: %w", claims.Snapshot, dataport.ErrNotHere, snapshot.ErrNoSnapshot)
}
