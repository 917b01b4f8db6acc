package workspace

import "time"

// Input starts a workspace's workflow: a new one (Name and Owner), or one that continues as new (State, Commands).
type Input struct {
	Name     string    `json:"name"`
	Owner    string    `json:"owner,omitempty"`
	State    *State    `json:"state,omitempty"`
	Commands []Command `json:"commands,omitempty"` // accepted, not begun
}

// Command is an accepted request.
type Command struct {
	Operation Operation       `json:"operation"`
	Start     *StartRequest   `json:"start,omitempty"`
	Stop      *StopRequest    `json:"stop,omitempty"`
	Restore   *RestoreRequest `json:"restore,omitempty"`
	Delete    *DeleteRequest  `json:"delete,omitempty"`
	Unstick   *UnstickRequest `json:"unstick,omitempty"`
	Move      *MoveRequest    `json:"move,omitempty"`
}

// Accepted is the answer to every update: the operation to follow by query.
type Accepted struct {
	OperationID string `json:"operation_id"`
}

// StartRequest starts a workspace, a new one or one that is stopped.
type StartRequest struct {
	Subject string `json:"subject"` // who asks, for the record
	// Spec, Source and Secrets are for a new workspace; a nil Spec keeps the one there is. Secrets are sealed to the
	// control side's public key.
	Spec    *Spec  `json:"spec,omitempty"`
	Source  Source `json:"source"`
	Secrets []byte `json:"secrets,omitempty"`
	Node    string `json:"node,omitempty"` // only this node; empty: any
	// NotNode is a node to avoid, for moving a workspace by stop and start.
	NotNode string `json:"not_node,omitempty"`
	// AcceptVersion allows going back in time (invariant 4): the snapshot id that the refusal named.
	AcceptVersion string `json:"accept_version,omitempty"`
}

// StopRequest stops a workspace through a backup.
type StopRequest struct {
	Subject string `json:"subject"`
	// AcceptOmissions names the snapshot whose list of omissions the person has read and accepts; without it a
	// snapshot with omissions keeps the content (invariant 1).
	AcceptOmissions string `json:"accept_omissions,omitempty"`
	// SkipHooks stops it without its pre-stop hook.
	SkipHooks bool `json:"skip_hooks,omitempty"`
	// From, when set, is for a stop that nobody waits for: only what runs on this node, and only while nothing else was
	// asked of it.
	From string `json:"from,omitempty"`
}

// BackupRequest snapshots a running workspace.
type BackupRequest struct {
	Subject string `json:"subject"`
}

// RestoreRequest makes a new instance whose base is an older snapshot (invariant 3).
type RestoreRequest struct {
	Subject  string `json:"subject"`
	Snapshot string `json:"snapshot"`
	Node     string `json:"node,omitempty"`
}

// DeleteRequest deletes a workspace. Its backups stay in the stores unless DiscardData holds the workspace's name;
// content that is not backed up is then dropped too.
type DeleteRequest struct {
	Subject     string `json:"subject"`
	DiscardData string `json:"discard_data,omitempty"`
}

// UnstickRequest seals the attempt that is stuck with a new token, keeps what is there, and allows a start.
type UnstickRequest struct {
	Subject string `json:"subject"`
}

// MoveRequest takes a running workspace to another node.
type MoveRequest struct {
	Subject string `json:"subject"`
	Node    string `json:"node,omitempty"` // only to this node; empty: to any other
	// From is as in StopRequest: what a person has moved meanwhile is not moved again.
	From string `json:"from,omitempty"`
}

// KeepRequest puts off that a running workspace is stopped by itself.
type KeepRequest struct {
	Subject string `json:"subject"`
	// Seconds is for how long from now: MinKeep to MaxKeep; 0 takes an earlier one back.
	Seconds int64 `json:"seconds"`
}

// Validate names what is wrong with the request.
func (r KeepRequest) Validate() error {
	if r.Seconds != 0 && (r.Seconds < int64(MinKeep/time.Second) || r.Seconds > int64(MaxKeep/time.Second)) {
		return invalid("keep", "%s: want 1m to 720h (30 days), or off", time.Duration(r.Seconds)*time.Second)
	}
	return nil
}

// Target says which workspace and instance a message to an activity is for.
type Target struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Token       uint64 `json:"token"`
	Node        string `json:"node"`
	// Volume is the id of the shared volume that the content is on; empty: the node's own disk.
	Volume string `json:"volume,omitempty"`
	// Sealed is the repository's password, sealed to the node; empty where no repository is touched.
	Sealed []byte `json:"sealed,omitempty"`
}

// ReadHeadInput asks the catalog on every provider for a workspace's head.
type ReadHeadInput struct {
	WorkspaceID string `json:"workspace_id"`
}

// ProviderHead is one provider's answer.
type ProviderHead struct {
	Provider string  `json:"provider"`
	Error    string  `json:"error,omitempty"` // it could not be listed
	Token    uint64  `json:"token"`           // highest recorded
	Head     *Commit `json:"head,omitempty"`
	// Base is the head by invariant 3 when the highest token has no commit: that record's base.
	Base string `json:"base,omitempty"`
}

// ReadHeadResult is every provider's answer, in the policy's order.
type ReadHeadResult struct {
	Providers []ProviderHead `json:"providers"`
	Policy    string         `json:"policy"`
}

// PlaceInput asks for a node.
type PlaceInput struct {
	Name      string   `json:"name"`
	Only      string   `json:"only,omitempty"`
	Exclude   []string `json:"exclude,omitempty"`
	SizeBytes int64    `json:"size_bytes,omitempty"`
	// Shared wants a node with a guard process and with a shared volume: that one, when Volume names it. Prefer is taken when it
	// can be.
	Shared bool   `json:"shared,omitempty"`
	Volume string `json:"volume,omitempty"`
	Prefer string `json:"prefer,omitempty"`
}

// PlaceResult is the chosen node.
type PlaceResult struct {
	Node      string `json:"node"`
	Recipient string `json:"recipient"`        // its age public key
	Volume    string `json:"volume,omitempty"` // of PlaceInput.Shared: the id of its shared volume
}

// SealInput asks for the repository's password and the person's secrets, sealed to a node. A repository that has no
// password yet gets one (create-only).
type SealInput struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Owner       string `json:"owner"`
	Node        string `json:"node"`
	Recipient   string `json:"recipient"`
	Secrets     []byte `json:"secrets,omitempty"` // sealed to control
	// Origin is the workspace whose snapshot is the source: its password is sealed too.
	OriginName     string `json:"origin_name,omitempty"`
	OriginSnapshot string `json:"origin_snapshot,omitempty"`
}

// SealResult is what only the node can open.
type SealResult struct {
	Password       []byte `json:"password"`
	Secrets        []byte `json:"secrets,omitempty"`
	OriginID       string `json:"origin_id,omitempty"`
	OriginSnapshot string `json:"origin_snapshot,omitempty"`
	OriginPassword []byte `json:"origin_password,omitempty"`
}

// InstanceRecord is the create-only object that says who may write a workspace (invariant 3).
type InstanceRecord struct {
	WorkspaceID string    `json:"workspace_id"`
	Name        string    `json:"name"`
	Owner       string    `json:"owner"`
	Token       uint64    `json:"token"`
	Node        string    `json:"node"` // empty for a token that only seals the ones before it (unstick)
	Base        string    `json:"base,omitempty"`
	Adopted     uint64    `json:"adopted,omitempty"`
	Volume      string    `json:"volume,omitempty"` // the id of the shared volume with its content; empty: the node's own disk
	Time        time.Time `json:"time"`
	Spec        Spec      `json:"spec"`
	Secrets     []byte    `json:"secrets,omitempty"` // sealed to control
	// Stores are the providers of the policy, by URL, that the workspace's snapshots are written to and read from, when
	// they are not all. RecordInstance decides it (DoubleWritten) and ignores what it is given.
	Stores []string `json:"stores,omitempty"`
}

// RecordInstanceResult says what was recorded.
type RecordInstanceResult struct {
	Stores []string `json:"stores,omitempty"` // InstanceRecord.Stores
}

// PrepareImageInput asks a node for an image.
type PrepareImageInput struct {
	Target Target `json:"target"`
	Image  string `json:"image"`
}

// PrepareImageResult is the image to create from.
type PrepareImageResult struct {
	Reference string   `json:"reference"`
	Notes     []string `json:"notes,omitempty"`
}

// PrepareContentInput asks a node to have the instance's content in place.
type PrepareContentInput struct {
	Target Target `json:"target"`
	// Adopt is the older token whose content on this node is gone on with; 0 means none.
	Adopt uint64 `json:"adopt,omitempty"`
	// Snapshot is restored when nothing is adopted; empty together with an empty Source is an empty workspace, which
	// is allowed only when nothing is expected (A10).
	Snapshot string `json:"snapshot,omitempty"`
	Source   Source `json:"source"`
	// OriginID and OriginPassword are for SourceSnapshot; Snapshot is then the origin's.
	OriginID       string `json:"origin_id,omitempty"`
	OriginPassword []byte `json:"origin_password,omitempty"`
	Secrets        []byte `json:"secrets,omitempty"` // sealed to the node; holds a git URL
	SizeBytes      int64  `json:"size_bytes,omitempty"`
}

// PrepareContentResult says what is in place.
type PrepareContentResult struct {
	Restored *Restore `json:"restored,omitempty"`
}

// StartInstanceInput asks a node to create and start an instance and to wait until it is ready.
type StartInstanceInput struct {
	Target           Target `json:"target"`
	Image            string `json:"image"`
	Spec             Spec   `json:"spec"`
	Secrets          []byte `json:"secrets,omitempty"` // sealed to the node
	StopGraceSeconds int    `json:"stop_grace_seconds,omitempty"`
	// Exclusive: nothing of the instance may run once another may have its content, whatever becomes of the node and its agent.
	// It runs only where a guard process holds it (ErrorNodeUnguarded). An agent that knows no such process does not know
	// this field either: only nodes that say NodeInfo.Guarded are asked.
	Exclusive bool `json:"exclusive,omitempty"`
}

// StartInstanceResult names the container.
type StartInstanceResult struct {
	Container string `json:"container"`
}

// FindInstanceInput asks a node whether an instance that ran there still does.
type FindInstanceInput struct {
	Target Target `json:"target"`
}

// FindInstanceResult says what the node found beside the instance's content, which it has: that it lacks it is an error.
type FindInstanceResult struct {
	Runs   bool   `json:"runs"`             // one that its node has paused is an error
	Status string `json:"status,omitempty"` // of its container; empty when there is none
}

// LookAtUseInput asks a node when an instance that runs there was last used.
type LookAtUseInput struct {
	Target Target `json:"target"`
}

// LookAtUseResult says it as a length of time: the clocks of nodes differ.
type LookAtUseResult struct {
	QuietMillis int64  `json:"quiet_millis"` // since it was last used; 0 is now
	Use         string `json:"use"`          // what that was, in words
}

// StopInstanceInput asks a node to stop an instance: nothing of it runs afterwards.
type StopInstanceInput struct {
	Target       Target `json:"target"`
	GraceSeconds int    `json:"grace_seconds"`
	// PreStop runs before that, while the instance runs.
	PreStop *Hook `json:"pre_stop,omitempty"`
	// Dismiss ends it where it stands, without a signal that it could hear, and removes the container too, and only that: the
	// content, which is on a shared volume, is another instance's by now.
	Dismiss bool `json:"dismiss,omitempty"`
}

// StopInstanceResult says how the hook ended.
type StopInstanceResult struct {
	Hooks []HookResult `json:"hooks,omitempty"`
}

// BackupInput asks a node to snapshot an instance's content.
type BackupInput struct {
	Target Target `json:"target"`
	Kind   string `json:"kind"` // live, final, recovered
	// UnlessStatDigest is that of content which is stored already: while a live one still has it, nothing is stored.
	UnlessStatDigest string `json:"unless_stat_digest,omitempty"`
	// Sequence is that of the commit which is to name the snapshot, 0 for one that none will, and Timed is set when a timer
	// makes it: by them the snapshot itself tells where to look for its commit when older ones are to be forgotten.
	Sequence uint64 `json:"sequence,omitempty"`
	Timed    bool   `json:"timed,omitempty"`
	// PreSnapshot and PostSnapshot run around a live one, in every attempt.
	PreSnapshot  *Hook `json:"pre_snapshot,omitempty"`
	PostSnapshot *Hook `json:"post_snapshot,omitempty"`
}

// BackupResult is a snapshot that is written, not yet verified or committed.
type BackupResult struct {
	Backup     Backup     `json:"backup"`
	Time       time.Time  `json:"time"`
	StatDigest string     `json:"stat_digest"`
	Omissions  []Omission `json:"omissions,omitempty"` // the first MaxOmissions that matter for removal
	Excluded   *Excluded  `json:"excluded,omitempty"`
	Owed       []string   `json:"owed,omitempty"`
	// Unchanged: the content has the stat digest that the request named, so that nothing was stored. Of what was
	// stored nothing is set then.
	Unchanged bool `json:"unchanged,omitempty"`
	// Unsettled: something changed each time that it was read, so that an equal stat digest later does not mean that it is
	// in this snapshot as it is.
	Unsettled bool `json:"unsettled,omitempty"`
	// Hooks are how the hooks of the attempt ended.
	Hooks []HookResult `json:"hooks,omitempty"`
}

// BackupCheckpoint travels in the heartbeats of a backup: a hint (invariant 9), shown to people.
type BackupCheckpoint struct {
	Files         int64     `json:"files"`
	Bytes         int64     `json:"bytes"`
	BytesUploaded int64     `json:"bytes_uploaded"`
	PacksUploaded int64     `json:"packs_uploaded"`
	TotalFiles    int64     `json:"total_files,omitempty"`
	TotalBytes    int64     `json:"total_bytes,omitempty"`
	At            time.Time `json:"at"`
	Note          string    `json:"note,omitempty"` // for example: names are resolved from the last good answers
}

// VerifyInput asks for a look at every object a snapshot references (invariant 1).
type VerifyInput struct {
	Target   Target `json:"target"`
	Snapshot string `json:"snapshot"`
}

// VerifyResult names the providers that hold the snapshot whole and those that do not yet.
type VerifyResult struct {
	Whole []string          `json:"whole"`
	Owed  []string          `json:"owed,omitempty"`
	Why   map[string]string `json:"why,omitempty"` // by provider that is owed
}

// CommitInput asks for a commit.
type CommitInput struct {
	Target Target `json:"target"`
	Commit Commit `json:"commit"`
}

// RepairInput asks a node to bring late providers up to date with a workspace's repository and catalog objects.
type RepairInput struct {
	Target Target `json:"target"`
}

// RepairResult says what was copied.
type RepairResult struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// ForgetInput asks a node to forget those of a workspace's timed snapshots that the retention does not keep.
type ForgetInput struct {
	Target    Target    `json:"target"`
	Retention Retention `json:"retention"`
	// Head is the newest version that the workflow knows: while the stores know another, nothing is forgotten.
	Head string `json:"head"`
	// Protect are snapshots that stay whatever the retention says.
	Protect []string `json:"protect,omitempty"`
}

// ForgetResult says how many were forgotten, and how many timed ones are left.
type ForgetResult struct {
	Forgotten int `json:"forgotten"`
	Kept      int `json:"kept"`
}

// PruneInput asks a node to remove from a workspace's repository what no snapshot needs.
type PruneInput struct {
	Target Target `json:"target"`
	Head   string `json:"head"` // as in ForgetInput
}

// PruneResult says how much was removed, net of what had to be written anew for it.
type PruneResult struct {
	Bytes int64 `json:"bytes"`
}

// RemoveInstanceInput asks a node to remove an instance and its content. The node refuses unless invariant 1 holds at
// that moment, by its own look.
type RemoveInstanceInput struct {
	Target     Target `json:"target"`
	Snapshot   string `json:"snapshot"`
	StatDigest string `json:"stat_digest"`
	// AcceptedOmissions is set when a person accepted the snapshot's list of omissions.
	AcceptedOmissions bool `json:"accepted_omissions,omitempty"`
	// Recovered is set for an instance that was replaced, and whose snapshot no commit names: it is of the kind recovered.
	Recovered bool `json:"recovered,omitempty"`
}

// DiscardInstanceInput removes an instance that never ran, or, when DiscardData holds the workspace's name, one whose
// content a person does not want.
type DiscardInstanceInput struct {
	Target      Target `json:"target"`
	DiscardData string `json:"discard_data,omitempty"`
}

// ReleasePlacementInput says that a node no longer holds an instance.
type ReleasePlacementInput struct {
	WorkspaceID string `json:"workspace_id"`
	Token       uint64 `json:"token"`
	Node        string `json:"node"`
}

// RecordDeletedInput records that a workspace was deleted; DiscardData removes its repository too.
type RecordDeletedInput struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Token       uint64 `json:"token"`
	Subject     string `json:"subject"`
	DiscardData string `json:"discard_data,omitempty"`
}

// Verb is what an access token allows.
type Verb string

// The verbs.
const (
	VerbExec     Verb = "exec"
	VerbShell    Verb = "shell"
	VerbLogs     Verb = "logs"
	VerbDownload Verb = "download"
	VerbUpload   Verb = "upload"
)

// AccessInput asks for a short-lived token for a node's data port. The history of these workflows is the record of
// who looked at what.
type AccessInput struct {
	Name     string `json:"name"`
	Verb     Verb   `json:"verb"`
	Snapshot string `json:"snapshot,omitempty"` // download: this one instead of the newest content
	Path     string `json:"path,omitempty"`
	Subject  string `json:"subject"`
}

// Grant is a way to reach content or an instance.
type Grant struct {
	Node        string `json:"node"`
	Address     string `json:"address"`     // host:port of the data port
	Fingerprint string `json:"fingerprint"` // of its certificate
	Token       string `json:"token"`
	// Source and Time say what a download will give: "live" and "node" are the node's own content, "snapshot" one from
	// the stores, read at Time.
	Source   string    `json:"source,omitempty"`
	Snapshot string    `json:"snapshot,omitempty"`
	Time     time.Time `json:"time,omitzero"`
}

// AccessResult lists the ways, best first. The command tries them in order.
type AccessResult struct {
	Grants []Grant  `json:"grants"`
	Notes  []string `json:"notes,omitempty"` // for example: newer content is on a node that does not answer
}

// SnapshotsInput asks for a workspace's snapshots.
type SnapshotsInput struct {
	Name string `json:"name"`
}

// SnapshotLine is one snapshot of a workspace.
type SnapshotLine struct {
	Snapshot string    `json:"snapshot"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"` // live, final, recovered, foreign
	Token    uint64    `json:"token,omitempty"`
	Sequence uint64    `json:"sequence,omitempty"`
	Files    int64     `json:"files"`
	Bytes    int64     `json:"bytes"`
	Omitted  int64     `json:"omitted,omitempty"`
	Excluded int64     `json:"excluded,omitempty"` // paths that rules left out
	Head     bool      `json:"head,omitempty"`
	// Providers that have it listed.
	Providers []string `json:"providers,omitempty"`
}

// SnapshotsResult lists snapshots, newest last.
type SnapshotsResult struct {
	WorkspaceID string         `json:"workspace_id"`
	Snapshots   []SnapshotLine `json:"snapshots"`
	Notes       []string       `json:"notes,omitempty"` // providers that could not be asked
}
