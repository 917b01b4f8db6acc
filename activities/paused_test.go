package activities

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// newPaused is a node with a running instance that the guard has paused.
func newPaused(t *testing.T, policy storage.Policy) (r *rig, target workspace.Target, name string) {
	r = newRig(t, policy)
	target = r.started(1)
	name = "holdfast-" + workspace.InstanceName(id, 1)
	require.NoError(t, r.engine.Pause(t.Context(), name))
	r.engine.calls = nil
	return r, target, name
}

func (r *rig) startAgain(target workspace.Target) error {
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: r.sealed.Secrets})
	return err
}

// A start does not take a paused instance for one that runs: the catalog has the last word, and the lease.
func TestStartOfAPausedInstance(t *testing.T) {
	r, target, name := newPaused(t, storage.PolicyAll)
	require.NoError(t, r.startAgain(target))
	require.Equal(t, engine.StatusRunning, r.engine.status(name), "no other has taken its place")
	require.Contains(t, r.engine.calls, "ready")

	r, target, name = newPaused(t, storage.PolicyAll)
	away(r.stores[0])
	err := r.startAgain(target)
	transient(t, err)
	require.ErrorContains(t, err, "the instance is paused, and whether another has taken its place cannot be asked")
	require.Equal(t, engine.StatusPaused, r.engine.status(name), "what a person had open in it is still there")
	r.stores[0].Clear()
	require.NoError(t, r.startAgain(target))
	require.Equal(t, engine.StatusRunning, r.engine.status(name))

	r, target, name = newPaused(t, storage.PolicyAny)
	r.record(2, "")
	err = r.startAgain(target)
	typed(t, err, workspace.ErrorStaleToken)
	require.ErrorContains(t, err, "instance 2 has taken its place")
	require.Equal(t, engine.StatusPaused, r.engine.status(name))

	r, target, name = newPaused(t, storage.PolicyAny)
	r.engine.fail = func(call, _ string) error {
		if call == "unpause" {
			return engine.ErrUnavailable
		}
		return nil
	}
	transient(t, r.startAgain(target))
	require.Equal(t, engine.StatusPaused, r.engine.status(name))

	// The lease ends while the stores are asked.
	r, target, name = newPaused(t, storage.PolicyAny)
	r.engine.before = func(call, _ string) {
		if call == "create" {
			r.pass(8 * time.Second)
		}
	}
	transient(t, r.startAgain(target))
	require.Equal(t, engine.StatusPaused, r.engine.status(name))
}

// A command in a paused instance says so at once, with what is known of why; so does a hook, which did not run for another
// reason than that nothing was there.
func TestPausedInstanceSaysWhy(t *testing.T) {
	r, target, name := newPaused(t, storage.PolicyAny)
	r.node.Guard = &Guard{Lease: r.node.Lease, known: map[string]*guarded{
		workspace.InstanceName(id, 1): {name: workspace.InstanceName(id, 1), workspace: id, token: 1, id: name, paused: true, replaced: 4},
	}}
	claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1, Verb: dataport.VerbExec}
	var out bytes.Buffer
	_, err := r.node.Exec(t.Context(), claims, dataport.ExecRequest{Command: []string{"true"}}, dataport.Streams{Stdout: &out, Stderr: &out})
	require.ErrorIs(t, err, dataport.ErrPaused)
	require.ErrorContains(t, err, "instance 1 of workspace atlas is paused: instance 4 has taken its place")
	require.NotContains(t, r.engine.calls, "exec")

	result, err := r.node.runHook(t.Context(), target, workspace.Hook{When: workspace.HookPreSnapshot, Command: "true"})
	require.NoError(t, err)
	require.Equal(t, workspace.HookFailed, result.Outcome)
	require.Contains(t, result.Problem, "is paused: instance 4 has taken its place")

	var info dataport.DownloadInfo
	claims.Verb = dataport.VerbDownload
	require.NoError(t, r.node.Download(t.Context(), claims, dataport.DownloadRequest{}, func(given dataport.DownloadInfo) (io.Writer, error) {
		info = given
		return &out, nil
	}))
	require.Contains(t, info.Note, "is paused: instance 4")

	// It can be stopped and saved as it is.
	require.NoError(t, r.halt(workspace.StopInstanceInput{Target: target, GraceSeconds: 1}))
	require.Equal(t, engine.StatusExited, r.engine.status(name))
}

// What is paused travels in the lease's beats.
func TestBeatsNameWhatIsPaused(t *testing.T) {
	h := &LeaseHolder{}
	require.Empty(t, h.details(1, moment{}).Paused)
	h.Guard = &Guard{Lease: &Lease{}, known: map[string]*guarded{}}
	for i := range workspace.MaxPaused + 9 {
		name := workspace.InstanceName(id, uint64(i))
		h.Guard.known[name] = &guarded{name: name, workspace: id, token: uint64(i), paused: i > 0}
	}
	beat := h.details(7, moment{})
	require.Equal(t, uint64(7), beat.Epoch)
	require.Len(t, beat.Paused, workspace.MaxPaused)
	for _, paused := range beat.Paused {
		require.NotZero(t, paused.Token, "that one runs")
		require.Contains(t, paused.Why, "no lease")
	}
}
