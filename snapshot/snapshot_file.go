package snapshot

import (
	"fmt"
	"strings"
	"time"
)

// snapshotFile is the JSON of a file of snapshots/. Fields that stock restic does not know are in Holdfast; restic
// ignores them when it reads, and drops them when it rewrites a snapshot (`restic tag`, `restic rewrite`).
type snapshotFile struct {
	Time           time.Time        `json:"time"`
	Parent         *blobID          `json:"parent,omitempty"`
	Tree           *blobID          `json:"tree"`
	Paths          []string         `json:"paths"`
	Hostname       string           `json:"hostname,omitempty"`
	Username       string           `json:"username,omitempty"`
	UID            uint32           `json:"uid,omitempty"`
	GID            uint32           `json:"gid,omitempty"`
	Excludes       []string         `json:"excludes,omitempty"`
	Tags           []string         `json:"tags,omitempty"`
	Original       *blobID          `json:"original,omitempty"`
	ProgramVersion string           `json:"program_version,omitempty"`
	Summary        *snapshotSummary `json:"summary,omitempty"`
	Holdfast       *holdfastDetails `json:"holdfast,omitempty"`
}

// snapshotSummary has the names that restic 0.17 and later write.
type snapshotSummary struct {
	BackupStart         time.Time `json:"backup_start"`
	BackupEnd           time.Time `json:"backup_end"`
	FilesNew            uint64    `json:"files_new"`
	FilesChanged        uint64    `json:"files_changed"`
	FilesUnmodified     uint64    `json:"files_unmodified"`
	DirsNew             uint64    `json:"dirs_new"`
	DirsChanged         uint64    `json:"dirs_changed"`
	DirsUnmodified      uint64    `json:"dirs_unmodified"`
	DataBlobs           int64     `json:"data_blobs"`
	TreeBlobs           int64     `json:"tree_blobs"`
	DataAdded           uint64    `json:"data_added"`
	DataAddedPacked     uint64    `json:"data_added_packed"`
	TotalFilesProcessed uint64    `json:"total_files_processed"`
	TotalBytesProcessed uint64    `json:"total_bytes_processed"`
}

// holdfastDetails is what a snapshot of ours says besides restic's fields.
type holdfastDetails struct {
	Kind       Kind   `json:"kind,omitempty"`
	StatDigest string `json:"stat_digest,omitempty"`
	// Root is what the directory itself was (mode, owner, times, attributes): the tree holds only what is in it, as with
	// `restic backup .`. Its name is "." and it has no subtree.
	Root *node `json:"root,omitempty"`
	// Omissions are named up to maxStoredOmissions; OmissionCount counts all.
	Omissions     []Omission `json:"omissions,omitempty"`
	OmissionCount int64      `json:"omission_count,omitempty"`
	// Excluded is what rules left out, with up to maxStoredExclusions paths and problems.
	Excluded *Excluded `json:"excluded,omitempty"`
}

// maxStoredOmissions bounds the list within a snapshot file. A directory that cannot be read is one omission, however
// much is below it.
const maxStoredOmissions = 50_000

// kindTagPrefix begins the tag that says a snapshot's kind, so that `restic snapshots --tag` and `restic forget` see it.
const kindTagPrefix = "holdfast:"

func (k Kind) tag() string { return kindTagPrefix + string(k) }

func (k Kind) valid() bool { return k == Live || k == Final || k == Recovered }

// kindOf reads a snapshot's kind from its tags; empty for a foreign one.
func kindOf(tags []string) Kind {
	for _, tag := range tags {
		if text, ok := strings.CutPrefix(tag, kindTagPrefix); ok && Kind(text).valid() {
			return Kind(text)
		}
	}
	return ""
}

func decodeSnapshot(plain []byte) (snapshotFile, error) {
	var file snapshotFile
	if err := decodeJSON(plain, snapshotCost(), &file); err != nil {
		return file, err
	}
	if file.Tree == nil {
		return file, fmt.Errorf("decoding a snapshot: it has no tree: %w", ErrDamaged)
	}
	return file, nil
}

// storedSnapshot is a snapshot file with its name.
type storedSnapshot struct {
	id blobID
	snapshotFile
}

// info is what callers outside this package see of a snapshot.
func (s *storedSnapshot) info() Info {
	info := Info{
		ID: s.id.String(), Time: s.Time, Kind: kindOf(s.Tags), Tree: s.Tree.String(), Paths: s.Paths, Hostname: s.Hostname,
		Username: s.Username, Tags: s.Tags, Program: s.ProgramVersion,
	}
	if s.Parent != nil {
		info.Parent = s.Parent.String()
	}
	if s.Summary != nil {
		info.Files, info.Bytes = int64(s.Summary.TotalFilesProcessed), int64(s.Summary.TotalBytesProcessed)
	}
	if s.Holdfast != nil {
		info.Omissions = max(s.Holdfast.OmissionCount, int64(len(s.Holdfast.Omissions)))
		info.Excluded = s.Holdfast.Excluded.Total()
		info.StatDigest = s.Holdfast.StatDigest
	}
	return info
}
