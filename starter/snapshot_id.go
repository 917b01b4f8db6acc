package main

import (
	"context"
	"regexp"
	"strings"

	"holdfast/workspace"
)

// shortID is what a person may type of a snapshot's id: at least four digits, as restic takes them.
var shortID = regexp.MustCompile(`^[0-9a-f]{4,64}$`)

// checkSnapshotFlag refuses what can be no snapshot's id, before anything is asked.
func checkSnapshotFlag(flag, id string) error {
	if id == "" || shortID.MatchString(id) {
		return nil
	}
	return usage("--%s %q: want a snapshot's id, or its first digits (four at least)", flag, id).
		withMend("`holdfast snapshots NAME` lists them")
}

// wholeID completes what a person typed of the id of one of a workspace's snapshots. A whole one is taken as it is: it can
// be of a snapshot that no store can show now.
func wholeID(ctx context.Context, control control, name, typed string) (string, error) {
	if typed == "" || workspace.ValidateSnapshotID(typed) == nil {
		return typed, nil
	}
	found, err := control.Snapshots(ctx, workspace.SnapshotsInput{Name: name})
	if err != nil {
		return "", err
	}
	var whole []string
	for _, line := range found.Snapshots {
		if strings.HasPrefix(line.Snapshot, typed) {
			whole = append(whole, line.Snapshot)
		}
	}
	switch {
	case len(whole) == 1:
		return whole[0], nil
	case len(whole) > 1:
		return "", usage("%q begins the ids of %d snapshots of workspace %s", typed, len(whole), name).
			withMend("type more of it: `holdfast snapshots %s --full` prints whole ids", name)
	case len(found.Notes) > 0:
		return "", fail(exitFailed, "workspace %s: no snapshot that can be seen now begins with %q: %s", name, typed, strings.Join(found.Notes, "; ")).
			withSafe("nothing was changed").withMend("give the whole id, or wait until the stores answer")
	default:
		return "", fail(exitNotFound, "workspace %s has no snapshot that begins with %q", name, typed).
			withSafe("nothing was changed").withMend("`holdfast snapshots %s` lists them", name)
	}
}

// wholeIDs completes the ids in what a command asks a workspace for.
func wholeIDs(ctx context.Context, control control, name string, request any) (any, error) {
	var err error
	switch request := request.(type) {
	case workspace.RestoreRequest:
		request.Snapshot, err = wholeID(ctx, control, name, request.Snapshot)
		return request, err
	case workspace.StopRequest:
		request.AcceptOmissions, err = wholeID(ctx, control, name, request.AcceptOmissions)
		return request, err
	default:
		return request, nil
	}
}

// completeIDs is wholeIDs for a start.
func (plan *startPlan) completeIDs(ctx context.Context, control control, name string) (err error) {
	request := &plan.request
	if request.AcceptVersion, err = wholeID(ctx, control, name, request.AcceptVersion); err != nil {
		return err
	}
	request.Source.Snapshot, err = wholeID(ctx, control, request.Source.Workspace, request.Source.Snapshot)
	return err
}
