package activities

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// FindInstance tells what is there and changes nothing, whoever has the lease.
func TestFindInstance(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	name := "holdfast-" + workspace.InstanceName(id, 1)
	find := func() (workspace.FindInstanceResult, error) {
		return run(r, r.node.FindInstance, workspace.FindInstanceInput{Target: target})
	}
	found, err := find()
	require.NoError(t, err)
	require.Equal(t, workspace.FindInstanceResult{}, found, "it has content and no container")

	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: r.sealed.Secrets})
	require.NoError(t, err)
	r.write(1, "file", "kept")
	for status, runs := range map[engine.Status]bool{
		engine.StatusRunning: true, engine.StatusExited: false, engine.StatusCreated: false,
	} {
		r.engine.instances[name].Status = status
		r.engine.calls = nil
		found, err = find()
		require.NoError(t, err)
		require.Equal(t, workspace.FindInstanceResult{Runs: runs, Status: string(status)}, found)
		require.Equal(t, []string{"list"}, r.engine.calls)
	}

	// One that is paused is neither said to run nor to have ended: it is asked for again.
	r.engine.instances[name].Status = engine.StatusPaused
	_, err = find()
	transient(t, err)
	require.ErrorContains(t, err, "is paused: ")
	require.Equal(t, engine.StatusPaused, r.engine.status(name))

	r.engine.fail = func(string, string) error { return engine.ErrUnavailable }
	_, err = find()
	transient(t, err)
	r.engine.fail = func(string, string) error { return errors.New("odd") }
	_, err = find()
	transient(t, err)
	r.engine.fail = nil
	require.Equal(t, "kept", r.read(1, "file"))
}

// Only content that is this instance's counts (invariant 5).
func TestFindInstanceWithoutItsContent(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	find := func() error {
		_, err := run(r, r.node.FindInstance, workspace.FindInstanceInput{Target: target})
		return err
	}
	require.NoError(t, find())
	dir := r.node.Volumes.dir(id, 1)

	// Nothing may be started elsewhere beside an instance that runs (A12): it is foreign, not missing.
	name := "holdfast-" + workspace.InstanceName(id, 1)
	require.NoError(t, os.Rename(r.content(1), dir+"/elsewhere"))
	typed(t, find(), workspace.ErrorContentForeign)
	r.engine.instances[name].Status = engine.StatusExited
	typed(t, find(), workspace.ErrorContentMissing)
	require.NoError(t, os.Rename(dir+"/elsewhere", r.content(1)))
	require.NoError(t, find())

	require.NoError(t, r.node.Volumes.mark(identity{WorkspaceID: id, Name: "atlas", Token: 1, State: contentPreparing}))
	typed(t, find(), workspace.ErrorContentMissing)

	require.NoError(t, os.Rename(dir, dir+".away"))
	typed(t, find(), workspace.ErrorContentMissing)

	require.NoError(t, os.Rename(dir+".away", dir))
	require.NoError(t, os.Rename(dir, r.node.Volumes.dir(id, 2)))
	target.Token = 2
	typed(t, find(), workspace.ErrorContentForeign)
}
