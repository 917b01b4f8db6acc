package activities

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/activities/pulse"
	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

func TestPrepareImage(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	result, err := run(r, r.node.PrepareImage, workspace.PrepareImageInput{Image: ""})
	require.NoError(t, err)
	require.Equal(t, "image:", result.Reference)
	require.Len(t, result.Notes, 1)
	result, err = run(r, r.node.PrepareImage, workspace.PrepareImageInput{Image: "cached"})
	require.NoError(t, err)
	require.Len(t, result.Notes, 1)

	for cause, kind := range map[error]workspace.ErrorType{
		engine.ErrImageNotFound: workspace.ErrorImageNotFound, engine.ErrImageDenied: workspace.ErrorImageDenied,
		engine.ErrRegistryName: "", engine.ErrRegistryTimeout: "", engine.ErrUnavailable: "",
	} {
		r.engine.fail = func(string, string) error { return fmt.Errorf("pulling: %w", cause) }
		_, err := run(r, r.node.PrepareImage, workspace.PrepareImageInput{Image: "x"})
		if kind == "" {
			transient(t, err)
		} else {
			typed(t, err, kind)
		}
	}
}

func TestStartInstance(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	name := "holdfast-" + workspace.InstanceName(id, 1)
	// Before anything can write to the content its identity says so, durably (invariant 1: it is no longer discarded).
	r.engine.before = func(call, _ string) {
		if call == "start" {
			require.Equal(t, contentStarted, r.state(1))
		}
	}
	input := workspace.StartInstanceInput{Target: target, Image: "image:x", Secrets: r.sealed.Secrets}
	for range 2 { // invariant 8
		result, err := run(r, r.node.StartInstance, input)
		require.NoError(t, err)
		require.Equal(t, name, result.Container)
		require.Equal(t, engine.StatusRunning, r.engine.status(name))
		require.Equal(t, []string{name}, r.engine.names())
	}
	spec := r.engine.specs[name]
	require.Equal(t, r.content(1), spec.ContentDir)
	require.Equal(t, secretValue, spec.Environment["SECRET"])
	require.Equal(t, map[string]string{engine.LabelWorkspace: id, engine.LabelToken: "1", engine.LabelNode: "node-1"}, spec.Labels)

	for range 2 {
		require.NoError(t, r.halt(workspace.StopInstanceInput{Target: target, GraceSeconds: 1}))
		require.Equal(t, engine.StatusExited, r.engine.status(name))
	}
	require.NoError(t, r.halt(workspace.StopInstanceInput{Target: r.target(9)}), "what is not there does not run")
	_, err := run(r, r.node.StartInstance, input)
	require.NoError(t, err)
	require.Equal(t, engine.StatusRunning, r.engine.status(name))
}

// A failed start leaves nothing running, keeps the content, and its type gets through to the workflow.
func TestFailedStart(t *testing.T) {
	for name, test := range map[string]struct {
		call string
		err  error
		kind workspace.ErrorType
	}{
		"the engine is away":           {"list", nil, ""},
		"creating":                     {"create", engine.ErrUnavailable, ""},
		"another has its name":         {"create", engine.ErrConflict, workspace.ErrorConflict},
		"starting":                     {"start", errors.New("odd"), ""},
		"it exited":                    {"ready", fmt.Errorf("main process: %w", engine.ErrNotRunning), workspace.ErrorStartFailed},
		"it exited, wrapped by a type": {"ready", permanent(workspace.ErrorStartFailed, errors.New("never ready")), workspace.ErrorStartFailed},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			target := r.prepare(1)
			r.write(1, "file", "kept")
			r.engine.fail = func(call, _ string) error {
				if call == test.call {
					return test.err
				}
				return nil
			}
			_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Secrets: r.sealed.Secrets})
			if test.err == nil {
				require.NoError(t, err)
				return
			}
			if test.kind == "" {
				transient(t, err)
			} else {
				typed(t, err, test.kind)
			}
			require.NotEqual(t, engine.StatusRunning, r.engine.status("holdfast-"+workspace.InstanceName(id, 1)))
			require.Equal(t, "kept", r.read(1, "file"))
			r.engine.fail = nil
			_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Secrets: r.sealed.Secrets})
			require.NoError(t, err, "the next attempt")
		})
	}
}

// A start whose context ends (the attempt was given up) leaves nothing running either.
func TestStartGivenUp(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	r.engine.stuck = true
	var cancel context.CancelFunc
	r.engine.before = func(call, _ string) {
		if call == "ready" {
			cancel()
		}
	}
	_, err := run(r, func(ctx context.Context, input workspace.StartInstanceInput) (workspace.StartInstanceResult, error) {
		ctx, cancel = context.WithCancel(ctx)
		return r.node.StartInstance(ctx, input)
	}, workspace.StartInstanceInput{Target: target})
	require.Error(t, err)
	require.Equal(t, engine.StatusExited, r.engine.status("holdfast-"+workspace.InstanceName(id, 1)))
}

// What cannot be opened on this node is named, and nothing of it is shown (invariant 10).
func TestStartWithAnothersSecrets(t *testing.T) {
	r, other := newRig(t, storage.PolicyAny), newRig(t, storage.PolicyAny)
	other.target(1)
	target := r.prepare(1)
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Secrets: other.sealed.Secrets})
	typed(t, err, workspace.ErrorNodeReplaced)
	require.Empty(t, r.engine.names())
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Secrets: r.sealed.Password})
	typed(t, err, workspace.ErrorWrongKey) // made for another purpose
	_, err = run(r, r.node.Backup, workspace.BackupInput{Target: workspace.Target{WorkspaceID: id, Token: 1, Sealed: other.sealed.Password}, Kind: "live"})
	typed(t, err, workspace.ErrorNodeReplaced)
}

func TestStartForeign(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	foreign(t, r, 1)
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target})
	typed(t, err, workspace.ErrorContentForeign) // invariant 5
	require.Empty(t, r.engine.names())
}

// DiscardInstance: content that may have been written to is removed only by the workspace's name (invariant 1).
func TestDiscardInstance(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	never := r.prepare(1)
	r.engine.add("node-1", id, 1, engine.StatusCreated)
	r.pass(8 * time.Second)
	transient(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: never})) // invariant 7
	require.DirExists(t, r.content(1))
	r.node.Lease = r.lease()
	for range 2 {
		require.NoError(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: never}))
		require.NoDirExists(t, r.content(1))
		require.Empty(t, r.engine.names())
	}

	ran := r.started(2)
	for _, said := range []string{"", "atlas2", "ATLAS"} {
		typed(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: ran, DiscardData: said}), workspace.ErrorRefused)
	}
	nameless := ran
	nameless.Name = ""
	typed(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: nameless}), workspace.ErrorRefused)
	require.Equal(t, "what a person wrote\n", r.read(2, "notes.txt"))
	require.Equal(t, engine.StatusRunning, r.engine.status("holdfast-"+workspace.InstanceName(id, 2)))
	require.NoError(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: ran, DiscardData: "atlas"}))
	require.NoDirExists(t, r.content(2))

	r.started(3)
	foreign(t, r, 3)
	typed(t, runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: r.target(3), DiscardData: "atlas"}), workspace.ErrorContentForeign)
	require.DirExists(t, r.content(3))
}

// A6: the data port gives what is on the node, live or not, and a snapshot from the stores.
func TestHost(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1}
	fetch := func(claims dataport.Claims, path string) (dataport.DownloadInfo, string, error) {
		var info dataport.DownloadInfo
		var stream bytes.Buffer
		err := r.node.Download(t.Context(), claims, dataport.DownloadRequest{Path: path}, func(i dataport.DownloadInfo) (io.Writer, error) {
			info = i
			return &stream, nil
		})
		return info, stream.String(), err
	}
	info, text, err := fetch(claims, "")
	require.NoError(t, err)
	require.Equal(t, dataport.SourceNode, info.Source)
	require.Contains(t, text, "what a person wrote")
	_, text, err = fetch(claims, "src")
	require.NoError(t, err)
	require.NotContains(t, text, "what a person wrote")
	require.Contains(t, text, "package main")
	_, text, err = fetch(claims, "notes.txt") // as it is now, not as a snapshot has it
	require.NoError(t, err)
	require.Contains(t, text, "what a person wrote")
	require.NotContains(t, text, "package main")
	require.NoError(t, os.Symlink("/etc", filepath.Join(r.content(1), "out")))
	for _, path := range []string{"../../identity.json", "none", "notes.txt/none", "out/passwd"} {
		_, _, err = fetch(claims, path)
		require.ErrorIs(t, err, dataport.ErrNotHere, path)
	}
	_, err = r.node.Exec(t.Context(), claims, dataport.ExecRequest{Command: []string{"true"}}, dataport.Streams{Stdout: &bytes.Buffer{}})
	require.ErrorIs(t, err, dataport.ErrNotRunning)

	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: input.Target})
	require.NoError(t, err)
	info, _, err = fetch(claims, "")
	require.NoError(t, err)
	require.Equal(t, dataport.SourceLive, info.Source)
	var out bytes.Buffer
	code, err := r.node.Exec(t.Context(), claims, dataport.ExecRequest{Command: []string{"echo", "hello"}}, dataport.Streams{Stdout: &out})
	require.NoError(t, err)
	require.Equal(t, 7, code)
	require.Equal(t, "echo hello", out.String())
	require.NoError(t, r.node.Logs(t.Context(), claims, engine.LogOptions{}, &out))

	stored := claims
	stored.Snapshot, stored.Sealed = input.Snapshot, r.sealed.Password
	info, text, err = fetch(stored, "")
	require.NoError(t, err)
	require.Equal(t, dataport.SourceSnapshot, info.Source)
	require.Contains(t, text, "what a person wrote")
	stored.Snapshot = "0000000000000000000000000000000000000000000000000000000000000000"
	_, _, err = fetch(stored, "")
	require.ErrorIs(t, err, dataport.ErrNotHere)

	gone := claims
	gone.Token = 5
	_, _, err = fetch(gone, "")
	require.ErrorIs(t, err, dataport.ErrNotHere)
	_, err = r.node.Exec(t.Context(), gone, dataport.ExecRequest{}, dataport.Streams{})
	require.ErrorIs(t, err, dataport.ErrNotHere)
	foreign(t, r, 1)
	_, _, err = fetch(claims, "")
	require.ErrorIs(t, err, dataport.ErrNotHere) // invariant 5
}

// scriptedBeater answers each beat with the next of its answers; the last one stays.
type scriptedBeater struct {
	answers chan error
	last    error
}

func (b *scriptedBeater) RecordActivityHeartbeat(context.Context, []byte, ...any) error {
	select {
	case b.last = <-b.answers:
	default:
	}
	return b.last
}

// invariant 6: what comes next waits until what was given up has ended, which hears of that at once: nobody waits for the
// next beat of something that is not wanted any more.
func TestWhoIsWaitedForLooksWhetherItIsWanted(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	answers := make(chan error, 2)
	answers <- nil
	answers <- temporal.NewCanceledError() // with a second beat, which is an hour away
	r.node.Beater = &scriptedBeater{answers: answers}
	rarely := pulse.Options{Interval: time.Hour, GiveUpAfter: 2 * time.Hour}

	began, ended, over := make(chan struct{}), atomic.Bool{}, make(chan error, 1)
	go func() {
		over <- runPlain(r, func(ctx context.Context, target workspace.Target) error {
			return r.node.locked(ctx, target, rarely, func(ctx context.Context) error {
				close(began)
				<-ctx.Done()
				ended.Store(true)
				return ctx.Err()
			})
		}, target)
	}()
	<-began
	require.NoError(t, runPlain(r, func(ctx context.Context, target workspace.Target) error {
		next := &Node{Volumes: r.node.Volumes, Beater: quietBeater{}}
		return next.locked(ctx, target, rarely, func(context.Context) error {
			require.True(t, ended.Load(), "two operations on one workspace")
			return nil
		})
	}, target))
	require.True(t, temporal.IsCanceledError(<-over))
}
