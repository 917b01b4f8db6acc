package workspace

import (
	"time"
)

// Phase is a workspace's state as a person sees it.
type Phase string

// The phases.
const (
	Pending  Phase = "Pending"  // made, nothing has run yet
	Starting Phase = "Starting" //
	Running  Phase = "Running"  //
	Stopping Phase = "Stopping" // until a backup is acknowledged
	Stopped  Phase = "Stopped"  // a verified snapshot is acknowledged, nothing runs
	Blocked  Phase = "Blocked"  // waits for a person; content is kept
	Deleted  Phase = "Deleted"  // the workflow ends
	// Recovering: its node was lost; it is waited for, and then gone on without.
	Recovering Phase = "Recovering"
)

// Phases are all of them, in the order of a life.
var Phases = [...]Phase{Pending, Starting, Running, Recovering, Stopping, Stopped, Blocked, Deleted}

// State is everything a workspace's workflow knows: the answer to its query, and what it carries on when it continues
// as new. Fields are only ever added.
type State struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"` // immutable; made by the workflow
	Owner   string    `json:"owner"`
	Created time.Time `json:"created"`
	Spec    Spec      `json:"spec"`
	Source  Source    `json:"source"`
	// Secrets are sealed to the control side's public key.
	Secrets []byte `json:"secrets,omitempty"`

	Phase  Phase     `json:"phase"`
	Reason string    `json:"reason,omitempty"` // in words
	Since  time.Time `json:"since"`            // when the phase was entered

	// Token is the newest fencing token issued: one per instance, never issued again.
	Token uint64 `json:"token"`
	// Head is the newest commit the workflow knows; a start compares it with the catalog's (invariant 4).
	Head     *Commit   `json:"head,omitempty"`
	Instance *Instance `json:"instance,omitempty"` // the one that runs, starts or stops
	// Protection is how far the stores are behind the instance while it runs.
	Protection *Protection `json:"protection,omitempty"`
	// Retaining is what came of forgetting its timed snapshots.
	Retaining *Retaining `json:"retaining,omitempty"`
	// Hooks are how each hook ended the last time that it ran.
	Hooks []HookResult `json:"hooks,omitempty"`
	// Kept is content on a node that is not yet surely on every provider of the policy. While it is set, the content is
	// the newest there is, and a start adopts it.
	Kept *Kept `json:"kept,omitempty"`
	// Left is content on nodes that was gone on without. What is Replaced is saved while its node is there, and then removed; the
	// rest was left by a version that did not do so, and is never removed by itself.
	Left []Kept `json:"left,omitempty"`
	// Salvaged is what was saved of instances that were replaced and is on no node any more, newest last, at most MaxSalvaged.
	Salvaged []Salvaged `json:"salvaged,omitempty"`
	// Stores are the providers that its snapshots are written to, when they are not all of the policy's (InstanceRecord.Stores).
	Stores []string `json:"stores,omitempty"`
	// Placed are the placements that were recorded and not yet released: which nodes hold something of it.
	Placed []Placed `json:"placed,omitempty"`
	// Incomplete is true while the first content has not been put in place: there is nothing to lose yet.
	Incomplete bool `json:"incomplete,omitempty"`

	Operation *Operation  `json:"operation,omitempty"` // the one under way
	Waiting   []Operation `json:"waiting,omitempty"`   // accepted, not begun
	Recent    []Operation `json:"recent,omitempty"`    // ended, newest last, at most MaxRecent
	Block     *Block      `json:"block,omitempty"`     // why a person is waited for

	// Loss is set while the node that has the newest content is lost.
	Loss *Loss `json:"loss,omitempty"`
	// Look is set while it is not known whether the instance still runs.
	Look *Look `json:"look,omitempty"`
	// Watch is what is known of how it is used, while its StopPolicy may stop it.
	Watch *Watch `json:"watch,omitempty"`
	// Recovery is what the last loss of a node cost, until the workspace is stopped or started again.
	Recovery *Recovery `json:"recovery,omitempty"`
}

// MaxRecent bounds State.Recent, and MaxSalvaged State.Salvaged.
const (
	MaxRecent   = 10
	MaxSalvaged = 10
)

// Instance is one run of a workspace, from start to stop.
type Instance struct {
	Token uint64 `json:"token"`
	Node  string `json:"node"`
	// Base is the snapshot that its content began with; empty for a first instance.
	Base    string `json:"base,omitempty"`
	Adopted uint64 `json:"adopted,omitempty"` // the token whose content on the node it went on with
	// Volume is the id of the shared volume that its content is on; empty: the node's own disk.
	Volume string `json:"volume,omitempty"`
	// Key is the node's public key, on a shared volume: another machine can come to have its name.
	Key string `json:"key,omitempty"`
	// Quiet is set once nothing of it runs any more and it is to be backed up.
	Quiet     bool      `json:"quiet,omitempty"`
	Container string    `json:"container,omitempty"`
	Image     string    `json:"image,omitempty"`
	Notes     []string  `json:"notes,omitempty"` // for example: the image was made from the machine's own programs
	Began     time.Time `json:"began"`
	Sequence  uint64    `json:"sequence"` // the last commit's sequence within this token
	// Sealed is the repository's password, sealed to the node.
	Sealed []byte `json:"sealed,omitempty"`
}

// Kept is content that stays on a node.
type Kept struct {
	Node     string `json:"node"`
	Token    uint64 `json:"token"`
	Sequence uint64 `json:"sequence,omitempty"` // the last commit's within the token
	Snapshot string `json:"snapshot,omitempty"` // the final snapshot of exactly that content, once there is one
	// StatDigest is what the content's stat records hashed to when it was snapshotted.
	StatDigest string   `json:"stat_digest,omitempty"`
	Owed       []string `json:"owed,omitempty"` // providers that do not hold the snapshot whole
	Why        string   `json:"why"`
	// Volume is the id of the shared volume that it is on: then any node that reaches that can go on with it, once it is known
	// that nothing on Node works on it any more (Quiet).
	Volume string `json:"volume,omitempty"`
	Key    string `json:"key,omitempty"` // as Instance.Key
	Quiet  bool   `json:"quiet,omitempty"`
	// Handed is set, of what was left on a node, when its content is another instance's by now, on the same shared volume: there
	// is nothing to save and nothing to remove, only its container.
	Handed bool `json:"handed,omitempty"`
	// Held is set when it is not released by itself: the next stop or start decides.
	Held bool `json:"held,omitempty"`
	// AcceptedOmissions is set when a person accepted what the snapshot does not hold.
	AcceptedOmissions bool `json:"accepted_omissions,omitempty"`
	// Replaced is set when its node was lost and another instance took its place; Back when that node has returned since,
	// so that what it has can be saved, and removed. Then Snapshot is a recovered one.
	Replaced bool `json:"replaced,omitempty"`
	// Chosen says that a person, or their command, went on without it, and how; empty for what a lost node had.
	Chosen string `json:"chosen,omitempty"`
	Back   bool   `json:"back,omitempty"`
	Sealed []byte `json:"sealed,omitempty"` // the repository's password, sealed to the node
	// Saved is when the stores were seen to hold Snapshot, of Files and Bytes; Omitted is how many things it does not hold as
	// they were, which keep the content.
	Saved   time.Time `json:"saved,omitzero"`
	Files   int64     `json:"files,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
	Omitted int64     `json:"omitted,omitempty"`
	// Again is set when it is to be saved again, because it may not be what is in Snapshot.
	Again bool `json:"again,omitempty"`
	// Removing is set once its removal was asked for, and Removed when the content is gone, and only the placement is still to be
	// released.
	Removing bool `json:"removing,omitempty"`
	Removed  bool `json:"removed,omitempty"`
	// Next is when it is gone on with, after Attempts that did not end it.
	Next     time.Time `json:"next,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
}

// Unsaved says whether what was left of a replaced instance is still to be saved.
func (k *Kept) Unsaved() bool {
	return k.Replaced && !k.Handed && !k.Removed && (k.Snapshot == "" || k.Again)
}

// Salvaged is a recovered snapshot: what an instance that was replaced, or gone on without, still had. It stays in the stores
// until a person removes it, and is never the newest version.
type Salvaged struct {
	Node     string    `json:"node"`
	Token    uint64    `json:"token"`
	Snapshot string    `json:"snapshot"`
	Saved    time.Time `json:"saved"`
	Removed  time.Time `json:"removed"` // when the node had nothing of it any more
	Files    int64     `json:"files"`
	Bytes    int64     `json:"bytes"`
	Chosen   string    `json:"chosen,omitempty"` // as Kept.Chosen
}

// Placed is one placement: a node, and the token of the instance that was placed there.
type Placed struct {
	Node  string `json:"node"`
	Token uint64 `json:"token"`
}

// Omission is one thing that a snapshot does not hold as it was. The full list is in the snapshot; messages carry at
// most MaxOmissions.
type Omission struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
}

// MaxOmissions bounds how many omissions a message carries.
const MaxOmissions = 20

// Excluded is what a snapshot does not hold because rules in the content (.holdfastignore) say so. Unlike omissions it
// keeps nothing from being removed: it is what the person wanted, and is told.
type Excluded struct {
	Count int64 `json:"count"` // paths; a directory is one, whatever is below it
	// Paths are the first MaxExclusions; the snapshot has more of them.
	Paths []Exclusion `json:"paths,omitempty"`
	// Problems are ignore files that left nothing out because they could not be read or are not valid.
	Problems []string `json:"problems,omitempty"`
}

// Exclusion is one path that was left out: a directory's ends with a slash.
type Exclusion struct {
	Path    string `json:"path"`
	Pattern string `json:"pattern"`
	File    string `json:"file,omitempty"` // the ignore file with the pattern
}

// MaxExclusions bounds how many exclusions, and problems with rules, a message carries.
const MaxExclusions = 10

// Commit is one entry of a workspace's history of snapshots: a create-only object of the catalog (invariant 3).
type Commit struct {
	WorkspaceID string `json:"workspace_id"`
	Token       uint64 `json:"token"`
	Sequence    uint64 `json:"sequence"` // 1, 2, 3 … within the token
	Snapshot    string `json:"snapshot"`
	Kind        string `json:"kind"` // live, final
	// Timed is set for a live one that a timer made: the only ones that a Retention forgets.
	Timed bool      `json:"timed,omitempty"`
	Time  time.Time `json:"time"` // when the content was read; for people, never for order
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
	// Omitted is how many things the snapshot does not hold as they were; Omissions names the first of them.
	Omitted   int64      `json:"omitted,omitempty"`
	Omissions []Omission `json:"omissions,omitempty"`
	Excluded  *Excluded  `json:"excluded,omitempty"`
	// StatDigest ties a final snapshot to the content it was made of (invariant 1).
	StatDigest string `json:"stat_digest,omitempty"`
	Node       string `json:"node,omitempty"`
}

// Newer reports whether c comes after other: by token, then by sequence, never by time (invariant 3).
func (c *Commit) Newer(other *Commit) bool {
	switch {
	case c == nil:
		return false
	case other == nil:
		return true
	case c.Token != other.Token:
		return c.Token > other.Token
	default:
		return c.Sequence > other.Sequence
	}
}

// OperationKind is what an operation does.
type OperationKind string

// The operations.
const (
	OperationStart   OperationKind = "start"
	OperationStop    OperationKind = "stop"
	OperationBackup  OperationKind = "backup"
	OperationRestore OperationKind = "restore"
	OperationDelete  OperationKind = "delete"
	OperationUnstick OperationKind = "unstick"
	OperationMove    OperationKind = "move"
	// OperationKeep puts a stop by itself off. It is done when it is accepted.
	OperationKeep OperationKind = "keep"
	// OperationRecover goes on elsewhere from the newest verified snapshot, after its node was lost.
	OperationRecover OperationKind = "recover"
	// OperationSalvage saves what an instance that was replaced still had.
	OperationSalvage OperationKind = "salvage"
	// OperationAdopt finds the instance again on a node that has returned, or starts it there again.
	OperationAdopt OperationKind = "adopt"
	// OperationFind looks whether the instance still runs after another start of its node's agent, and starts it again
	// there when it does not. One that found it running is not among the recent ones.
	OperationFind OperationKind = "find"
	// OperationRelease brings late providers up to date and then removes content that stayed on a node.
	OperationRelease OperationKind = "release"
	// OperationSnapshot is the snapshot that a timer makes while the workspace runs. It is not among the recent ones: what
	// came of it is in Protection.
	OperationSnapshot OperationKind = "snapshot"
	// OperationRetain forgets timed snapshots that the retention does not keep. It is not among the recent ones: what came of
	// it is in Retaining.
	OperationRetain OperationKind = "retain"
)

// Operation is one command on its way.
type Operation struct {
	ID     string        `json:"id"`
	Kind   OperationKind `json:"kind"`
	Began  time.Time     `json:"began"`
	Ended  time.Time     `json:"ended,omitzero"`
	Step   Step          `json:"step,omitempty"`
	Detail string        `json:"detail,omitempty"` // what the step does, in words
	// Cause is set when no person asked for it: why it was begun, in words.
	Cause string `json:"cause,omitempty"`
	// Halted is when a move began to stop the instance: until Ended nobody could work in it.
	Halted time.Time `json:"halted,omitzero"`
	// Failed, ErrorType and Error are set when it ended without doing what was asked. What stays true is in Reason.
	Failed    bool      `json:"failed,omitempty"`
	ErrorType ErrorType `json:"error_type,omitempty"`
	Error     string    `json:"error,omitempty"`
	// Refused means that nothing was changed and that the person can ask again with what Error names.
	Refused bool `json:"refused,omitempty"`
	// Owed is set when it was done but something is still owed (a provider that is behind, an omission).
	Owed     []string `json:"owed,omitempty"`
	Snapshot string   `json:"snapshot,omitempty"`
	Backup   *Backup  `json:"backup,omitempty"`
	Restored *Restore `json:"restored,omitempty"`
}

// Backup is what a backup did, in numbers.
type Backup struct {
	Snapshot      string `json:"snapshot"`
	Files         int64  `json:"files"`
	Dirs          int64  `json:"dirs"`
	Bytes         int64  `json:"bytes"`
	BytesUploaded int64  `json:"bytes_uploaded"` // in the attempt that ended well
	PacksUploaded int64  `json:"packs_uploaded"`
	Attempts      int32  `json:"attempts"`
	Omitted       int64  `json:"omitted"`
	Excluded      int64  `json:"excluded,omitempty"` // paths that rules in the content left out
}

// Restore is what a restore did, in numbers.
type Restore struct {
	Snapshot  string           `json:"snapshot"`
	Files     int64            `json:"files"`
	Bytes     int64            `json:"bytes"`
	Fallbacks map[string]int64 `json:"fallbacks,omitempty"` // objects that a provider lacked or had damaged
	Warnings  []string         `json:"warnings,omitempty"`
	// Excluded is how many paths rules had left out when the snapshot was made.
	Excluded int64 `json:"excluded,omitempty"`
}

// Step is where an operation is. It decides what may interrupt it.
type Step string

// The steps.
const (
	StepReadHead Step = "reading the catalog"
	StepPlace    Step = "choosing a node"
	StepRecord   Step = "recording the instance"
	StepImage    Step = "preparing the image"
	StepContent  Step = "preparing the content"
	StepUpload   Step = "waiting for the upload"
	StepRun      Step = "starting the instance"
	StepHalt     Step = "stopping the instance"
	StepBackup   Step = "backing up"
	StepVerify   Step = "verifying the backup"
	StepCommit   Step = "committing the snapshot"
	StepRepair   Step = "bringing late stores up to date"
	StepRemove   Step = "removing the instance from its node"
	StepDelete   Step = "deleting"
	StepLook     Step = "asking about its node"
	StepFind     Step = "looking whether the instance runs"
	StepPrune    Step = "removing what no snapshot needs"
	StepForget   Step = "forgetting old snapshots"
)

// Block is why a workspace waits for a person.
type Block struct {
	Type      ErrorType  `json:"type"`
	Message   string     `json:"message"`
	Omitted   int64      `json:"omitted,omitempty"`
	Omissions []Omission `json:"omissions,omitempty"`
	Mend      string     `json:"mend"` // what the person can do
}
