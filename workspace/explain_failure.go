package workspace

import (
	"strings"
)

// FailureClass groups the last error of an attempt by whose problem it is, so that a person knows where to look.
type FailureClass string

// The classes.
const (
	FailureNames    FailureClass = "names"    // a name could not be resolved: the DNS servers do not answer
	FailureStorage  FailureClass = "storage"  // an object store
	FailureNode     FailureClass = "node"     // the node or its agent
	FailureDisk     FailureClass = "disk"     // the node's own disk
	FailureRegistry FailureClass = "registry" // the image or its registry
	FailureInstance FailureClass = "instance" // the instance itself
	FailureKeys     FailureClass = "keys"     // a password or key does not fit
	FailureContent  FailureClass = "content"  // the content on the node or in the repository
	FailureSource   FailureClass = "source"   // where the first content comes from
	FailureRequest  FailureClass = "request"  // what was asked
	FailureOther    FailureClass = "other"
)

// The kinds of failure that are no application error: the server gave up waiting for the attempt. A PendingActivity
// carries them in LastFailureType.
const (
	TimeoutHeartbeat       = "timeout heartbeat"
	TimeoutStartToClose    = "timeout start to close"
	TimeoutScheduleToStart = "timeout schedule to start"
	TimeoutScheduleToClose = "timeout schedule to close"
)

// Failure is the last error of an attempt, in words.
type Failure struct {
	Class FailureClass `json:"class"`
	Words string       `json:"words"`          // one clause for people
	Error string       `json:"error"`          // the error as it was
	Type  string       `json:"type,omitempty"` // an ErrorType, a Timeout…, or the program's own type
	Waits bool         `json:"waits"`          // it is tried again by itself
	Mend  string       `json:"mend,omitempty"` // what helps, when a person can do something
}

// typedFailures says what each permanent error means. What is not here is told apart by its message.
var typedFailures = map[ErrorType]Failure{
	ErrorInvalid:         {Class: FailureRequest, Words: "the request itself is wrong"},
	ErrorRefused:         {Class: FailureRequest, Words: "it is not possible in this state; nothing was changed"},
	ErrorNotStored:       {Class: FailureStorage, Words: "a store does not yet hold everything that the snapshot references", Mend: "it is sent again by itself; `holdfast doctor` asks each store"},
	ErrorOmissions:       {Class: FailureContent, Words: "the snapshot does not hold everything as it was, so the content is kept", Mend: "make the named files readable and stop again, or accept the list with `holdfast stop NAME --accept-omissions SNAPSHOT`"},
	ErrorHookFailed:      {Class: FailureInstance, Words: "a hook failed that was to keep it from being done then", Mend: "see `holdfast logs NAME --hooks` and mend the hook; `holdfast stop NAME --skip-hooks` stops it without"},
	ErrorInterrupted:     {Class: FailureRequest, Words: "a later command took over"},
	ErrorOlderVersion:    {Class: FailureContent, Words: "going on would, or might, go back in time", Mend: "bring the newer version's node or store back, or go back knowingly with `holdfast start NAME --accept-version SNAPSHOT`"},
	ErrorNotFound:        {Class: FailureRequest, Words: "what was named does not exist"},
	ErrorConflict:        {Class: FailureContent, Words: "the catalog already holds another entry in that place", Mend: "another writer has been there: look with `holdfast snapshots NAME`, then `holdfast unstick NAME`"},
	ErrorStaleToken:      {Class: FailureContent, Words: "a newer instance of the workspace has been recorded, so this one may no longer write"},
	ErrorNodeFull:        {Class: FailureNode, Words: "the node has no room for it", Mend: "make room on the node, or name another with --node"},
	ErrorNodeReplaced:    {Class: FailureNode, Words: "the node's disk was replaced while it was under way, and its key with it", Mend: "start it again, after `holdfast unstick NAME` when it is not stopped: it is sealed then for the key that the node has now"},
	ErrorNodeUnguarded:   {Class: FailureNode, Words: "the node has no guard process that would pause it if the node were cut off, and it must not run without", Mend: "see the log of the node's agent, or name another with --node"},
	ErrorVolumeMissing:   {Class: FailureNode, Words: "the shared volume is not mounted on the node, or another one is", Mend: "mount it there; `holdfast node show NODE` says which volume the node has"},
	ErrorNoNode:          {Class: FailureNode, Words: "there is no node left to try", Mend: "look with `holdfast node list`; start an agent with `holdfast worker --node NODE`"},
	ErrorImageNotFound:   {Class: FailureRegistry, Words: "the image does not exist", Mend: "name another with --image"},
	ErrorImageDenied:     {Class: FailureRegistry, Words: "the registry denies the image", Mend: "log in on the node, or name another with --image"},
	ErrorStartFailed:     {Class: FailureInstance, Words: "the instance ended or was not ready in time", Mend: "see `holdfast logs NAME`"},
	ErrorStoreMissing:    {Class: FailureStorage, Words: "a bucket or directory of the stores does not exist", Mend: "make it, then see `holdfast doctor`"},
	ErrorStoreDenied:     {Class: FailureStorage, Words: "an object store denies access", Mend: "mend the permissions or credentials, then see `holdfast doctor`"},
	ErrorStoreFull:       {Class: FailureStorage, Words: "an object store has no room left", Mend: "make room in the store"},
	ErrorWrongKey:        {Class: FailureKeys, Words: "the password or master key does not fit the repository", Mend: "put the right master key back; see `holdfast doctor`"},
	ErrorDamaged:         {Class: FailureContent, Words: "the repository or a catalog object is damaged on every store", Mend: "see `holdfast snapshots NAME` for an older version and `holdfast restore`"},
	ErrorSnapshotMissing: {Class: FailureContent, Words: "what the restore needs is on no store", Mend: "see `holdfast snapshots NAME` for another version"},
	ErrorContentMissing:  {Class: FailureContent, Words: "the node does not hold the content that it should", Mend: "mount the node's disk again, or go back with `holdfast start NAME --accept-version SNAPSHOT`"},
	ErrorContentForeign:  {Class: FailureContent, Words: "the content on the node belongs to another workspace or instance", Mend: "mount the right disk on the node"},
	ErrorContentChanged:  {Class: FailureContent, Words: "the content changed after it was backed up", Mend: "find what on the node still writes to it, then stop the workspace again"},
	ErrorDiskFull:        {Class: FailureDisk, Words: "the node's disk is full", Mend: "make room on the node"},
	ErrorNodeLost:        {Class: FailureNode, Words: "the node that has the workspace is lost", Mend: "see `holdfast node list`; it goes on by itself when the node returns, or elsewhere from the newest verified version"},
	ErrorNameTaken:       {Class: FailureNode, Words: "another agent has the node of that name", Mend: "give one of them another name with --node, or stop it"},
	ErrorUploadMissing:   {Class: FailureSource, Words: "the promised content was not sent", Mend: "send it again with `holdfast start NAME --from-dir DIR`"},
	ErrorSource:          {Class: FailureSource, Words: "the git repository could not be cloned", Mend: "check the address and its credentials"},
}

// nodeActivities run on a node's agent.
var nodeActivities = map[string]bool{
	ActivityPrepareImage: true, ActivityPrepareContent: true, ActivityStartInstance: true, ActivityStopInstance: true, ActivityFindInstance: true,
	ActivityLookAtUse: true,
	ActivityBackup:    true, ActivityVerify: true, ActivityCommit: true, ActivityRepair: true, ActivityForget: true, ActivityPrune: true,
	ActivityRemoveInstance: true, ActivityDiscardInstance: true,
}

// storeActivities reach the object stores.
var storeActivities = map[string]bool{
	ActivityReadHead: true, ActivitySeal: true, ActivityRecordInstance: true, ActivityReleasePlacement: true,
	ActivityRecordDeleted: true, ActivityListSnapshots: true, ActivityPlace: true, ActivityAnnounceNode: true,
	ActivityPrepareContent: true, ActivityBackup: true, ActivityVerify: true, ActivityCommit: true,
	ActivityRepair: true, ActivityForget: true, ActivityPrune: true, ActivityRemoveInstance: true,
}

// ExplainFailure says in words what an attempt's error means. The type is an ErrorType, one of the Timeout kinds, or
// anything else; the activity tells whose problem an unknown error is.
func ExplainFailure(activity, failureType, message string) Failure {
	failure := classify(activity, failureType, message)
	failure.Error, failure.Type = message, failureType
	return failure
}

func classify(activity, failureType, message string) Failure {
	if typed, known := typedFailures[ErrorType(failureType)]; known {
		return typed
	}
	switch failureType {
	case TimeoutHeartbeat, TimeoutStartToClose:
		if nodeActivities[activity] {
			return Failure{Class: FailureNode, Waits: true,
				Words: "the node's agent stopped answering in the middle of it",
				Mend:  "nothing, when the agent comes back; else look at the node"}
		}
		return Failure{Class: FailureNode, Waits: true, Words: "a control worker stopped answering in the middle of it"}
	case TimeoutScheduleToStart, TimeoutScheduleToClose:
		return Failure{Class: FailureNode, Waits: true,
			Words: "no agent took the work in time", Mend: "start the node's agent again"}
	}
	text := strings.ToLower(message)
	switch {
	case containsAny(text, "no such host", "lookup ", "resolve", "dns ", "servfail", "server misbehaving", "nameserver"):
		what := "the object store's"
		switch activity {
		case ActivityPrepareImage:
			what = "the registry's"
		case ActivityPrepareContent:
			what = "the store's or the git server's"
		}
		return Failure{Class: FailureNames, Waits: true,
			Words: what + " name cannot be resolved: the DNS servers do not answer",
			Mend:  "nothing is needed once DNS is back; `holdfast doctor` asks each server"}
	case containsAny(text, "no space left on device", "disk quota"):
		return Failure{Class: FailureDisk, Waits: true, Words: "the node's disk is full", Mend: "make room on the node"}
	case activity == ActivityPrepareContent && containsAny(text, "cloning"):
		return Failure{Class: FailureSource, Waits: true, Words: "the git repository cannot be cloned now", Mend: "check that the node reaches the git server, and the address and its credentials"}
	case activity == ActivityPrepareImage:
		return Failure{Class: FailureRegistry, Waits: true, Words: "the image could not be fetched"}
	case containsAny(text, "container", "docker", "cgroup", "engine") && nodeActivities[activity]:
		return Failure{Class: FailureInstance, Waits: true, Words: "the node's container engine failed"}
	case containsAny(text, "is locked by another program"):
		return Failure{Class: FailureOther, Waits: true, Words: "another program works on the workspace's repository"}
	case storeActivities[activity]:
		words := "an object store cannot be reached or failed"
		if containsAny(text, "connection refused", "no route", "unreachable", "i/o timeout", "connection reset", "deadline exceeded", "eof") {
			words = "an object store cannot be reached"
		}
		return Failure{Class: FailureStorage, Waits: true, Words: words,
			Mend: "nothing is needed once the store answers; `holdfast doctor` asks each store"}
	case nodeActivities[activity]:
		return Failure{Class: FailureNode, Waits: true, Words: "the node could not do it"}
	default:
		return Failure{Class: FailureOther, Waits: true, Words: "it failed"}
	}
}

// Failure says in words why the operation failed; nil when it did not, and when Error is one clause for people already or of
// a kind that has no words.
func (o Operation) Failure() *Failure {
	typed, known := typedFailures[o.ErrorType]
	if !o.Failed || !known || !strings.Contains(o.Error, ": ") {
		return nil
	}
	typed.Error, typed.Type = o.Error, string(o.ErrorType)
	return &typed
}

// OfStorage reports whether the failure means that storage cannot be reached, for whichever reason.
func (f *Failure) OfStorage() bool {
	return f != nil && (f.Class == FailureStorage || f.Class == FailureNames)
}

func containsAny(text string, parts ...string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}
