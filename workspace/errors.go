package workspace

import "errors"

// ErrorType is the type of an activity's permanent failure: the closed list of invariant 10. What has no type is
// transient and is retried.
type ErrorType string

// The permanent failures. Each stays until a person (or another placement) changes something.
const (
	ErrorInvalid         ErrorType = "Invalid"         // the request itself is wrong
	ErrorRefused         ErrorType = "Refused"         // not in this state; nothing was changed
	ErrorNotFound        ErrorType = "NotFound"        // the named workspace, instance or snapshot does not exist
	ErrorConflict        ErrorType = "Conflict"        // a create-only object is there with other content
	ErrorStaleToken      ErrorType = "StaleToken"      // a newer instance has been recorded (invariant 7)
	ErrorNodeFull        ErrorType = "NodeFull"        // the node does not admit it; another may
	ErrorNodeReplaced    ErrorType = "NodeReplaced"    // the node has another key than the one that this was sealed for: its disk is new
	ErrorNodeUnguarded   ErrorType = "NodeUnguarded"   // the node has no guard process for what is exclusive; another may
	ErrorVolumeMissing   ErrorType = "VolumeMissing"   // the shared volume is not mounted on the node; another may have it
	ErrorNoNode          ErrorType = "NoNode"          // no node is left to try
	ErrorImageNotFound   ErrorType = "ImageNotFound"   //
	ErrorImageDenied     ErrorType = "ImageDenied"     //
	ErrorStartFailed     ErrorType = "StartFailed"     // the instance exited or was not ready in time
	ErrorStoreMissing    ErrorType = "StoreMissing"    // a bucket or directory of the policy does not exist
	ErrorStoreDenied     ErrorType = "StoreDenied"     //
	ErrorStoreFull       ErrorType = "StoreFull"       //
	ErrorWrongKey        ErrorType = "WrongKey"        // the password or master key does not fit
	ErrorDamaged         ErrorType = "Damaged"         // the repository or a catalog object is damaged on every provider
	ErrorSnapshotMissing ErrorType = "SnapshotMissing" // what a restore needs is on no provider
	ErrorContentMissing  ErrorType = "ContentMissing"  // the node does not hold the content that it should
	ErrorContentForeign  ErrorType = "ContentForeign"  // the identity file names another workspace or token (invariant 5)
	ErrorContentChanged  ErrorType = "ContentChanged"  // the content is no longer what was snapshotted (invariant 1)
	ErrorDiskFull        ErrorType = "DiskFull"        // the node's own disk
	ErrorUploadMissing   ErrorType = "UploadMissing"   // nobody sent the promised content
	ErrorSource          ErrorType = "Source"          // the git repository could not be cloned
	ErrorNotStored       ErrorType = "NotStored"       // a store does not hold everything that the snapshot references
	ErrorOmissions       ErrorType = "Omissions"       // the snapshot does not hold everything as it was (invariant 1)
	ErrorInterrupted     ErrorType = "Interrupted"     // a later command took over
	ErrorHookFailed      ErrorType = "HookFailed"      // a hook failed whose failure is to keep what it belongs to from being done
	ErrorOlderVersion    ErrorType = "OlderVersion"    // going on would, or might, go back in time (invariant 4)
	ErrorNodeLost        ErrorType = "NodeLost"        // its node is lost
	ErrorNameTaken       ErrorType = "NameTaken"       // another agent has the node of that name
)

// Errors that the command and its callers tell apart.
var (
	ErrNotFound = errors.New("no such workspace")
	ErrRefused  = errors.New("refused")
)
