package workspace

import "time"

// NodeInfo is what an agent says of its node when it registers.
type NodeInfo struct {
	Name        string `json:"name"`
	Incarnation string `json:"incarnation"` // new for every start of the agent
	Recipient   string `json:"recipient"`   // the node's age public key: what only it may read is sealed to this
	// Lock names the lock that this start of the agent has on its data directory: two starts with the same one never live at the same
	// time. Empty: an agent that does not tell it.
	Lock        string   `json:"lock,omitempty"`
	Address     string   `json:"address"`     // host:port of its data port
	Fingerprint string   `json:"fingerprint"` // hexadecimal SHA-256 of the data port's certificate
	Engine      string   `json:"engine"`      // docker or process
	Version     string   `json:"version"`
	Notes       []string `json:"notes,omitempty"`
	// Volume is the shared volume that it was given; nil: none.
	Volume *NodeVolume `json:"volume,omitempty"`
	// Guarded says that the node has a guard process now, and PauseAfter when that pauses exclusive instances (NodeGuard).
	Guarded    bool          `json:"guarded,omitempty"`
	PauseAfter time.Duration `json:"pause_after,omitempty"`
}

// NodePhase is a node's state.
type NodePhase string

// The phases of a node. Suspect is a node whose lease timed out and has been offered again; Lost one that did not take
// the offer in time. What follows from Lost is each workspace's own decision.
const (
	NodeOffered NodePhase = "Offered"
	NodeReady   NodePhase = "Ready"
	NodeSuspect NodePhase = "Suspect"
	NodeLost    NodePhase = "Lost"
)

// NodeState is what a node's workflow knows: the answer to its query, and what it carries on.
type NodeState struct {
	Info  NodeInfo  `json:"info"`
	Phase NodePhase `json:"phase"`
	Epoch uint64    `json:"epoch"` // raised by every grant of the lease
	Since time.Time `json:"since"`
	// Reason is in words.
	Reason string `json:"reason,omitempty"`

	// Loss is set once the loss is decided: from then on its workspaces may move. A node whose agent was stopped is Lost
	// at once, so that nothing new is placed on it, and has a loss only when it stays away (LossDue).
	Loss    *NodeLoss `json:"loss,omitempty"`
	LossDue time.Time `json:"loss_due,omitzero"`
	// LostAt is when a loss was last decided, ReturnedAt when a lost node last took its lease again: the brake looks at
	// what happened to nodes within a minute of each other.
	LostAt     time.Time `json:"lost_at,omitzero"`
	ReturnedAt time.Time `json:"returned_at,omitzero"`
	// Heard is when a node whose lease has ended was last heard of.
	Heard time.Time `json:"heard,omitzero"`
	// AwayAt is when it was last noticed that the control plane itself had been away.
	AwayAt time.Time `json:"away_at,omitzero"`
	// Cordoned names who said that nothing new is to be placed on it; empty when it may.
	Cordoned string `json:"cordoned,omitempty"`
	// Drain is the newest drain of the node, also one that has ended.
	Drain *NodeDrain `json:"drain,omitempty"`
	// Guard is what was last heard of its guard process.
	Guard NodeGuard `json:"guard,omitzero"`
	// Announced is what the node's workspaces were last told to the end.
	Announced NodeNews `json:"announced,omitzero"`
}

// NodeLoss is a loss that was decided.
type NodeLoss struct {
	At time.Time `json:"at"`
	// Heard is when the node was last heard of: what was written there until then may be lost with it.
	Heard time.Time `json:"heard"`
	// Epoch is of the lease that it lost or did not take.
	Epoch uint64 `json:"epoch"`
	// Dead and Proceed are a person's word, with who gave it: it will not come back; its workspaces move although the
	// brake would hold them.
	Dead    string `json:"dead,omitempty"`
	Proceed string `json:"proceed,omitempty"`
}

// NodeNews is the signal to a node's workspaces: that it is lost, that it has its lease again, or that another start of
// its agent has it. It is a reason to ask, never the deciding fact: late and repeated news change nothing.
type NodeNews struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
	Lost  bool   `json:"lost"`
	// At and Heard are the loss's.
	At    time.Time `json:"at,omitzero"`
	Heard time.Time `json:"heard,omitzero"`
	// Word is what a person has said of the loss: a reason to look again at once.
	Word string `json:"word,omitempty"`
	// Incarnation is the start of the agent that has the lease now: what an earlier one left running may have ended with it.
	Incarnation string `json:"incarnation,omitempty"`
}

// NodeOrderKind is what a person says of a node.
type NodeOrderKind string

// The orders.
const (
	OrderDead     NodeOrderKind = "dead"     // it does not come back
	OrderProceed  NodeOrderKind = "proceed"  // its workspaces move although the brake would hold them
	OrderCordon   NodeOrderKind = "cordon"   // nothing new is placed on it
	OrderUncordon NodeOrderKind = "uncordon" // it may be placed on again; a drain ends
	OrderDrain    NodeOrderKind = "drain"    // it is cordoned, and its workspaces are moved elsewhere
	OrderUndrain  NodeOrderKind = "undrain"  // the drain ends; it stays cordoned
)

// NodeOrder is a person's word about a node.
type NodeOrder struct {
	Kind    NodeOrderKind `json:"kind"`
	Subject string        `json:"subject"`
	// Drain is for OrderDrain; nil means the defaults without a deadline.
	Drain *DrainRequest `json:"drain,omitempty"`
}

// AnnounceResult says how many workspaces were told.
type AnnounceResult struct {
	Told int `json:"told"`
}

// AnnounceCheckpoint travels in the heartbeats of an announcement: the last placement that was told in this sweep.
type AnnounceCheckpoint struct {
	After string `json:"after,omitempty"`
	Told  int    `json:"told"`
}

// LookAtNodeInput asks about a node as a workspace on it has to know it.
type LookAtNodeInput struct {
	Node string `json:"node"`
}

// LookAtNodeResult is the node's state, and whether the brake holds its workspaces now.
type LookAtNodeResult struct {
	Known bool      `json:"known"` // false: no node of that name has ever registered
	Node  NodeState `json:"node"`
	Brake Brake     `json:"brake"`
}

// NodeInput starts a node's workflow or carries it on.
type NodeInput struct {
	Node  string     `json:"node"`
	State *NodeState `json:"state,omitempty"`
}

// RegisterRequest announces an agent. The same incarnation may announce itself again: it has no lease.
type RegisterRequest struct {
	Info NodeInfo `json:"info"`
}

// LeaseTaken is the signal that an agent took the lease it was offered.
type LeaseTaken struct {
	Epoch       uint64 `json:"epoch"`
	Incarnation string `json:"incarnation"`
}

// LeaseInput grants a lease.
type LeaseInput struct {
	Node        string        `json:"node"`
	Epoch       uint64        `json:"epoch"`
	Incarnation string        `json:"incarnation"`
	Timeout     time.Duration `json:"timeout"` // the activity's heartbeat timeout, from which the fence is counted
	// VerifyKey is the control side's public key for access tokens.
	VerifyKey []byte `json:"verify_key"`
}

// LeaseBeat travels in the lease's heartbeats. It stays below 1 KiB.
type LeaseBeat struct {
	Epoch uint64    `json:"epoch"`
	Sent  time.Time `json:"sent"`
	// Instances is how many instances run or are paused on the node, as its guard last saw, at most 30 s before; nil when it has not looked
	// yet. Placement does not use it: who is on a node is for the catalog to say, and whether there is room for the node.
	Instances *int `json:"instances,omitempty"`
	// Pauses are those of them that are paused; nil when none is. For display only.
	Pauses *Paused `json:"pauses,omitempty"`
	// Guarded says that the node's guard process answered just before this beat was sent, and PauseAfter what it has been told.
	Guarded    bool          `json:"guarded,omitempty"`
	PauseAfter time.Duration `json:"pause_after,omitempty"`
}

// LeaseResult says how a lease ended when it was not lost.
type LeaseResult struct {
	Released bool `json:"released"` // the agent is stopping
	// Guarded and PauseAfter are as in the last LeaseBeat.
	Guarded    bool          `json:"guarded,omitempty"`
	PauseAfter time.Duration `json:"pause_after,omitempty"`
}

// ControlInfo is what the control side makes public.
type ControlInfo struct {
	Recipient string `json:"recipient"` // age public key: secrets are sealed to this
	VerifyKey []byte `json:"verify_key"`
	Policy    string `json:"policy"`
}
