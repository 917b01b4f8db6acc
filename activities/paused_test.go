package activities

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/keys"
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

// How many instances there are, and what is paused and why, travels in the lease's beats: 50 of them, encrypted, in less than 1 KiB.
func TestBeatsSayWhatIsPaused(t *testing.T) {
	h := &LeaseHolder{}
	require.Nil(t, h.details(1, moment{}).Instances)
	h.Guard = &Guard{Lease: &Lease{}}
	require.Nil(t, h.details(1, moment{}).Instances, "it has not looked yet")
	h.Guard.known = map[string]*guarded{}
	require.Equal(t, workspace.LeaseBeat{Epoch: 1, Instances: new(int)}, h.details(1, moment{}))
	for i := range 51 {
		of := strings.Repeat(string(rune('a'+i%26)), 26)
		name := workspace.InstanceName(of, uint64(i+1))
		h.Guard.known[name] = &guarded{name: name, workspace: of, token: uint64(i + 1), paused: i > 0}
		if i%2 == 1 {
			h.Guard.known[name].replaced = uint64(i + 2)
		}
	}
	beat := h.details(7, h.Guard.Lease.now())
	require.Equal(t, uint64(7), beat.Epoch)
	require.Equal(t, 51, *beat.Instances)
	require.Equal(t, 50, beat.Pauses.Count)
	for name, known := range h.Guard.known {
		said, found := beat.Pauses.Of(name)
		require.Equal(t, known.paused, found, "one runs")
		if found {
			require.Equal(t, h.Guard.Why(name), said.Why)
		}
	}
	codec, err := keys.NewCodec(keys.NewCodecKey())
	require.NoError(t, err)
	details, err := keys.DataConverter(codec).ToPayloads(beat)
	require.NoError(t, err)
	require.Less(t, proto.Size(details), 1024)
}
