package activities

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// holder is a pretended guard process.
type holder struct {
	held []string
	err  error
}

func (h *holder) Hold(_ context.Context, id string) error {
	if h.err == nil {
		h.held = append(h.held, id)
	}
	return h.err
}

func (r *rig) startExclusive(target workspace.Target) error {
	_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: r.sealed.Secrets, Exclusive: true})
	return err
}

// What is exclusive runs only where a process that outlives the agent holds it, from before anything of it runs.
func TestExclusiveInstanceIsHeldBeforeItRuns(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.prepare(1)
	name := "holdfast-" + workspace.InstanceName(id, 1)
	err := r.startExclusive(target)
	typed(t, err, workspace.ErrorNodeUnguarded)
	require.NotContains(t, r.engine.calls, "create")

	h := &holder{err: errors.New("it does not answer")}
	r.node.Holder = h
	err = r.startExclusive(target)
	typed(t, err, workspace.ErrorNodeUnguarded)
	require.ErrorContains(t, err, "it does not answer")
	require.NotContains(t, r.engine.calls, "start")
	_, mark, err := r.node.Volumes.usable(id, 1)
	require.NoError(t, err)
	require.NotEqual(t, contentStarted, mark.State, "nothing has run on it, so that another node may be tried")

	h.err = nil
	r.engine.before = func(call, _ string) {
		if call == "start" {
			require.Contains(t, h.held, name)
		}
	}
	require.NoError(t, r.startExclusive(target))
	require.Equal(t, engine.StatusRunning, r.engine.status(name))
	require.Equal(t, engine.Exclusive, r.engine.instances[name].Labels[engine.LabelExclusive])
	require.NoError(t, r.startExclusive(target), "invariant 8")

	r = newRig(t, storage.PolicyAny)
	r.node.Holder = h
	h.held = nil
	r.started(1)
	require.Empty(t, h.held, "what is not exclusive is not held")
	require.NotContains(t, r.engine.instances[name].Labels, engine.LabelExclusive)
}
