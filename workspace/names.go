// Package workspace is what every part of Holdfast agrees on about a workspace: names, specifications, states,
// messages between workflows, activities and the command, error types, and the pure decisions over them.
//
// It imports nothing of Holdfast and does no I/O, so that workflows can use it and replay tests link little.
package workspace

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	idPattern   = regexp.MustCompile(`^[a-z2-7]{26}$`)
	hexPattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ValidateName checks a workspace's or node's name: 1 to 63 characters, a to z, 0 to 9 and '-', not at the ends (a
// DNS label, so that a name can become part of a host name).
func ValidateName(field, name string) error {
	if namePattern.MatchString(name) {
		return nil
	}
	return invalid(field, "%q: want 1 to 63 characters out of a-z, 0-9 and '-', beginning and ending with a letter or digit", name)
}

// ValidateID checks a workspace's immutable id: 26 characters of lower-case base32.
func ValidateID(id string) error {
	if idPattern.MatchString(id) {
		return nil
	}
	return invalid("workspace id", "%q is not one", id)
}

// ValidateSnapshotID checks a full snapshot id: 64 hexadecimal digits.
func ValidateSnapshotID(id string) error {
	if hexPattern.MatchString(id) {
		return nil
	}
	return invalid("snapshot", "%q: want the 64 hexadecimal digits that `holdfast snapshots` shows", id)
}

// InvalidError is bad input: it names the field and says what is wanted.
type InvalidError struct{ Field, Problem string }

func (e *InvalidError) Error() string { return e.Field + " " + e.Problem }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// Workflow ids, task queues and paths are derived here and nowhere else.

// WorkflowID is the id of a workspace's workflow.
func WorkflowID(name string) string { return "workspace/" + name }

// NodeWorkflowID is the id of a node's workflow.
func NodeWorkflowID(node string) string { return "node/" + node }

// ControlQueue is the task queue of the control workers.
const ControlQueue = "control"

// NodeQueue is the task queue for a node's work.
func NodeQueue(node string) string { return "node." + node }

// SalvageQueue is the task queue for what a node saves and removes of instances that were replaced: few at a time, and never in
// the place of what the current ones need.
func SalvageQueue(node string) string { return "salvage." + node }

// LeaseQueue is the task queue for a node's lease alone, so that a busy node never misses it.
func LeaseQueue(node string) string { return "lease." + node }

// RepositoryPrefix is where a workspace's repository lies below each provider's root. It holds the immutable id, not
// the name, so that a name used again never meets the content of another (invariant 6).
func RepositoryPrefix(id string) string { return "workspaces/" + id }

// InstanceName names an instance's container and its directory on the node (invariant 6).
func InstanceName(id string, token uint64) string { return id + "." + strconv.FormatUint(token, 10) }

// ParseInstanceName is the reverse of InstanceName.
func ParseInstanceName(name string) (id string, token uint64, err error) {
	id, digits, found := strings.Cut(name, ".")
	if found {
		token, err = strconv.ParseUint(digits, 10, 64)
	}
	if !found || err != nil || token == 0 || ValidateID(id) != nil || InstanceName(id, token) != name {
		return "", 0, invalid("instance name", "%q: want <workspace id>.<token>", name)
	}
	return id, token, nil
}

// The names under which workflows, activities, updates, signals and queries are registered. Renaming a Go function
// must not break a running history, so they are spelled out.
const (
	WorkspaceWorkflow = "Workspace"
	NodeWorkflow      = "Node"
	AccessWorkflow    = "Access"
	SnapshotsWorkflow = "Snapshots"

	UpdateStart    = "start"
	UpdateStop     = "stop"
	UpdateBackup   = "backup"
	UpdateRestore  = "restore"
	UpdateDelete   = "delete"
	UpdateUnstick  = "unstick"
	UpdateMove     = "move"
	UpdateKeep     = "keep"
	UpdateRegister = "register"
	UpdateOrder    = "order"

	SignalLeaseTaken = "lease-taken"
	SignalNodeNews   = "node-news"

	QueryState = "state"

	ActivityReadHead         = "ReadHead"
	ActivityPlace            = "Place"
	ActivitySeal             = "Seal"
	ActivityRecordInstance   = "RecordInstance"
	ActivityReleasePlacement = "ReleasePlacement"
	ActivityRecordDeleted    = "RecordDeleted"
	ActivityGrantAccess      = "GrantAccess"
	ActivityListSnapshots    = "ListSnapshots"
	ActivityDescribeControl  = "DescribeControl"
	ActivityAnnounceNode     = "AnnounceNode"
	ActivityLookAtNode       = "LookAtNode"
	ActivityDrainNode        = "DrainNode"

	ActivityPrepareImage    = "PrepareImage"
	ActivityPrepareContent  = "PrepareContent"
	ActivityStartInstance   = "StartInstance"
	ActivityStopInstance    = "StopInstance"
	ActivityFindInstance    = "FindInstance"
	ActivityLookAtUse       = "LookAtUse"
	ActivityBackup          = "Backup"
	ActivityVerify          = "Verify"
	ActivityCommit          = "Commit"
	ActivityRepair          = "Repair"
	ActivityForget          = "Forget"
	ActivityPrune           = "Prune"
	ActivityRemoveInstance  = "RemoveInstance"
	ActivityDiscardInstance = "DiscardInstance"
	ActivityHoldLease       = "HoldLease"
)

// The search attributes, five at most: SQL visibility stores have few columns.
const (
	AttributeKind         = "HoldfastKind"         // Keyword: workspace, node
	AttributeState        = "HoldfastState"        // Keyword
	AttributeCluster      = "HoldfastCluster"      // Keyword
	AttributeOwner        = "HoldfastOwner"        // Keyword
	AttributeLastSnapshot = "HoldfastLastSnapshot" // Datetime
)
