package workspace

import "time"

// NodeInfo is what an agent says of its node when it registers.
type NodeInfo struct {
	Name        string   `json:"name"`
	Incarnation string   `json:"incarnation"` // new for every start of the agent
	Recipient   string   `json:"recipient"`   // the node's age public key: what only it may read is sealed to this
	Address     string   `json:"address"`     // host:port of its data port
	Fingerprint string   `json:"fingerprint"` // hexadecimal SHA-256 of the data port's certificate
	Engine      string   `json:"engine"`      // docker or process
	Version     string   `json:"version"`
	Notes       []string `json:"notes,omitempty"`
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
	// Load is from the last beat that the workflow saw (when a lease ended); for display.
	Reason string `json:"reason,omitempty"`
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

// LeaseBeat travels in the lease's heartbeats.
type LeaseBeat struct {
	Epoch     uint64    `json:"epoch"`
	Sent      time.Time `json:"sent"`
	Instances int       `json:"instances"`
}

// LeaseResult says how a lease ended when it was not lost.
type LeaseResult struct {
	Released bool `json:"released"` // the agent is stopping
}

// ControlInfo is what the control side makes public.
type ControlInfo struct {
	Recipient string `json:"recipient"` // age public key: secrets are sealed to this
	VerifyKey []byte `json:"verify_key"`
	Policy    string `json:"policy"`
}
