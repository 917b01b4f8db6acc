package workspace

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// PendingActivity is an effect under way, as the Temporal server describes it.
type PendingActivity struct {
	Name            string    `json:"name"`
	State           string    `json:"state"`   // scheduled, started
	Attempt         int32     `json:"attempt"` // from 1
	LastFailure     string    `json:"last_failure,omitempty"`
	LastFailureType string    `json:"last_failure_type,omitempty"` // an ErrorType, a Timeout…, or the program's own
	NextAttempt     time.Time `json:"next_attempt,omitzero"`       // while it backs off
	Started         time.Time `json:"started,omitzero"`
	// Checkpoint is from the newest heartbeat: how far a backup is.
	Checkpoint *BackupCheckpoint `json:"checkpoint,omitempty"`
}

// The values of PendingActivity.State.
const (
	ActivityScheduled = "scheduled"
	ActivityStarted   = "started"
)

// Action is a command that a person can give now.
type Action struct {
	Command string `json:"command"`
	Does    string `json:"does"`
}

// Explanation answers `holdfast why` (D7).
type Explanation struct {
	Name   string    `json:"name"`
	Phase  Phase     `json:"phase"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Doing  string    `json:"doing"` // what is being done now, one sentence

	Operation OperationKind `json:"operation,omitempty"`
	Step      Step          `json:"step,omitempty"`
	Attempt   int32         `json:"attempt,omitempty"` // 0 when nothing is attempted
	Failure   *Failure      `json:"failure,omitempty"` // the last attempt's error
	NextRetry time.Time     `json:"next_retry,omitzero"`

	Progress *BackupCheckpoint `json:"progress,omitempty"`
	Far      string            `json:"far,omitempty"` // Progress in words

	// RecoveryPoint is what a lost node would cost; nil when nothing runs.
	RecoveryPoint *RecoveryPoint `json:"recovery_point,omitempty"`

	// StopAhead is when it is stopped by itself; nil when nothing stops it.
	StopAhead *StopAhead `json:"stop_ahead,omitempty"`
	// Drain is what the drain of its node does about it. Explain does not know it.
	Drain string `json:"drain,omitempty"`

	FailedHooks []HookResult `json:"failed_hooks,omitempty"` // that failed the last time that they ran

	Safe []string `json:"safe"` // where the content is, newest first
	Can  []Action `json:"can"`  // what the person can do
}

// Explain says what is being done about a workspace, why it takes so long, what is safe, and what a person can do.
func Explain(state State, pending []PendingActivity, now time.Time) Explanation {
	e := Explanation{Name: state.Name, Phase: state.Phase, Since: state.Since, Reason: state.Reason}
	if state.Operation != nil {
		e.Operation, e.Step = state.Operation.Kind, state.Operation.Step
	}
	if activity := Foremost(pending); activity != nil {
		e.Attempt = activity.Attempt
		if activity.NextAttempt.After(now) {
			e.NextRetry = activity.NextAttempt
		}
		if activity.LastFailure != "" || activity.LastFailureType != "" {
			failure := ExplainFailure(activity.Name, activity.LastFailureType, activity.LastFailure)
			failure.Waits = true // it is pending, so it is tried again whatever it was
			e.Failure = &failure
		}
		if checkpoint := activity.Checkpoint; checkpoint != nil && checkpoint.begun() {
			e.Progress, e.Far = checkpoint, checkpoint.words(activity.Name == ActivityBackup)
		}
	}
	explainBlock(&e, state)
	e.RecoveryPoint = RecoveryPointOf(state, now)
	e.StopAhead = StopAheadOf(state, now)
	for _, result := range state.Hooks {
		if result.Failed() {
			e.FailedHooks = append(e.FailedHooks, result)
		}
	}
	e.Doing = doing(state, e, now)
	e.Safe = safe(state, now)
	e.Can = can(state, e)
	return e
}

// explainBlock tells a block's chain of causes once, as an error; the reason is what was being done and what it means.
func explainBlock(e *Explanation, state State) {
	block := state.Block
	if state.Phase != Blocked || block == nil || e.Failure != nil {
		return
	}
	typed, known := typedFailures[block.Type]
	what, _, chain := strings.Cut(block.Message, ": ")
	if !known || !chain {
		return
	}
	typed.Error, typed.Type = block.Message, string(block.Type)
	e.Failure = &typed
	if e.Reason == block.Message {
		e.Reason = what + ": " + typed.Words
	}
}

// Foremost picks the activity that a person should hear about: the one that has failed most often, else the first.
func Foremost(pending []PendingActivity) *PendingActivity {
	var best *PendingActivity
	for i := range pending {
		if best == nil || pending[i].Attempt > best.Attempt {
			best = &pending[i]
		}
	}
	return best
}

// begun reports whether there is anything to be told.
func (c *BackupCheckpoint) begun() bool {
	return c.Files > 0 || c.Bytes > 0 || c.BytesUploaded > 0 || c.TotalFiles > 0 || c.TotalBytes > 0 || c.Note != ""
}

// words says how far a backup is, or something else that reports files and bytes but stores nothing.
func (c *BackupCheckpoint) words(stores bool) string {
	of := func(n, total int64, words func(int64) string) string {
		if total > 0 && total >= n {
			return words(n) + " of " + words(total)
		}
		return words(n)
	}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	text := of(c.Files, c.TotalFiles, count) + " files, " + of(c.Bytes, c.TotalBytes, size)
	if stores {
		text += " read, " + size(c.BytesUploaded) + " stored"
	}
	if c.Note != "" {
		text += "; " + c.Note
	}
	return text
}

func doing(state State, e Explanation, now time.Time) string {
	var text strings.Builder
	switch operation := state.Operation; {
	case state.Phase == Deleted:
		return "Nothing: the workspace is deleted."
	case operation != nil:
		fmt.Fprintf(&text, "%s: %s", operation.Kind, orElse(string(operation.Step), "about to begin"))
		if operation.Detail != "" && operation.Detail != string(operation.Step) {
			fmt.Fprintf(&text, " (%s)", operation.Detail)
		}
	case state.Phase == Blocked && state.Block != nil:
		text.WriteString("Nothing: it waits for a person.")
		if e.Failure == nil && e.Reason != state.Block.Message {
			text.WriteString(" " + sentence(state.Block.Message))
		}
		return text.String()
	case state.Phase == Recovering && len(state.Waiting) == 0:
		return orElse(doingAfterLoss(state, now), "Nothing at this moment.")
	case len(state.Waiting) > 0:
		fmt.Fprintf(&text, "%s: accepted, about to begin", state.Waiting[0].Kind)
	case state.Phase == Running && state.Looked() != nil:
		return strings.TrimSpace(lookNote(state))
	case state.Phase == Running:
		return "Nothing: it is running."
	case state.Phase == Stopped && state.Kept != nil && state.Kept.Snapshot == "":
		return "Nothing: the content on node " + state.Kept.Node + " stays there, and nobody is backing it up."
	case state.Phase == Stopped && state.Kept != nil:
		return "Nothing at this moment: the content stays on node " + state.Kept.Node + " until every store has it."
	case state.Phase == Stopped:
		return "Nothing: it is stopped and backed up."
	case state.Phase == Pending && len(state.Recent) > 0:
		return "Nothing: it has never run, and waits to be started again or deleted."
	case state.Phase == Pending:
		return "Nothing: it has never been started."
	default:
		return "Nothing at this moment."
	}
	switch {
	case e.Failure.OfStorage() && !e.NextRetry.IsZero():
		fmt.Fprintf(&text, ", waiting for storage; attempt %d begins in %s", e.Attempt, duration(e.NextRetry.Sub(now)))
	case !e.NextRetry.IsZero():
		fmt.Fprintf(&text, "; attempt %d begins in %s", e.Attempt, duration(e.NextRetry.Sub(now)))
	case e.Attempt > 1:
		fmt.Fprintf(&text, ", attempt %d", e.Attempt)
	}
	if len(state.Waiting) > 0 && state.Operation != nil {
		fmt.Fprintf(&text, "; then: %s", state.Waiting[0].Kind)
	}
	return text.String() + "." + lossNote(state) + lookNote(state)
}

// safe lists where the content is, newest first. It claims only what the state records.
func safe(state State, now time.Time) []string {
	var lines []string
	switch {
	case state.Kept != nil:
		lines = append(lines, keptWords(state.Kept))
	case state.Instance != nil && state.Instance.Volume != "" && holdsContent(state):
		lines = append(lines, fmt.Sprintf("The newest content is on shared volume %s (instance %d on node %s) and survives that node; nothing removes it before a verified backup of exactly that content is committed.",
			state.Instance.Volume, state.Instance.Token, state.Instance.Node))
	case state.Instance != nil && holdsContent(state):
		lines = append(lines, fmt.Sprintf("The newest content is on node %s (instance %d); nothing removes it before a verified backup of exactly that content is committed.",
			state.Instance.Node, state.Instance.Token))
	}
	switch {
	case state.Head != nil:
		lines = append(lines, headWords(state, now))
	case state.Incomplete:
		lines = append(lines, "Nothing has been put in place yet, so there is nothing to lose; what it was to begin with is unchanged.")
	case state.Kept == nil && state.Instance == nil:
		lines = append(lines, "There is no content yet.")
	case state.Kept == nil || state.Kept.Snapshot == "":
		lines = append(lines, "Nothing of it is in the stores yet: no snapshot has been committed.")
	}
	lines = append(lines, safeAfterLoss(state)...)
	for i := range state.Left {
		lines = append(lines, state.Left[i].Stays(now))
	}
	for i := range state.Salvaged {
		lines = append(lines, state.Salvaged[i].Kept())
	}
	return lines
}

// holdsContent reports whether the instance's directory already has content that the stores may lack. Before the
// content is in place, the newest content is the base that it is made of.
func holdsContent(state State) bool {
	if state.Incomplete {
		return false
	}
	if state.Phase != Starting || state.Operation == nil || state.Instance.Adopted != 0 {
		return true
	}
	switch state.Operation.Step {
	case StepReadHead, StepPlace, StepRecord, StepImage, StepContent, StepUpload, "":
		return false
	default:
		return true
	}
}

func keptWords(kept *Kept) string {
	text := fmt.Sprintf("The newest content is kept on node %s (instance %d)", kept.Node, kept.Token)
	if kept.Volume != "" {
		text = fmt.Sprintf("The newest content is kept on shared volume %s (instance %d, last on node %s)", kept.Volume, kept.Token, kept.Node)
	}
	if kept.Why != "" {
		text += ": " + strings.TrimSuffix(kept.Why, ".")
	}
	if kept.Snapshot != "" {
		text += "; it is in snapshot " + Short(kept.Snapshot) + " too"
		if len(kept.Owed) > 0 {
			text += ", which is still owed to " + strings.Join(kept.Owed, ", ")
		}
	}
	return text + "."
}

func headWords(state State, now time.Time) string {
	head := state.Head
	text := "Snapshot " + Short(head.Snapshot)
	if head.Kind != "" {
		text += " (" + head.Kind + ")"
	}
	if !head.Time.IsZero() {
		text += fmt.Sprintf(" of %s, %s ago,", head.Time.UTC().Format("2006-01-02 15:04:05 UTC"), duration(now.Sub(head.Time)))
	}
	text += " is committed"
	if head.Files > 0 || head.Bytes > 0 {
		text += fmt.Sprintf(": %d files, %s", head.Files, size(head.Bytes))
	}
	if owed := OwedOf(state, head.Snapshot); len(owed) > 0 {
		text += "; still owed to " + strings.Join(owed, ", ")
	} else {
		text += "; on every store of the policy"
	}
	if head.Omitted > 0 {
		text += fmt.Sprintf("; it lacks %d things that could not be read", head.Omitted)
	}
	if head.Excluded != nil && head.Excluded.Count > 0 {
		text += fmt.Sprintf("; %d paths are excluded from it by .holdfastignore", head.Excluded.Count)
	}
	return text + "."
}

// OwedOf names the stores that do not hold a snapshot whole, as far as the state records it.
func OwedOf(state State, snapshot string) []string {
	if state.Kept != nil && state.Kept.Snapshot == snapshot {
		return state.Kept.Owed
	}
	if known := state.Protection; state.Instance != nil && known != nil && known.Token == state.Instance.Token && known.Snapshot == snapshot {
		return known.Owed
	}
	for _, operation := range slices.Backward(state.Recent) {
		switch {
		case operation.Kind == OperationRelease && !operation.Failed:
			return nil // every late store has been brought up to date since
		case operation.Snapshot == snapshot:
			return operation.Owed
		}
	}
	return nil
}

func can(state State, e Explanation) []Action {
	name := state.Name
	command := func(verb, more string) string { return strings.TrimSpace("holdfast " + verb + " " + name + " " + more) }
	var actions []Action
	add := func(command, does string) { actions = append(actions, Action{Command: command, Does: does}) }
	download := func() {
		if state.Kept != nil || state.Head != nil || state.Instance != nil && holdsContent(state) {
			add(command("download", "-o "+name+".tar"), "fetches the newest content that can be reached")
		}
	}
	recovered := func() {
		if saved := state.RecoveredSnapshot(); saved != "" {
			add(command("download", "--snapshot "+Short(saved)), "fetches what an instance that was replaced still had")
		}
	}

	switch state.Phase {
	case Deleted:
		if state.Head != nil {
			add("holdfast start OTHER --from-snapshot "+name, "makes a new workspace out of its last snapshot, while the stores keep it")
		}
		return actions
	case Blocked:
		blockedActions(state, command, add)
		download()
		return actions
	case Pending:
		switch {
		case state.Source.Kind == SourceUpload:
			add(command("start", "--from-dir DIR"), "sends the directory again, and starts it")
		case len(state.Recent) > 0:
			add(command("start", ""), "tries again what was asked for")
		default:
			add(command("start", ""), "starts it")
		}
		add(command("delete", ""), "forgets it; it has no content")
	case Starting:
		if e.Step == StepRun {
			add(command("logs", "-f"), "shows what the instance prints")
		}
		add(command("stop", ""), "gives this start up; content that was there before is backed up")
		add(command("unstick", ""), "gives this start up, keeps what is there, and allows another")
		download()
	case Recovering:
		recoveringActions(state, command, add)
		download()
		return actions
	case Running:
		if e.StopAhead != nil {
			add(command("keep", "--for 4h"), "has it run on, used or not, for that long")
		}
		add(command("shell", ""), "opens a shell in it")
		add(command("backup", ""), "backs it up while it runs")
		add(command("stop", ""), "backs it up and stops it")
		download()
		recovered()
	case Stopping:
		// invariant 3: its record has to be on the required stores before it runs.
		if state.Loss != nil && state.Head != nil {
			add(command("start", "--accept-version "+state.Head.Snapshot), "goes on elsewhere from the newest verified version, without what only node "+state.Loss.Node+" has")
		} else {
			add(command("start", ""), "goes on with the content that is on the node, once the stores take its record")
		}
		download()
	case Stopped:
		add(command("start", ""), "starts it again")
		if state.Head != nil {
			add(command("snapshots", ""), "lists the versions that can be restored")
		}
		if state.Kept != nil && state.Kept.Snapshot == "" {
			add(command("stop", ""), "backs up what is on the node, and then removes it there")
			download()
			break // a delete is refused
		}
		download()
		recovered()
		add(command("delete", ""), "deletes it; its snapshots stay in the stores")
	}
	if e.Failure != nil {
		switch e.Failure.Class {
		case FailureNames, FailureStorage:
			add("holdfast doctor", "asks every store and DNS server, and names what is broken")
		case FailureNode, FailureDisk:
			add("holdfast node list", "shows which nodes answer")
		case FailureRegistry, FailureInstance, FailureKeys, FailureContent, FailureSource, FailureRequest, FailureOther:
		}
		if state.Operation != nil && state.Phase == Stopping {
			add(command("unstick", ""), "seals this attempt, keeps what is there, and allows a start")
		}
	}
	return actions
}

// blockedActions are the commands that lead out of a block; the block's own mend comes first.
func blockedActions(state State, command func(verb, more string) string, add func(command, does string)) {
	block := state.Block
	if block == nil {
		add(command("unstick", ""), "seals the attempt that is stuck, keeps what is there, and allows a start")
		return
	}
	switch {
	case block.Omitted > 0 && state.Kept != nil && state.Kept.Snapshot != "":
		add(command("stop", "--accept-omissions "+state.Kept.Snapshot),
			fmt.Sprintf("accepts that the snapshot lacks %d named things, and lets the node drop its copy", block.Omitted))
		add(command("start", ""), "goes on with the content that is on the node")
	case block.Type == ErrorNodeLost:
		add("holdfast node list", "shows whether the node is back")
	case block.Type == ErrorSnapshotMissing, block.Type == ErrorDamaged, block.Type == ErrorContentMissing:
		add(command("snapshots", ""), "lists the versions that can be restored")
		add(command("restore", "--snapshot SNAPSHOT"), "starts from that version")
	case block.Type == ErrorStoreMissing, block.Type == ErrorStoreDenied, block.Type == ErrorStoreFull, block.Type == ErrorWrongKey:
		add("holdfast doctor", "asks every store and key, and names what is broken")
		retry(state, command, add)
	default:
		retry(state, command, add)
	}
	add(command("unstick", ""), "seals the attempt that is stuck, keeps what is there, and allows a start")
}

// retry offers what was being done again: a stop when there is content to back up, else a start.
func retry(state State, command func(verb, more string) string, add func(command, does string)) {
	if state.Instance != nil || state.Kept != nil {
		add(command("stop", ""), "tries the backup again once the cause is mended")
		return
	}
	add(command("start", ""), "tries again once the cause is mended")
}

// Short is a snapshot's id as people read it: the first 8 digits, as restic shows it.
func Short(snapshot string) string {
	if len(snapshot) > 8 {
		return snapshot[:8]
	}
	return snapshot
}

func size(bytes int64) string { return units.BytesSize(float64(bytes)) }

// duration is how long something takes, to a precision that a person can use.
func duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return "1 s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Round(time.Second)/time.Second)) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	default:
		return strconv.Itoa(int(d/(24*time.Hour))) + " days"
	}
}

func orElse(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}

func sentence(text string) string {
	if text == "" || strings.HasSuffix(text, ".") {
		return text
	}
	return text + "."
}
