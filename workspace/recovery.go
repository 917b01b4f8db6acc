package workspace

import (
	"fmt"
	"time"
)

// Loss is that the node which has a workspace's newest content is lost.
type Loss struct {
	Node  string    `json:"node"`
	Epoch uint64    `json:"epoch,omitempty"`
	At    time.Time `json:"at"`    // when the loss was decided
	Heard time.Time `json:"heard"` // when the node was last heard of
	// Replaced is set before the record of a new instance is written: from then on what is on the node is not the
	// newest content any more, whether the record was written or not.
	Replaced bool `json:"replaced,omitempty"`
	// Gone is set when the node is there, and has not got the content any more.
	Gone bool `json:"gone,omitempty"`
	// Waiting is why nothing is done at this moment, and NextLook when it is looked at again.
	Waiting  string    `json:"waiting,omitempty"`
	NextLook time.Time `json:"next_look,omitzero"`
	Attempts int       `json:"attempts,omitempty"` // to go on elsewhere that failed
}

// Recovery is what a workspace went on with after the loss of its node, and what that cost.
type Recovery struct {
	From     string    `json:"from"` // the node that was lost
	Token    uint64    `json:"token"`
	To       string    `json:"to"`
	Snapshot string    `json:"snapshot"`
	LostAt   time.Time `json:"lost_at"`
	At       time.Time `json:"at"`
	// LostWork bounds what was lost: the time from the snapshot, or from the instance's start when nothing was
	// snapshotted since, until the loss was decided. A node that is only cut off may have gone on until then.
	LostWork time.Duration `json:"lost_work"`
	Gone     bool          `json:"gone,omitempty"` // Loss.Gone
	// Volume is set when its content survived the node, on that shared volume, and was gone on with as it was.
	Volume string `json:"volume,omitempty"`
}

// What says what was lost: the node, or only what it had.
func (l *Loss) What() string {
	if l.Gone {
		return "node " + l.Node + " is there without its content"
	}
	return "node " + l.Node + " is lost"
}

// Look is that an instance which ran has to be looked for: another start of its node's agent has the lease, and what the
// one before left running may have ended with the machine.
type Look struct {
	Node        string    `json:"node"`
	Token       uint64    `json:"token"`
	Incarnation string    `json:"incarnation"`
	Since       time.Time `json:"since"`
	// Why is what kept it from being found, Next when it is looked for again, after Attempts.
	Why      string    `json:"why,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
}

// Looked is the look that has to be made for the instance there is; nil when none has.
func (s *State) Looked() *Look {
	if s.Look == nil || s.Instance == nil || s.Look.Node != s.Instance.Node || s.Look.Token != s.Instance.Token {
		return nil
	}
	return s.Look
}

// Words says what happened and what it cost.
func (r *Recovery) Words() string {
	text := "node " + r.From + " was lost; it "
	if r.Gone {
		text = "node " + r.From + " had lost its content; it "
	}
	switch {
	case r.Volume != "":
		return text + fmt.Sprintf("runs on node %s, with the files as they were on shared volume %s: nothing was lost", orElse(r.To, "that is being chosen"), r.Volume)
	case r.To == "":
		text += "goes on from snapshot " + Short(r.Snapshot)
	default:
		text += fmt.Sprintf("runs on node %s, from snapshot %s", r.To, Short(r.Snapshot))
	}
	if r.LostWork <= 0 {
		return text + ": nothing was lost"
	}
	return text + fmt.Sprintf(": at most the last %s of work before the loss are not in it", WorkSpan(r.LostWork))
}

// WorkSpan says how much work, exactly to the second while that is what matters.
func WorkSpan(d time.Duration) string {
	if d < 10*time.Minute {
		return fmt.Sprintf("%d s", int((d+time.Second-1)/time.Second))
	}
	return duration(d)
}

// RecoveryAction is what follows from the loss of a node.
type RecoveryAction string

// The actions.
const (
	RecoveryStay  RecoveryAction = "stay"  // the node has its lease again: the instance is gone on with there
	RecoveryWait  RecoveryAction = "wait"  // it is looked at again
	RecoveryMove  RecoveryAction = "move"  // another instance is made elsewhere, of the newest verified snapshot
	RecoveryBlock RecoveryAction = "block" // there is no snapshot: the content waits on the node (A10)
)

// RecoveryDecision is what DecideRecovery says.
type RecoveryDecision struct {
	Action RecoveryAction
	Until  time.Time // RecoveryWait: when to look again at the latest
	Why    string    // in words
}

const (
	// longestReturnGrace bounds how long a node is waited for: what is lost by going on without it is at most worth so long.
	longestReturnGrace = 2 * time.Minute
	// shortestReturnGrace: the nodes of one outage are found to be lost within seconds of each other, and the brake has to
	// see them all.
	shortestReturnGrace = 5 * time.Second
	// lookAgain is how often a node is asked about while nothing says when to, at first: a node that has been away for long is
	// asked about after an eighth of that time again, and each lookSlowest in the end. A thousand workspaces that are held
	// would be nothing else than their own questions; what a person says, and that the node has returned, they are told.
	lookAgain   = 15 * time.Second
	lookSlowest = time.Minute
)

// DecideRecovery says what follows for a running workspace from the loss of its node. It is asked again before every new
// instance record, so that a node which returned in the meantime keeps its workspaces.
func DecideRecovery(state State, look LookAtNodeResult, now time.Time) RecoveryDecision {
	loss, node := state.Loss, look.Node
	switch {
	case loss == nil:
		return RecoveryDecision{Action: RecoveryStay}
	case !loss.Gone && state.OnVolume():
		return decideShared(state, look, now)
	case loss.Replaced:
		// It has been gone on without; what is left is to succeed.
		if look.Brake.Held {
			return wait(loss, look.Brake.Until, now, "held: "+look.Brake.Why)
		}
		return RecoveryDecision{Action: RecoveryMove}
	case node.Phase == NodeReady:
		return RecoveryDecision{Action: RecoveryStay, Why: "node " + loss.Node + " has returned"}
	case !look.Known || node.Loss == nil:
		return wait(loss, time.Time{}, now, "node "+loss.Node+" is asked whether it is there")
	case state.Head == nil:
		return RecoveryDecision{Action: RecoveryBlock, Why: fmt.Sprintf("node %s is lost and has the only content: nothing was ever backed up", loss.Node)}
	case node.Loss.Dead != "":
		return RecoveryDecision{Action: RecoveryMove, Why: node.Loss.Dead + " said that node " + loss.Node + " is dead"}
	case look.Brake.Held:
		return wait(loss, look.Brake.Until, now, "held: "+look.Brake.Why)
	}
	if grace := node.Loss.At.Add(ReturnGrace(state, node.Loss.At)); now.Before(grace) {
		return RecoveryDecision{Action: RecoveryWait, Until: grace,
			Why: fmt.Sprintf("node %s is given until %s to return, because about as much work would be lost without it", loss.Node, grace.UTC().Format("15:04:05 UTC"))}
	}
	return RecoveryDecision{Action: RecoveryMove}
}

// wait looks again when the cause ends, and now and then in between.
func wait(loss *Loss, until, now time.Time, why string) RecoveryDecision {
	pause := min(max(now.Sub(loss.At)/8, lookAgain), lookSlowest)
	if soon := now.Add(pause); until.IsZero() || until.After(soon) {
		until = soon
	}
	return RecoveryDecision{Action: RecoveryWait, Until: until, Why: why}
}

// ReturnGrace is how long a lost node is waited for: as long as the work that would be lost, at most 2 minutes
// (DESIGN section 7).
func ReturnGrace(state State, lost time.Time) time.Duration {
	return min(max(LostWork(state, lost), shortestReturnGrace), longestReturnGrace)
}

// LostWork bounds the work that going on from the head loses, when the node was lost at a time. Without a snapshot it is
// all there is, and the answer is the time since the instance began.
func LostWork(state State, lost time.Time) time.Duration {
	var since time.Time
	if head := state.Head; head != nil {
		since = head.Time
	}
	if instance := state.Instance; instance != nil && instance.Adopted == 0 && instance.Began.After(since) {
		// The content was that snapshot's when the instance began.
		if head := state.Head; head == nil || head.Sequence == 0 && head.Token == instance.Token {
			since = instance.Began
		}
	}
	if known := state.Protection; known != nil && state.Instance != nil && known.Token == state.Instance.Token && known.Snapshot != "" && known.Time.After(since) {
		since = known.Time // nothing had changed since the snapshot until then
	}
	return max(lost.Sub(since), 0)
}
