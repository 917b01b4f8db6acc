package workspace

import "time"

// NodeGuard is what a node's workflow knows of the process that pauses the node's exclusive instances when the node has had no
// lease for PauseAfter (docs/decisions/0018-guard-process.md).
type NodeGuard struct {
	// Guarded says that the process was there when the node last said so.
	Guarded bool `json:"guarded"`
	// PauseAfter is counted from the sending of the newest beat of the lease that was acknowledged.
	PauseAfter time.Duration `json:"pause_after"`
	// Beaten is a moment, of the control side's own clock, before or at which that beat was sent: no clock of the node is
	// believed here.
	Beaten time.Time `json:"beaten,omitzero"`
}

// FenceMargin is what FencedAt adds. The cancellation of an offer reaches the server with the end of the workflow's task,
// which may take 10 s, and the node's agent can have beaten until then; the guard looks every half second, gives the engine
// 3 s and the kernel's freezer 2 s; the rest is for what was on its way to a disk or a server.
const FenceMargin = 20 * time.Second

// FencedAt is when every exclusive instance on the node is known to be paused, whatever the node and its agent do. ok is
// false while nothing says that it ever is: the node is not lost, or no guard was there when it was last heard of. Then only
// a person (`holdfast node dead`), or whoever has taken the volume away from the node, can say it.
//
// A node that takes its lease again lets its instances go on, unless the catalog has a newer record of them. So who relies on
// this moment looks at the node after the newer record is written, and waits for the moment that is said then: from there on
// nothing of the old instance runs. A look before the record is only for not writing it too soon.
func (s NodeState) FencedAt() (at time.Time, ok bool) {
	if s.Phase != NodeLost || s.Loss == nil || !s.Guard.Guarded || s.Guard.PauseAfter <= 0 || s.Guard.Beaten.IsZero() {
		return time.Time{}, false
	}
	return s.Guard.Beaten.Add(s.Guard.PauseAfter).Add(FenceMargin), true
}
