package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/snapshot"
	"holdfast/workspace"
)

// outcome is what is said when an operation has ended.
type outcome struct {
	lines []string // on stdout, when it did what was asked
	err   error    // else, or when something is owed
}

// say writes one line for people, wrapped.
func (p *program) say(format string, args ...any) {
	fmt.Fprintln(p.stdout, wrapText(fmt.Sprintf(format, args...), 2))
}

// describeOutcome says how an operation ended: what was done, what is owed, or what failed and what to do.
func describeOutcome(operation workspace.Operation, state workspace.State, unsent []snapshot.Omission, took time.Duration) outcome {
	if operation.Failed {
		return outcome{err: failedOperation(operation, state)}
	}
	var lines []string
	name := state.Name
	in := " in " + seconds(took)
	notes := func(texts []string) {
		for _, text := range texts {
			lines = append(lines, "note: "+text)
		}
	}
	switch operation.Kind {
	case workspace.OperationStart, workspace.OperationRestore:
		line := name + " is running"
		if state.Instance != nil {
			line = fmt.Sprintf("%s is running on node %s (instance %d)", name, state.Instance.Node, state.Instance.Token)
		}
		if restored := operation.Restored; restored != nil && restored.Snapshot != "" {
			line += fmt.Sprintf(", restored from snapshot %s: %s files, %s", workspace.Short(restored.Snapshot), count(restored.Files), size(restored.Bytes))
		} else if state.Instance != nil && state.Instance.Adopted != 0 {
			line += ", going on with the content that was on the node"
		}
		lines = append(lines, line+in)
		if state.Instance != nil {
			notes(state.Instance.Notes)
		}
		if operation.Restored != nil {
			if excluded := operation.Restored.Excluded; excluded > 0 {
				lines = append(lines, excludedWords(byRules+" when this snapshot was made", excluded, excludedFrom(state, operation.Restored.Snapshot).Paths))
			}
			for _, store := range sortedKeys(operation.Restored.Fallbacks) {
				lines = append(lines, fmt.Sprintf("%s objects were missing or damaged on %s and came from another store", count(operation.Restored.Fallbacks[store]), store))
			}
		}
	case workspace.OperationStop:
		line := name + " is stopped"
		nothing := operation.Snapshot == "" && state.Instance == nil && state.Kept == nil
		switch {
		case nothing && state.Head != nil:
			line = fmt.Sprintf("%s is %s; what it had is in snapshot %s", name, state.Phase, workspace.Short(state.Head.Snapshot))
		case nothing:
			line = fmt.Sprintf("the start of %s was given up; there is nothing to back up, and it is %s", name, state.Phase)
		case state.Phase != workspace.Stopped:
			line = fmt.Sprintf("the stop of %s has ended; it is %s now", name, state.Phase)
		}
		lines = append(lines, line+backupWords(operation)+in)
		lines = append(lines, backupExclusions(operation, state, byRules+", so not in the snapshot, and gone when the content leaves its node")...)
		if state.Kept != nil {
			lines = append(lines, fmt.Sprintf("the content stays on node %s too: %s", state.Kept.Node, state.Kept.Why))
		}
	case workspace.OperationMove:
		line := fmt.Sprintf("the move of %s has ended; it is %s now", name, state.Phase)
		if state.Instance != nil && state.Phase == workspace.Running {
			line = fmt.Sprintf("%s runs on node %s now (instance %d)", name, state.Instance.Node, state.Instance.Token)
		}
		if !operation.Halted.IsZero() {
			line += fmt.Sprintf("; nobody could work in it for %s", seconds(operation.Ended.Sub(operation.Halted)))
		}
		lines = append(lines, line+backupWords(operation)+in)
		lines = append(lines, backupExclusions(operation, state, byRules+", so not in the snapshot, and gone with the content on the node that it left")...)
	case workspace.OperationBackup:
		lines = append(lines, name+" is backed up"+backupWords(operation)+in)
		lines = append(lines, backupExclusions(operation, state, byRules+", so not in the snapshot")...)
	case workspace.OperationKeep:
		lines = append(lines, keepWords(state, operation.Ended))
	case workspace.OperationDelete:
		lines = append(lines, name+" is deleted"+in)
	case workspace.OperationUnstick:
		line := fmt.Sprintf("%s is no longer stuck; it is %s", name, state.Phase)
		if state.Kept != nil {
			line += fmt.Sprintf(", its content is kept on node %s", state.Kept.Node)
		}
		lines = append(lines, line)
	case workspace.OperationRelease:
		lines = append(lines, "every store has the content of "+name+" now")
	}
	return outcome{lines: lines, err: owedOutcome(operation, state, unsent)}
}

// keepWords says what a keep has come to.
func keepWords(state workspace.State, now time.Time) string {
	ahead := workspace.StopAheadOf(state, now)
	switch {
	case ahead == nil:
		return fmt.Sprintf("%s is %s now", state.Name, state.Phase)
	case ahead.Keep != nil:
		return fmt.Sprintf("%s is not stopped by itself before %s", state.Name, moment(ahead.Keep.Until))
	default:
		return fmt.Sprintf("%s may be stopped by itself again: %s", state.Name, ahead.Words(now))
	}
}

func backupWords(operation workspace.Operation) string {
	backup := operation.Backup
	if backup == nil {
		if operation.Snapshot != "" {
			return "; its content is in snapshot " + workspace.Short(operation.Snapshot)
		}
		return ""
	}
	return fmt.Sprintf(": snapshot %s is verified and committed, %s files, %s; %s sent anew,", workspace.Short(backup.Snapshot),
		count(backup.Files), size(backup.Bytes), size(backup.BytesUploaded))
}

// owedOutcome is the failure with exitOwed when something is still owed or was left out.
func owedOutcome(operation workspace.Operation, state workspace.State, unsent []snapshot.Omission) error {
	var parts []string
	if len(operation.Owed) > 0 {
		parts = append(parts, "still owed: "+strings.Join(operation.Owed, ", "))
	}
	if backup := operation.Backup; backup != nil && backup.Omitted > 0 {
		text := fmt.Sprintf("%s things are not in the snapshot as they were", count(backup.Omitted))
		if state.Head != nil && state.Head.Snapshot == backup.Snapshot {
			text += omissionLines(state.Head.Omissions, state.Head.Omitted)
		}
		parts = append(parts, text)
	}
	if restored := operation.Restored; restored != nil && len(restored.Warnings) > 0 {
		parts = append(parts, "some metadata could not be set: "+strings.Join(restored.Warnings, "; "))
	}
	if len(unsent) > 0 {
		text := fmt.Sprintf("%s things of the directory were not sent as they are", count(int64(len(unsent))))
		for i, omission := range unsent {
			if i == workspace.MaxOmissions {
				text += fmt.Sprintf("\n  and %s more", count(int64(len(unsent)-i)))
				break
			}
			text += fmt.Sprintf("\n  %s (%s: %s)", omission.Path, omission.Kind, omission.Reason)
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return nil
	}
	f := fail(exitOwed, "done, but %s", strings.Join(parts, "; and "))
	if len(operation.Owed) > 0 {
		f.safe = "it is acknowledged: the stores that the policy requires hold it whole"
		f.mend = "nothing: the late stores are brought up to date by themselves; `holdfast why " + state.Name + "` shows it"
	}
	return f
}

// omissionLines names what a snapshot lacks, one a line.
func omissionLines(omissions []workspace.Omission, total int64) string {
	var out strings.Builder
	for _, omission := range omissions {
		fmt.Fprintf(&out, "\n  %s (%s: %s)", omission.Path, omission.Kind, omission.Reason)
	}
	if more := total - int64(len(omissions)); more > 0 && len(omissions) > 0 {
		fmt.Fprintf(&out, "\n  and %s more", count(more))
	}
	return out.String()
}

// failedOperation says what happened, what is safe, and what to do.
func failedOperation(operation workspace.Operation, state workspace.State) error {
	message := operation.Error
	if message == "" && state.Block != nil {
		message = state.Block.Message
	}
	if message == "" {
		message = "it failed without saying why"
	}
	if state.Block != nil {
		message += omissionLines(state.Block.Omissions, state.Block.Omitted)
	}
	f := &failure{code: exitFailed, what: errors.New(message)}
	if !strings.Contains(message, state.Name) {
		f.what = fmt.Errorf("%s of %s: %s", operation.Kind, state.Name, message)
	}
	omissions := operation.ErrorType == workspace.ErrorOmissions && operation.Kind != workspace.OperationMove
	switch {
	case omissions:
		f.code = exitOwed // the backup is there; what it lacks is named and kept
	case operation.Refused:
		f.code = exitRefused
	case operation.ErrorType == workspace.ErrorInvalid:
		f.code = exitUsage
	case operation.ErrorType == workspace.ErrorNotFound:
		f.code = exitNotFound
	}
	e := workspace.Explain(state, nil, operation.Ended)
	if operation.Refused && !omissions {
		f.safe = "nothing was changed"
	} else if len(e.Safe) > 0 {
		f.safe = strings.Join(e.Safe, " ")
	}
	switch {
	case state.Block != nil && state.Block.Mend != "":
		f.mend = state.Block.Mend
	default:
		f.mend = strings.ReplaceAll(workspace.ExplainFailure("", string(operation.ErrorType), "").Mend, "NAME", state.Name)
	}
	if f.mend == "" {
		f.mend = "`holdfast why " + state.Name + "` says more"
	}
	return f
}

func sortedKeys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
