package activities

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/workspace"
)

// picture is all that an activity can change: what is in the stores, on the node's disk and in its engine.
func (r *rig) picture() map[string]string {
	r.t.Helper()
	seen := map[string]string{}
	for i, store := range r.inner {
		for _, key := range store.Keys() {
			data, err := storage.ReadAll(r.t.Context(), store, key, 0, -1)
			require.NoError(r.t, err)
			seen[fmt.Sprintf("store %d: %s", i, key)] = string(data)
		}
	}
	require.NoError(r.t, filepath.WalkDir(r.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text := entry.Type().String()
		if entry.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(data)
		}
		seen["disk: "+strings.TrimPrefix(path, r.root)] = text
		return nil
	}))
	for _, name := range r.engine.names() {
		seen["engine: "+name] = string(r.engine.status(name))
	}
	return seen
}

// invariant 6: whatever touches an instance or its content waits until the operation before it has ended, and has done
// nothing until then.
func TestEveryOperationWaitsForTheOneBefore(t *testing.T) {
	for name, operation := range map[string]func(r *rig, target workspace.Target) error{
		workspace.ActivityPrepareContent: func(r *rig, target workspace.Target) error {
			_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target})
			return err
		},
		workspace.ActivityStartInstance: func(r *rig, target workspace.Target) error {
			_, err := run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target})
			return err
		},
		workspace.ActivityStopInstance: func(r *rig, target workspace.Target) error {
			return r.halt(workspace.StopInstanceInput{Target: target})
		},
		workspace.ActivityBackup: func(r *rig, target workspace.Target) error {
			_, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "final"})
			return err
		},
		workspace.ActivityRemoveInstance: func(r *rig, target workspace.Target) error {
			typed(r.t, runPlain(r, r.node.RemoveInstance, workspace.RemoveInstanceInput{Target: target}), workspace.ErrorNotStored)
			return nil
		},
		workspace.ActivityDiscardInstance: func(r *rig, target workspace.Target) error {
			return runPlain(r, r.node.DiscardInstance, workspace.DiscardInstanceInput{Target: target, DiscardData: target.Name})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			target := r.started(1)
			before, under := r.picture(), newTurn()
			unlock, err := r.node.Volumes.lock(t.Context(), id, under)
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() { done <- operation(r, target) }()
			select {
			case <-under.wanted:
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			}
			require.Equal(t, before, r.picture())
			unlock()
			require.NoError(t, <-done)
		})
	}
}
