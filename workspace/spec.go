package workspace

import (
	"path/filepath"
	"strings"
	"unicode"
)

// VolumeKind says what a workspace's content lies on.
type VolumeKind string

// The kinds of volumes.
const (
	VolumeLocal  VolumeKind = "local"  // the node's own disk: it does not survive the node
	VolumeShared VolumeKind = "shared" // a directory that several nodes mount: another node goes on with the very same files
)

// Volume is where and how large a workspace's content is.
type Volume struct {
	Kind VolumeKind `json:"kind"`
	// SizeBytes is the room that a node must have for the content when it admits the workspace; 0 means unknown.
	SizeBytes int64 `json:"size_bytes,omitempty"`
}

// Spec is what a person asks of a workspace. Environment values are secret and never part of it: they travel sealed
// (Secrets).
type Spec struct {
	Image       string   `json:"image,omitempty"` // empty: the engine's default
	Volume      Volume   `json:"volume"`
	Environment []string `json:"environment,omitempty"` // names only, for display
	// StopGraceSeconds is how long SIGTERM has before SIGKILL. Range 0 to 3600; 0 means 10.
	StopGraceSeconds int `json:"stop_grace_seconds,omitempty"`
	// Snapshots says how often it is snapshotted while it runs.
	Snapshots SnapshotPolicy `json:"snapshots,omitzero"`
	// Retention says which of those are kept.
	Retention Retention `json:"retention,omitzero"`
	// Stop says when it is stopped by itself.
	Stop StopPolicy `json:"stop,omitzero"`
	// Hooks are run inside the instance, at most one for each point.
	Hooks []Hook `json:"hooks,omitempty"`
}

// SourceKind says where the first content of a workspace comes from.
type SourceKind string

// The sources of a first content.
const (
	SourceEmpty    SourceKind = ""
	SourceUpload   SourceKind = "upload"   // the command sends a directory to the node's data port
	SourceGit      SourceKind = "git"      // the node clones; the URL is in the Secrets
	SourceSnapshot SourceKind = "snapshot" // a snapshot of another workspace
)

// Source is where the first content of a workspace comes from.
type Source struct {
	Kind SourceKind `json:"kind,omitempty"`
	// Describe is for people: the directory or the git URL without credentials.
	Describe string `json:"describe,omitempty"`
	// Workspace and Snapshot name the origin for SourceSnapshot; an empty Snapshot is that workspace's head.
	Workspace string `json:"workspace,omitempty"`
	Snapshot  string `json:"snapshot,omitempty"`
}

// Secrets is what only the node that runs the workspace may read. The command seals its JSON to the control side's
// public key; the control side seals it again to the node's.
type Secrets struct {
	Environment map[string]string `json:"environment,omitempty"`
	GitURL      string            `json:"git_url,omitempty"`
}

// maxEnvironment bounds what one workspace's environment may take: it travels in payloads, which Temporal warns about
// from 512 KiB.
const maxEnvironment = 128 << 10

// Validate checks a specification and names the first field that is wrong.
func (s Spec) Validate() error {
	if strings.ContainsFunc(s.Image, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) || len(s.Image) > 255 {
		return invalid("image", "%q: want a reference such as debian:12, without spaces, of at most 255 characters", s.Image)
	}
	if s.Volume.Kind != "" && s.Volume.Kind != VolumeLocal && s.Volume.Kind != VolumeShared {
		return invalid("volume", "%q: want local or shared", s.Volume.Kind)
	}
	if s.Volume.SizeBytes < 0 {
		return invalid("volume size", "%d: want 0 (unknown) or more bytes", s.Volume.SizeBytes)
	}
	if s.StopGraceSeconds < 0 || s.StopGraceSeconds > 3600 {
		return invalid("stop grace", "%d s: want 0 to 3600", s.StopGraceSeconds)
	}
	for _, name := range s.Environment {
		if err := ValidateVariable(name); err != nil {
			return err
		}
	}
	if err := validateHooks(s.Hooks); err != nil {
		return err
	}
	if err := s.Retention.Validate(); err != nil {
		return err
	}
	if err := s.Stop.Validate(); err != nil {
		return err
	}
	return s.Snapshots.Validate()
}

// Validate checks secrets without ever putting a value into an error.
func (s Secrets) Validate() error {
	total := 0
	for name, value := range s.Environment {
		if err := ValidateVariable(name); err != nil {
			return err
		}
		if strings.ContainsRune(value, 0) {
			return invalid("environment", "variable %s holds a NUL byte", name)
		}
		total += len(name) + len(value)
	}
	if total > maxEnvironment {
		return invalid("environment", "takes %d bytes: want at most %d; put large values into a file of the workspace", total, maxEnvironment)
	}
	return nil
}

// ValidateVariable checks an environment variable's name.
func ValidateVariable(name string) error {
	valid := name != "" && len(name) <= 255 && !(name[0] >= '0' && name[0] <= '9')
	for _, r := range name {
		valid = valid && (r == '_' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)))
	}
	if !valid {
		return invalid("environment", "name %q: want letters, digits and '_', not beginning with a digit", name)
	}
	return nil
}

// Validate checks where a first content comes from.
func (s Source) Validate() error {
	switch s.Kind {
	case SourceEmpty, SourceUpload, SourceGit:
		return nil
	case SourceSnapshot:
		if err := ValidateName("source workspace", s.Workspace); err != nil {
			return err
		}
		if s.Snapshot != "" {
			return ValidateSnapshotID(s.Snapshot)
		}
		return nil
	default:
		return invalid("source", "%q is not known", s.Kind)
	}
}

// ValidatePath checks a path inside a workspace, relative to /workspace.
func ValidatePath(path string) error {
	if path == "" || path == "/" {
		return nil
	}
	if strings.ContainsRune(path, 0) || !filepath.IsLocal(strings.TrimPrefix(path, "/")) {
		return invalid("path", "%q: want a path inside the workspace", path)
	}
	return nil
}
