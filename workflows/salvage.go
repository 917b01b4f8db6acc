package workflows

import (
	"errors"
	"fmt"
	"slices"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// What an instance that was replaced after the loss of its node had is not thrown away and not put over newer work (A12):
// when the node has returned, the instance is stopped there, and its content is snapshotted as one that no commit names. The
// same is done with what a person's command went on without (A16).
// A person finds it with `holdfast snapshots`. Once every store holds that snapshot whole, the content is removed from the
// node (A19, docs/decisions/0017-recovered-content.md).

// salvageSlice bounds one attempt, so that a large content does not hold up the snapshots of what runs. The next attempt
// finds in the stores what this one has sent.
const salvageSlice = 4 * time.Minute

// back notes that a node which has something of a replaced instance can be asked for it.
func (w *entity) back(node string, is bool) {
	for i := range w.state.Left {
		left := &w.state.Left[i]
		if left.Node != node || !left.Replaced {
			continue
		}
		left.Back, left.Next, left.Attempts = is, time.Time{}, 0
		if is && left.Omitted > 0 && len(left.Sealed) > 0 {
			// It may be readable by now. While it is as it was, the snapshot that there is is found again.
			left.Again, left.Omitted = true, 0
		}
	}
}

// left is what was left on a node of an instance; nil when nothing is any more.
func (w *entity) left(node string, token uint64) *workspace.Kept {
	for i := range w.state.Left {
		if left := &w.state.Left[i]; left.Node == node && left.Token == token {
			return left
		}
	}
	return nil
}

// removesSaved says whether what is saved is removed from its node. A workflow that began before that goes on as before, until
// it continues as new.
func removesSaved(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "remove-recovered-content", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}

// salvages says whether something of it is left to be done while its node is there.
func (w *entity) salvages(left *workspace.Kept) bool {
	// invariant 3: until another instance is recorded, it is the newest one, and a recovered snapshot lets nothing of it go.
	replaced := w.state.Head != nil && w.state.Head.Token > left.Token
	return left.Back && (left.Handed || left.Unsaved() || left.Replaced && left.Omitted == 0 && len(left.Sealed) > 0 && replaced)
}

// salvageable is what can be saved or removed now, nil when nothing can.
func (w *entity) salvageable(ctx workflow.Context) *workspace.Kept {
	if w.state.Loss != nil || w.state.Incomplete {
		return nil
	}
	for i := range w.state.Left {
		left := &w.state.Left[i]
		if !w.salvages(left) || workflow.Now(ctx).Before(left.Next) {
			continue
		}
		if left.Handed || left.Unsaved() || removesSaved(ctx) {
			return left
		}
	}
	return nil
}

// nextSalvage is when the next attempt is due; zero when none is.
func (w *entity) nextSalvage() (next time.Time) {
	if w.state.Loss != nil || w.state.Incomplete {
		return next
	}
	for i := range w.state.Left {
		if left := &w.state.Left[i]; w.salvages(left) && !left.Next.IsZero() && (next.IsZero() || left.Next.Before(next)) {
			next = left.Next
		}
	}
	return next
}

func (w *entity) salvageCommand(ctx workflow.Context) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("salvage-%d-%d", w.salvageable(ctx).Token, workflow.Now(ctx).Unix()), Kind: workspace.OperationSalvage, Began: workflow.Now(ctx),
	}}
}

// errNotItsTurn ends an attempt that only waited: the node salvages a few workspaces at a time.
var errNotItsTurn = errors.New("the node is busy with what others had there")

// salvage stops a replaced instance, saves what it had, and removes it. What cannot be done is tried again when its node
// returns the next time; what was cut, or took too long, goes on when nothing else is to be done.
func (w *entity) salvage(ctx workflow.Context) error {
	left := w.salvageable(ctx)
	s := &salvaging{entity: w, node: left.Node, token: left.Token, began: workflow.Now(ctx), target: workspace.Target{
		WorkspaceID: w.state.ID, Name: w.state.Name, Token: left.Token, Node: left.Node, Volume: left.Volume, Sealed: left.Sealed,
	}}
	if left.Handed {
		err := s.dismiss(ctx)
		s.ended(ctx, err, "stopping it there failed: ")
		return err
	}
	w.state.Operation.Snapshot = left.Snapshot
	if left.Unsaved() {
		err := s.save(ctx)
		doing := "saving it when the node returned failed: "
		if left := s.left(); left != nil && left.Chosen != "" {
			doing = "saving it failed: "
		}
		s.ended(ctx, err, doing)
		if err != nil || s.left().Omitted > 0 || !removesSaved(ctx) {
			return err
		}
	}
	if left := s.left(); left == nil || !w.salvages(left) {
		return nil
	}
	err := s.remove(ctx)
	s.ended(ctx, err, "removing it from the node failed: ")
	return err
}

// salvaging is one attempt.
type salvaging struct {
	*entity
	node   string
	token  uint64
	target workspace.Target
	began  time.Time
	asked  bool // an activity has begun
}

func (s *salvaging) left() *workspace.Kept { return s.entity.left(s.node, s.token) }

// within is for one step of the attempt: what is left of its time. Giving it up is not waited for, so that a person's command
// never waits for what is done with an instance that was replaced; on its node the next thing waits until it has ended.
func (s *salvaging) within(ctx workflow.Context, summary string, attempt time.Duration) workflow.Context {
	rest := max(salvageSlice-workflow.Now(ctx).Sub(s.began), salvageSlice/8)
	ctx = onNodeReading(ctx, s.node, summary, min(attempt, rest), priorityRelease)
	ctx = workflow.WithTaskQueue(ctx, workspace.SalvageQueue(s.node))
	if !s.asked {
		ctx = workflow.WithScheduleToStartTimeout(ctx, salvageTurn)
	}
	return workflow.WithScheduleToCloseTimeout(ctx, rest)
}

func (s *salvaging) do(ctx workflow.Context, activity string, input, result any) error {
	err := workflow.ExecuteActivity(ctx, activity, input).Get(ctx, result)
	var timeout *temporal.TimeoutError
	if !s.asked && errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START {
		return errNotItsTurn
	}
	s.asked = true
	return err
}

// save has the stores hold what the instance had.
func (s *salvaging) save(ctx workflow.Context) error {
	s.step(ctx, workspace.StepHalt, fmt.Sprintf("instance %d on node %s, which was replaced", s.token, s.node))
	if err := s.do(s.within(ctx, "stop the instance that was replaced", haltAttempt),
		workspace.ActivityStopInstance, workspace.StopInstanceInput{Target: s.target, GraceSeconds: 10}, nil); err != nil {
		return err
	}
	s.step(ctx, workspace.StepBackup, "what the instance that was replaced had")
	var result workspace.BackupResult
	err := s.do(s.within(ctx, "save what the instance that was replaced had", backupAttempt),
		workspace.ActivityBackup, workspace.BackupInput{Target: s.target, Kind: "recovered"}, &result)
	if left := s.left(); failureType(err) == workspace.ErrorContentMissing && left.Again && left.Removing {
		left.Again, left.Removed = false, true // the removal was done, and only its answer was lost
		return nil
	}
	if err != nil {
		return err
	}
	s.step(ctx, workspace.StepVerify, "snapshot "+result.Backup.Snapshot)
	var verified workspace.VerifyResult
	if err := s.do(s.within(ctx, "look at every stored object", verifyAttempt),
		workspace.ActivityVerify, workspace.VerifyInput{Target: s.target, Snapshot: result.Backup.Snapshot}, &verified); err != nil {
		return err
	}
	s.state.Operation.Snapshot, s.state.Operation.Backup = result.Backup.Snapshot, &result.Backup
	if left := s.left(); left != nil {
		left.Snapshot, left.StatDigest, left.Owed, left.Saved = result.Backup.Snapshot, result.StatDigest, verified.Owed, workflow.Now(ctx)
		left.Files, left.Bytes, left.Omitted = result.Backup.Files, result.Backup.Bytes, result.Backup.Omitted
		left.Again, left.Removing = false, false
		s.state.Operation.Owed = verified.Owed
	}
	return nil
}

// remove removes what is saved from the node, which looks for itself whether it may (invariant 1), and then forgets it. A store
// that is late is brought up to date first (invariant 2).
func (s *salvaging) remove(ctx workflow.Context) error {
	left := *s.left()
	if !left.Removed && (len(left.Owed) > 0 || left.Attempts > 0) {
		s.step(ctx, workspace.StepRepair, "")
		if err := s.do(s.within(ctx, "bring late stores up to date", verifyAttempt),
			workspace.ActivityRepair, workspace.RepairInput{Target: s.target}, nil); err != nil {
			return err
		}
		s.step(ctx, workspace.StepVerify, "snapshot "+left.Snapshot)
		var verified workspace.VerifyResult
		if err := s.do(s.within(ctx, "look at every stored object", verifyAttempt),
			workspace.ActivityVerify, workspace.VerifyInput{Target: s.target, Snapshot: left.Snapshot}, &verified); err != nil {
			return err
		}
		if left := s.left(); left != nil {
			left.Owed = verified.Owed
		}
		if len(verified.Owed) > 0 {
			return fmt.Errorf("not every store holds snapshot %s whole yet: %v", left.Snapshot, verified.Why)
		}
	}
	s.step(ctx, workspace.StepRemove, "what is saved as snapshot "+left.Snapshot)
	if !left.Removed {
		s.left().Removing = true
		if err := s.do(s.within(ctx, "remove what the instance that was replaced had", removeAttempt), workspace.ActivityRemoveInstance,
			workspace.RemoveInstanceInput{Target: s.target, Snapshot: left.Snapshot, StatDigest: left.StatDigest, Recovered: true}, nil); err != nil {
			return err
		}
		if left := s.left(); left != nil {
			left.Removed = true
		}
	}
	return s.forget(ctx)
}

// forget releases what was placed on the node of the instance, and forgets what was left of it there.
func (s *salvaging) forget(ctx workflow.Context) error {
	left := *s.left()
	// Content that was adopted has been placed there once for each of its tokens.
	first := uint64(0)
	for i := range s.state.Left {
		if other := &s.state.Left[i]; other.Node == s.node && other.Token < s.token {
			first = max(first, other.Token+1)
		}
	}
	if err := s.releasePlacements(workflow.WithScheduleToCloseTimeout(control(ctx, "release the placement"), salvageSlice/4), s.node, first, s.token); err != nil {
		return err
	}
	if !left.Handed {
		s.state.Salvaged = append(s.state.Salvaged, workspace.Salvaged{
			Node: s.node, Token: s.token, Snapshot: left.Snapshot, Saved: left.Saved, Removed: workflow.Now(ctx), Files: left.Files, Bytes: left.Bytes, Chosen: left.Chosen,
		})
	}
	s.state.Salvaged = slices.Clone(s.state.Salvaged[max(0, len(s.state.Salvaged)-workspace.MaxSalvaged):])
	s.state.Left = slices.DeleteFunc(s.state.Left, func(left workspace.Kept) bool { return left.Node == s.node && left.Token == s.token })
	return nil
}

// ended notes how a part of it ended, and when it is gone on with.
func (s *salvaging) ended(ctx workflow.Context, err error, doing string) {
	left := s.left()
	if left == nil {
		return
	}
	lost, returned := "its node was lost; ", "when it returned, "
	if left.Chosen != "" {
		lost, returned = left.Chosen+"; ", ""
	}
	saved := fmt.Sprintf("%s%sthis was saved as the recovered snapshot %s (`holdfast snapshots %s`)", lost, returned, left.Snapshot, s.state.Name)
	kind, words := describe(err)
	switch {
	case temporal.IsCanceledError(err):
	case errors.Is(err, errNotItsTurn):
		left.Next = workspace.NextSnapshot(s.state.Name, 2*salvageTurn, workflow.Now(ctx).Add(salvageTurn)) // spread by name
	case err == nil:
		left.Next, left.Attempts = time.Time{}, 0
		left.Why = saved
		switch {
		case left.Omitted > 0:
			left.Why += fmt.Sprintf("; the content stays, because %d things could not be read as they were", left.Omitted)
		case !removesSaved(ctx):
			left.Back, left.Sealed = false, nil
		}
	case left.Removed:
		left.Why = saved + "; releasing its place in the catalog failed: " + words
		s.later(ctx, left)
	case left.Snapshot != "" && (kind == workspace.ErrorContentChanged || kind == workspace.ErrorNotStored):
		// It is saved again: as it is now, or because the stores have lost something of it. A snapshot that is whole on the
		// stores of the policy is found again then, with those that are to be brought up to date.
		left.Again = true
		left.Why = saved + "; it is saved again: " + words
		s.later(ctx, left)
	case kind == workspace.ErrorOmissions && left.Snapshot != "":
		left.Omitted = max(left.Omitted, 1)
		left.Why = saved + "; " + words
	case kind == "" || kind == workspace.ErrorNotStored:
		if left.Unsaved() && workflow.Now(ctx).Sub(s.began) >= salvageSlice/2 {
			return // it took all the time that one attempt has: it goes on
		}
		left.Why = lost + doing + words
		if left.Snapshot != "" {
			left.Why = saved + "; it stays until every store holds it: " + words
		}
		s.later(ctx, left)
	default:
		left.Back = false
		left.Why = lost + doing + words
		if left.Snapshot != "" {
			left.Why = saved + "; " + doing + words
		}
	}
}

// later waits longer after each attempt.
func (s *salvaging) later(ctx workflow.Context, left *workspace.Kept) {
	left.Attempts++
	left.Next = workflow.Now(ctx).Add(min(salvageAgain<<min(left.Attempts-1, 10), slowest))
}
