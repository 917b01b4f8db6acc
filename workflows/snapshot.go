package workflows

import (
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// capture is one way to make a snapshot.
type capture struct {
	kind string
	// timed: a timer made it due and will again, so it gives up soon, and stores nothing when nothing has changed.
	timed    bool
	priority int
}

var (
	finalSnapshot = capture{kind: "final", priority: priorityStop}
	liveSnapshot  = capture{kind: "live", priority: priorityBackup}
	dueSnapshot   = capture{kind: "live", timed: true, priority: priorityTimed}
)

// reading is for the steps that read the content and add to the stores, on for the one that commits.
func (c capture) reading(ctx workflow.Context, node, summary string, attempt time.Duration) workflow.Context {
	return c.patience(onNodeReading(ctx, node, summary, attempt, c.priority))
}

func (c capture) on(ctx workflow.Context, node, summary string, attempt time.Duration) workflow.Context {
	return c.patience(onNode(ctx, node, summary, attempt, c.priority))
}

func (c capture) patience(ctx workflow.Context) workflow.Context {
	if c.timed {
		return soon(ctx)
	}
	return ctx
}

// errUnchanged ends a timed snapshot of content that is as it was in the last one.
var errUnchanged = errors.New("nothing has changed")

// snapshot backs up, verifies by a separate look and commits (invariants 1, 3 and 7). When the look finds that
// something is missing, it backs up again: what is there is not sent again.
func (w *entity) snapshot(ctx workflow.Context, target workspace.Target, how capture, sequence *uint64) (workspace.Commit, []string, *workspace.Backup, error) {
	for again := time.Second; ; again = min(2*again, slowest) {
		began := workflow.Now(ctx)
		input := workspace.BackupInput{Target: target, Kind: how.kind, Sequence: *sequence + 1, Timed: how.timed}
		if how.kind == "live" {
			input.PreSnapshot, input.PostSnapshot = w.state.Spec.Hook(workspace.HookPreSnapshot), w.state.Spec.Hook(workspace.HookPostSnapshot)
		}
		if how.timed {
			input.UnlessStatDigest = w.protection().StatDigest
		}
		w.step(ctx, workspace.StepBackup, how.kind+" snapshot")
		var result workspace.BackupResult
		if err := workflow.ExecuteActivity(how.reading(ctx, target.Node, "back up, "+how.kind, backupAttempt),
			workspace.ActivityBackup, input).Get(ctx, &result); err != nil {
			w.noteFailedHook(err)
			return workspace.Commit{}, nil, nil, err
		}
		w.noteHooks(result.Hooks)
		if result.Unchanged {
			w.protection().Time, w.protection().Unchanged = began, true
			return workspace.Commit{}, nil, nil, errUnchanged
		}
		w.step(ctx, workspace.StepVerify, "snapshot "+result.Backup.Snapshot)
		var verified workspace.VerifyResult
		err := workflow.ExecuteActivity(how.reading(ctx, target.Node, "look at every stored object", verifyAttempt),
			workspace.ActivityVerify, workspace.VerifyInput{Target: target, Snapshot: result.Backup.Snapshot}).Get(ctx, &verified)
		if failureType(err) == workspace.ErrorNotStored && !how.timed {
			w.logger.Warn("the stores do not hold what was written; backing up again", "error", err)
			if err := workflow.Sleep(ctx, again); err != nil {
				return workspace.Commit{}, nil, nil, err
			}
			continue
		}
		if err != nil {
			return workspace.Commit{}, nil, nil, err
		}

		*sequence++
		commit := workspace.Commit{
			WorkspaceID: w.state.ID, Token: target.Token, Sequence: *sequence, Snapshot: result.Backup.Snapshot, Kind: how.kind, Timed: how.timed,
			Time: result.Time, Files: result.Backup.Files, Bytes: result.Backup.Bytes, Omitted: result.Backup.Omitted,
			Omissions: result.Omissions, Excluded: result.Excluded, StatDigest: result.StatDigest, Node: target.Node,
		}
		if w.state.Instance != nil {
			w.state.Instance.Sequence = *sequence
		}
		w.step(ctx, workspace.StepCommit, "snapshot "+commit.Snapshot)
		if err := workflow.ExecuteActivity(how.on(ctx, target.Node, fmt.Sprintf("commit %d.%d", commit.Token, commit.Sequence), commitAttempt),
			workspace.ActivityCommit, workspace.CommitInput{Target: target, Commit: commit}).Get(ctx, nil); err != nil {
			return workspace.Commit{}, nil, nil, err
		}
		w.state.Head = &commit
		w.protected(ctx, began, commit, verified.Owed, !result.Unsettled)
		return commit, verified.Owed, &result.Backup, nil
	}
}

// protection is what is known of how well the running instance is covered.
func (w *entity) protection() *workspace.Protection {
	if w.state.Instance == nil {
		return &workspace.Protection{} // of nothing that runs
	}
	if w.state.Protection == nil || w.state.Protection.Token != w.state.Instance.Token {
		w.state.Protection = &workspace.Protection{Token: w.state.Instance.Token}
	}
	return w.state.Protection
}

// protected notes that the stores hold the content of the moment at which a snapshot began.
func (w *entity) protected(ctx workflow.Context, began time.Time, commit workspace.Commit, owed []string, settled bool) {
	known := w.protection()
	known.Snapshot, known.Time, known.Unchanged, known.Owed = commit.Snapshot, began, false, owed
	known.TookMillis = workflow.Now(ctx).Sub(began).Milliseconds()
	known.StatDigest = ""
	if settled {
		known.StatDigest = commit.StatDigest
	}
	known.Failures, known.LastFailure = 0, nil
}

// running notes what the stores hold of an instance that has begun to run, and when its first snapshot is due (A7).
func (w *entity) running(ctx workflow.Context) {
	known := workspace.Protection{Token: w.state.Instance.Token}
	switch instance := w.state.Instance; {
	case instance.Adopted == 0 && instance.Base != "":
		// What was restored is exactly what is in the snapshot.
		known.Snapshot, known.Time = instance.Base, workflow.Now(ctx)
	case instance.Adopted != 0 && w.state.Head != nil:
		known.Snapshot, known.Time = w.state.Head.Snapshot, w.state.Head.Time
	}
	if known.Snapshot != "" {
		known.Owed = workspace.OwedOf(w.state, known.Snapshot)
	}
	w.state.Protection = &known
	w.scheduleSnapshot(ctx)
}

// scheduleSnapshot sets when the next snapshot is due.
func (w *entity) scheduleSnapshot(ctx workflow.Context) {
	due := time.Time{}
	if every := w.state.Spec.Snapshots.Every(); every > 0 {
		due = workspace.NextSnapshot(w.state.Name, every, workflow.Now(ctx))
	}
	w.protection().Due = due
}

// nextSnapshot is when the running instance's next snapshot is due; zero when none is.
func (w *entity) nextSnapshot() time.Time {
	if w.state.Phase != workspace.Running || w.state.Instance == nil {
		return time.Time{}
	}
	return w.protection().Due
}

func (w *entity) snapshotDue(ctx workflow.Context) bool {
	due := w.nextSnapshot()
	return !due.IsZero() && !workflow.Now(ctx).Before(due)
}

func (w *entity) snapshotCommand(ctx workflow.Context) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("snapshot-%d-%d", w.state.Instance.Token, w.nextSnapshot().Unix()), Kind: workspace.OperationSnapshot, Began: workflow.Now(ctx),
	}}
}

// timedSnapshot makes the snapshot that is due. One that cannot be made is told and not made up for: the next is due at
// its own time (A7).
func (w *entity) timedSnapshot(ctx workflow.Context) error {
	instance := w.state.Instance
	_, _, _, err := w.snapshot(ctx, w.target(instance), dueSnapshot, &instance.Sequence)
	if errors.Is(err, errUnchanged) {
		known := w.protection()
		known.Failures, known.LastFailure = 0, nil
		err = w.bringUpToDate(ctx)
	} else if err == nil {
		w.retaining().Made++
	}
	if err != nil && !temporal.IsCanceledError(err) {
		kind, words := describe(err)
		known := w.protection()
		known.Failures++
		known.LastFailure = &workspace.SnapshotFailure{Time: workflow.Now(ctx), Step: w.state.Operation.Step, Type: timeoutOr(err, kind), Error: words}
	}
	if !temporal.IsCanceledError(err) || w.interruptedBy != workspace.OperationFind {
		w.scheduleSnapshot(ctx) // else it is due still
	}
	return err
}

// bringUpToDate copies what a store still lacks of the newest snapshot: the next one, which would do that too, is not made
// while nothing changes. That the store is away still is no failure: it is owed as before.
func (w *entity) bringUpToDate(ctx workflow.Context) error {
	known, target := w.protection(), w.target(w.state.Instance)
	if len(known.Owed) == 0 {
		return nil
	}
	w.step(ctx, workspace.StepRepair, "")
	err := workflow.ExecuteActivity(dueSnapshot.reading(ctx, target.Node, "bring late stores up to date", verifyAttempt),
		workspace.ActivityRepair, workspace.RepairInput{Target: target}).Get(ctx, nil)
	if err == nil {
		w.step(ctx, workspace.StepVerify, "snapshot "+known.Snapshot)
		var verified workspace.VerifyResult
		err = workflow.ExecuteActivity(dueSnapshot.reading(ctx, target.Node, "look at every stored object", verifyAttempt),
			workspace.ActivityVerify, workspace.VerifyInput{Target: target, Snapshot: known.Snapshot}).Get(ctx, &verified)
		if err == nil {
			known.Owed = verified.Owed
			return nil
		}
	}
	if failureType(err) == workspace.ErrorNotStored {
		known.StatDigest = "" // not even the stores that had it: it is made again when it is due
		return err
	}
	if temporal.IsCanceledError(err) {
		return err
	}
	w.logger.Info("a store is still owed the newest snapshot", "owed", known.Owed, "error", err)
	return nil
}

// timeoutOr is the kind of a failure as `why` tells it.
func timeoutOr(err error, kind workspace.ErrorType) string {
	var timeout *temporal.TimeoutError
	if !errors.As(err, &timeout) {
		return string(kind)
	}
	switch timeout.TimeoutType() {
	case enumspb.TIMEOUT_TYPE_HEARTBEAT:
		return workspace.TimeoutHeartbeat
	case enumspb.TIMEOUT_TYPE_START_TO_CLOSE:
		return workspace.TimeoutStartToClose
	case enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START:
		return workspace.TimeoutScheduleToStart
	default:
		return workspace.TimeoutScheduleToClose
	}
}

// backup snapshots the running instance because a person asked.
func (w *entity) backup(ctx workflow.Context) error {
	if w.state.Instance == nil || w.state.Phase != workspace.Running {
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s is not running (%s)", w.state.Name, w.state.Phase)}
	}
	commit, owed, numbers, err := w.snapshot(ctx, w.target(w.state.Instance), liveSnapshot, &w.state.Instance.Sequence)
	if err != nil {
		return err
	}
	w.state.Operation.Snapshot, w.state.Operation.Backup, w.state.Operation.Owed = commit.Snapshot, numbers, owed
	if commit.Omitted > 0 {
		w.state.Operation.Owed = append(w.state.Operation.Owed, fmt.Sprintf("%d things are not in it as they were", commit.Omitted))
	}
	return nil
}
