// Package snapshot backs up directories into repositories of restic's format version 2 and restores them, without
// anything of Holdfast around it: it is a library of its own.
//
//	repository, err := snapshot.OpenOrCreate(ctx, store, password, snapshot.Options{})
//	result, err := repository.Backup(ctx, "/workspace", snapshot.BackupOptions{Kind: snapshot.Final})
//	err = repository.VerifyStored(ctx, result.Snapshot)
//	report, err := repository.Restore(ctx, result.Snapshot, "/new/workspace", snapshot.RestoreOptions{})
//
// What it writes can be read, checked, restored and written on by stock restic (0.14 and later), and the other way
// round. The format is described in docs/snapshot-format.md.
package snapshot

import (
	"errors"
	"log/slog"
	"time"
)

// Kind says what moment a snapshot shows.
type Kind string

const (
	// Live is a snapshot of content that may have been changing while it was read.
	Live Kind = "live"
	// Final is a snapshot of content that nothing was writing to: the one made when a workspace stops.
	Final Kind = "final"
	// Recovered is a snapshot of content that a node still held after its instance had been replaced.
	Recovered Kind = "recovered"
)

// Options adjust how a repository is opened. The zero value is useful.
type Options struct {
	// Logger receives what an operator may want to know. Default: discarded.
	Logger *slog.Logger
	// Concurrency is the number of goroutines that read, hash and compress. Default: the number of processors.
	Concurrency int
	// PackSize is the size in bytes at which a pack is closed. Range 4 MiB to 128 MiB, default DefaultPackSize.
	PackSize int
	// IndexEvery is the number of packs after which an intermediate index is written, so that an interrupted backup
	// loses little. Default 16.
	IndexEvery int
	// KDF overrides the cost of key derivation when a repository is created; tests use a cheap one. Default: scrypt
	// with N=32768, r=8, p=5, as restic calibrates on common machines.
	KDF KDFParameters
	// IndexMemory is how many bytes of memory the index of the repository may take, at about 160 for each blob; a repository
	// with more is ErrLittleMemory. Who holds the key of a repository could otherwise make any machine run out of memory.
	// Default: a quarter of what the machine, its control groups and GOMEMLIMIT allow, and at least 64 MiB.
	IndexMemory int64
	// Metrics, when set, counts what the repository does; any number of repositories share one.
	Metrics *Metrics
}

// KDFParameters are scrypt's cost parameters. Zero values mean the default.
type KDFParameters struct{ N, R, P int }

// Progress is a running operation's state; callbacks receive copies, at most about ten a second, from one goroutine
// at a time.
type Progress struct {
	Files         int64 // finished so far
	Bytes         int64 // content bytes finished so far
	BytesUploaded int64 // stored bytes sent and acknowledged so far
	PacksUploaded int64
	TotalFiles    int64 // 0 while unknown
	TotalBytes    int64 // 0 while unknown
	Current       string
}

// BackupOptions adjust one backup.
type BackupOptions struct {
	Kind Kind // default Live
	Tags []string
	// Hostname and Paths are what the snapshot records, so that parents and restic's forget group by them. Default: this
	// host's name, and the directory's absolute path.
	Hostname string
	Paths    []string
	// Excludes are patterns as in an ignore file at the top of the directory, of what is not backed up. They weigh more
	// than the ignore files in the directory (see IgnoreFile), which always have their say.
	Excludes []string
	// StateFile is a file that remembers what the directory was, so that what did not change costs neither reading nor a
	// look at the store. It is read when it is there and is this repository's, and written after the backup; whoever loses
	// it loses time. It must not be in the directory, and its own directory must exist. Default: none.
	StateFile string
	// Time is the snapshot's time. Default: when the backup began.
	Time     time.Time
	Progress func(Progress)
}

// OmissionKind says why something is not, or not surely whole, in a snapshot.
type OmissionKind string

const (
	// OmissionUnreadable says that the file, directory or link could not be read.
	OmissionUnreadable OmissionKind = "unreadable"
	// OmissionChanged says that the file changed each time it was read; what is stored may mix two states.
	OmissionChanged OmissionKind = "changed while read"
	// OmissionUnsupported is for a kind of file that the format does not hold (a socket).
	OmissionUnsupported OmissionKind = "unsupported kind"
)

// Omission is one thing that a snapshot does not hold as it was.
type Omission struct {
	Path   string       `json:"path"` // relative to the snapshot's root; strconv-quoted when not valid UTF-8
	Kind   OmissionKind `json:"kind"`
	Reason string       `json:"reason"`
}

// BackupResult describes a finished backup. The JSON names are those of `holdfast snapshot backup -o json`.
type BackupResult struct {
	Snapshot      string     `json:"snapshot"` // 64 hexadecimal digits
	Parent        string     `json:"parent,omitempty"`
	Tree          string     `json:"tree"`
	Files         int64      `json:"files"`
	Dirs          int64      `json:"dirs"`
	Bytes         int64      `json:"bytes"`          // content bytes of all files
	BytesAdded    int64      `json:"bytes_added"`    // content bytes that were not in the repository
	BytesUploaded int64      `json:"bytes_uploaded"` // stored bytes sent in this run, for one provider
	PacksUploaded int64      `json:"packs_uploaded"`
	Omissions     []Omission `json:"omissions,omitempty"`
	Unreadable    int64      `json:"unreadable"` // number of omissions of kind unreadable
	// Excluded is what was left out because a rule says so; nil when there is nothing to tell.
	Excluded *Excluded `json:"excluded,omitempty"`
	// StatDigest is a hash over every entry's stat record (path, kind, mode, owner, size, mtime, ctime, inode) as the
	// backup saw it; StatDigest gives the same while nothing in the directory changed.
	StatDigest string  `json:"stat_digest"`
	Seconds    float64 `json:"duration_seconds"`
	// Owed names the providers (by URL) that do not hold everything that this snapshot references.
	Owed []string `json:"owed,omitempty"`
}

// Info describes a stored snapshot.
type Info struct {
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Kind     Kind      `json:"kind,omitempty"` // from its tags; empty for a foreign snapshot
	Tree     string    `json:"tree"`
	Parent   string    `json:"parent,omitempty"`
	Paths    []string  `json:"paths"`
	Hostname string    `json:"hostname"`
	Username string    `json:"username,omitempty"`
	Tags     []string  `json:"tags,omitempty"`
	Program  string    `json:"program_version,omitempty"`
	Files    int64     `json:"files,omitempty"` // from its summary, 0 when it has none
	Bytes    int64     `json:"bytes,omitempty"`
	// Omissions is the number of things that the snapshot says it does not hold; Repository.Omissions names them.
	Omissions int64 `json:"omissions,omitempty"`
	// Excluded is how many paths rules left out.
	Excluded int64 `json:"excluded,omitempty"`
	// Stores are the URLs of the providers that list it, in the mirror's order; Snapshots and SnapshotsSeen fill it in.
	Stores []string `json:"stores,omitempty"`
	// StatDigest is that of BackupResult; empty for a foreign snapshot.
	StatDigest string `json:"stat_digest,omitempty"`
}

// RestoreOptions adjust one restore.
type RestoreOptions struct {
	// Path restores only this file or directory of the snapshot ("/" or "" is all).
	Path string
	// Prepare, when set, is called with the finished and verified new directory before it is renamed into place; an
	// error makes the restore fail with nothing changed.
	Prepare func(dir string) error
	// StateFile is that of BackupOptions for the restored directory: it is written, so that the next backup reads only files
	// that were changed since, although their inodes and times are new. Default: none.
	StateFile string
	Progress  func(Progress)

	wrote func(path string) // called by tests after each write, before it is read back
}

// RestoreReport describes a finished restore.
type RestoreReport struct {
	Snapshot string `json:"snapshot"`
	Files    int64  `json:"files"` // everything but directories
	Dirs     int64  `json:"dirs"`  // without the target itself
	Bytes    int64  `json:"bytes"` // content bytes; a file with several names counts once
	// Reused are those of Bytes that an earlier attempt had left in place and that were not fetched again.
	Reused  int64   `json:"reused_bytes,omitempty"`
	Seconds float64 `json:"duration_seconds"`
	// Fallbacks counts objects that the first provider did not have or had damaged, by provider URL that failed.
	Fallbacks map[string]int64 `json:"fallbacks,omitempty"`
	// Warnings name metadata that could not be set (an owner, when not root); content is never among them.
	Warnings []string `json:"warnings,omitempty"`
	// Omissions are what the snapshot itself says it does not hold as it was, and Excluded what was left out of it by
	// rules, whatever part of it was restored.
	Omissions []Omission `json:"omissions,omitempty"`
	Excluded  *Excluded  `json:"excluded,omitempty"`
}

// Entry is one line of List: a file of a snapshot.
type Entry struct {
	Path       string    `json:"path"`
	Type       string    `json:"type"`
	Mode       uint32    `json:"mode"` // permission and set-id bits as chmod takes them
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	Size       int64     `json:"size"`
	ModTime    time.Time `json:"mtime"`
	LinkTarget string    `json:"link_target,omitempty"`
}

// The kinds of failure that callers tell apart. Errors of package storage are kept in the chain too.
var (
	ErrNoRepository   = errors.New("there is no repository here")
	ErrWrongPassword  = errors.New("wrong password: no key of the repository can be opened with it")
	ErrDamaged        = errors.New("the repository is damaged") // what was read is not what was written; permanent
	ErrNoSnapshot     = errors.New("no such snapshot")
	ErrNoPath         = errors.New("the snapshot has no such path")
	ErrSourceMissing  = errors.New("the directory to back up cannot be read")
	ErrTargetExists   = errors.New("the target already exists")
	ErrLimitExceeded  = errors.New("the repository asks for more than the limits allow") // hostile or corrupt
	ErrLittleMemory   = errors.New("this machine has too little memory for the repository")
	ErrUnsafePath     = errors.New("the snapshot holds a name that would leave the target")
	ErrLocalSpace     = errors.New("no space left on this machine's disk")
	ErrNotStoredWhole = errors.New("the provider does not hold everything that the snapshot references")
)
