package activities

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// Whoever is connected is told once when the pause begins, with its cause, and once when it ends; nobody else is.
func TestGuardTellsWhoIsConnected(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		node := &Node{Guard: w.guard}
		var told []string
		ctx, leave := context.WithCancel(context.Background())
		defer leave()
		wait := node.tellOfPauses(ctx, dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1}, func(text string) { told = append(told, text) })
		other := node.tellOfPauses(ctx, dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 2}, func(text string) { t.Error("another's: " + text) })
		w.pass(time.Minute)
		require.Empty(t, told)

		w.cut()
		w.pass(15 * time.Second)
		w.record(id, 2, w.catalog)
		w.pass(10 * time.Second)
		w.is(name, engine.StatusPaused, "it was replaced")
		require.Len(t, told, 1)
		require.Contains(t, told[0], "workspace atlas is paused: instance 2 has taken its place; what is open in it stands still")
		w.pass(time.Minute)
		require.Len(t, told, 1, "it is said once")
		leave()
		wait()
		other()
		require.Empty(t, w.guard.listeners)
	})
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		node := &Node{Guard: w.guard}
		var told []string
		ctx, leave := context.WithCancel(context.Background())
		defer leave()
		wait := node.tellOfPauses(ctx, dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1}, func(text string) { told = append(told, text) })
		w.pass(time.Minute)
		w.alone()
		w.pass(3 * time.Minute)
		w.is(name, engine.StatusPaused, "nothing is reached")
		require.Len(t, told, 1)
		require.Contains(t, told[0], "has reached neither Temporal nor a store")
		w.back()
		w.take()
		w.pass(time.Minute)
		w.is(name, engine.StatusRunning, "no other has taken its place")
		require.Equal(t, "workspace atlas goes on", told[len(told)-1])
		require.Len(t, told, 2)
		leave()
		wait()
	})
}

// Who takes nothing holds up nobody, and hears what holds when it does.
func TestGuardWaitsForNoListener(t *testing.T) {
	g := &Guard{Lease: &Lease{}}
	name := workspace.InstanceName(id, 1)
	news, stop := g.listen(name)
	instance := &guarded{name: name}
	g.mutex.Lock()
	for _, paused := range []bool{true, false, true, true, false, true} {
		g.is(instance, paused)
	}
	g.mutex.Unlock()
	require.True(t, <-news)
	select {
	case <-news:
		require.Fail(t, "the newest is all that waits")
	default:
	}
	stop()
	g.mutex.Lock()
	g.is(instance, false)
	g.mutex.Unlock()
	select {
	case <-news:
		require.Fail(t, "it has left")
	default:
	}
}

// A command that ends is not waited for by who would tell it something, and without a guard nobody does.
func TestExecTellsUntilItEnds(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.started(1)
	claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1, Verb: dataport.VerbExec}
	_, err := r.node.Exec(t.Context(), claims, dataport.ExecRequest{Command: []string{"true"}}, dataport.Streams{Stdout: io.Discard, Stderr: io.Discard, Notice: func(string) { t.Error("nothing is paused") }})
	require.NoError(t, err)
}
