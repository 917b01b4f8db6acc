package snapshot

import "time"

// CheckOptions adjust a check. Without ReadData and Subset the packs are only looked up in the listings.
type CheckOptions struct {
	// ReadData reads every pack and verifies every blob, as restic check --read-data does.
	ReadData bool
	// Subset reads some of the packs instead, as restic check --read-data-subset does. With ReadData it is
	// storage.ErrInvalid. Default: none.
	Subset   Subset
	Progress func(Progress)
}

// CheckReport is the outcome of a check. It found nothing wrong when Errors is empty, in what Read says was read. The JSON
// names are those of `holdfast snapshot check -o json`.
type CheckReport struct {
	Snapshots int64 `json:"snapshots"`
	Packs     int64 `json:"packs"`
	Blobs     int64 `json:"blobs"`
	Bytes     int64 `json:"bytes"` // stored bytes of packs read, on all stores together
	// Read is how much of the packs was read, and how much was not.
	Read CheckRead `json:"read"`
	// Stores says of each store what is wrong in it.
	Stores []StoreVerdict `json:"stores"`
	// Damage is what is damaged or missing and who needs it: first what no store has whole. At most 1,000 entries;
	// DamageMore counts the others.
	Damage     []Damage `json:"damage"`
	DamageMore int64    `json:"damage_more,omitempty"`
	// States counts the snapshots by their state, and Verdicts names them: the worst first, of equal ones the newest. At most
	// 1,000.
	States   map[State]int64 `json:"snapshot_states"`
	Verdicts []Verdict       `json:"snapshot_verdicts"`
	Errors   []string        `json:"errors"`          // everything that is wrong, one line each
	Hints    []string        `json:"hints,omitempty"` // harmless: packs that no index names, duplicate entries
}

// DataRead is how much of the packs a check was asked to read.
type DataRead string

// What a check reads of the packs.
const (
	ReadNone   DataRead = "none"
	ReadSubset DataRead = "subset"
	ReadAll    DataRead = "all"
)

// CheckRead is what a check read of the packs that the index names, and what it did not.
type CheckRead struct {
	Data   DataRead `json:"data"`
	Subset string   `json:"subset,omitempty"` // as it was asked for
	// Packs were read on every store that has them. Unread ones were not: their Bytes, of one copy each, are believed.
	Packs       int64 `json:"packs"`
	UnreadPacks int64 `json:"unread_packs"`
	UnreadBytes int64 `json:"unread_bytes"`
}

// Problem is what is wrong with one store's copy of an object.
type Problem string

// What can be wrong with a copy.
const (
	ProblemMissing    Problem = "missing"
	ProblemDamaged    Problem = "damaged"
	ProblemUnreadable Problem = "unreadable" // the store did not give it; it may be whole
)

// StoreVerdict is what a check found in one store.
type StoreVerdict struct {
	Store string `json:"store"`
	// Error is why it could not be listed: then nothing is known of it.
	Error string `json:"error,omitempty"`
	// Damaged, Missing and Unreadable count objects.
	Damaged    int64 `json:"damaged"`
	Missing    int64 `json:"missing"`
	Unreadable int64 `json:"unreadable"`
}

// DamageKind is what kind of object is damaged.
type DamageKind string

// The kinds of what can be damaged. A tree is one that lies in a whole pack and yet is no directory; a blob is content, or a
// directory, that no index names: there is no object of which anybody knew that it holds it.
const (
	DamageConfig   DamageKind = "config"
	DamageKey      DamageKind = "key"
	DamageIndex    DamageKind = "index"
	DamageSnapshot DamageKind = "snapshot"
	DamagePack     DamageKind = "pack"
	DamageTree     DamageKind = "tree"
	DamageBlob     DamageKind = "blob"
)

// Damage is something that is damaged or missing in some store or in all, and what that means.
type Damage struct {
	Kind DamageKind `json:"kind"`
	ID   string     `json:"id,omitempty"`  // 64 hexadecimal digits; empty for the config and for blobs
	Key  string     `json:"key,omitempty"` // the object in the store; empty for trees and blobs
	// Stores are those whose copy is not whole, and WholeOn those whose copy is: of a pack that some store has damaged every
	// copy was read, whatever was asked for. Of one that is only missing somewhere, what was not read is believed.
	Stores  []DamagedCopy `json:"stores,omitempty"`
	WholeOn []string      `json:"whole_on,omitempty"`
	// Lost says that no store that could be listed has it whole.
	Lost bool `json:"lost"`
	// Blobs counts the blobs that cannot be read because of it.
	Blobs int64 `json:"blobs,omitempty"`
	// Snapshots and Paths count what needs those blobs and finds them in no other pack of the same store: a path once for
	// each snapshot that it is in. NeededBy names some of them.
	Snapshots int64  `json:"snapshots"`
	Paths     int64  `json:"paths"`
	NeededBy  []Need `json:"needed_by,omitempty"`
}

// DamagedCopy is one store's copy that is not whole.
type DamagedCopy struct {
	Store   string  `json:"store"`
	Problem Problem `json:"problem"`
	Reason  string  `json:"reason"`
	// Hidden says that the listings show no difference to a copy that is whole, so that Repair finds it only with ReadData.
	Hidden bool `json:"hidden,omitempty"`
}

// Need is what one snapshot needs of something that is damaged. At most 10 snapshots are named, the newest, and 10 paths of
// each; a directory that a snapshot holds more than once is named once. Damage.Paths counts them all.
type Need struct {
	Snapshot string       `json:"snapshot"`
	Time     time.Time    `json:"time,omitzero"`
	Paths    []NeededPath `json:"paths"`
}

// NeededPath is a file or directory of a snapshot. Of a directory, what is in it is not known when it is lost.
type NeededPath struct {
	Path string `json:"path"` // from the snapshot's root ("/"), with a slash at the end for a directory
	// Lost says that no store has what it needs; it can be restored otherwise.
	Lost bool `json:"lost"`
}

// State is what a check says of a snapshot.
type State string

// The states of a snapshot, from the worst to the best.
const (
	// StateDamaged cannot be restored whole: no store that answered has all that it needs.
	StateDamaged State = "damaged"
	// StateExposed can be restored whole, but some store lacks something of it.
	StateExposed State = "exposed"
	// StateUnproven has nothing wrong in what was read, which was not everything.
	StateUnproven State = "unproven"
	// StateSound has everything that it needs on every store: all was read.
	StateSound State = "sound"
)

// Verdict is what a check says of one snapshot.
type Verdict struct {
	Snapshot string    `json:"snapshot"`
	Time     time.Time `json:"time,omitzero"`
	Hostname string    `json:"hostname,omitempty"`
	State    State     `json:"state"`
	// LostPaths can be restored from no store, ExposedPaths from some only. Where a directory is lost, it counts once.
	LostPaths    int64 `json:"lost_paths,omitempty"`
	ExposedPaths int64 `json:"exposed_paths,omitempty"`
	// Lacking are the stores from which alone it cannot be restored whole.
	Lacking []string `json:"lacking,omitempty"`
}
