package activities

import (
	"context"
	"errors"
	"syscall"

	"go.temporal.io/sdk/temporal"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// permanent gives an error its type from the closed list (invariant 10) and keeps it from being retried.
func permanent(kind workspace.ErrorType, err error) error {
	return temporal.NewApplicationErrorWithOptions(err.Error(), string(kind), temporal.ApplicationErrorOptions{NonRetryable: true, Cause: err})
}

// kinds maps what the packages below say to the closed list, the more particular first. What is not here is transient.
var kinds = []struct {
	is   error
	kind workspace.ErrorType
}{
	{errForeign, workspace.ErrorContentForeign},
	{errNoContent, workspace.ErrorContentMissing},
	{catalog.ErrStale, workspace.ErrorStaleToken},
	{catalog.ErrConflict, workspace.ErrorConflict},
	{catalog.ErrDamaged, workspace.ErrorDamaged},
	{keys.ErrWrongKey, workspace.ErrorWrongKey},
	{keys.ErrNotForThisNode, workspace.ErrorNodeReplaced},
	{keys.ErrWrongPurpose, workspace.ErrorWrongKey},
	{keys.ErrDamaged, workspace.ErrorDamaged},
	{snapshot.ErrWrongPassword, workspace.ErrorWrongKey},
	{snapshot.ErrLittleMemory, workspace.ErrorNodeFull}, // another node may have more
	{errUnguarded, workspace.ErrorNodeUnguarded},
	{snapshot.ErrDamaged, workspace.ErrorDamaged},
	{snapshot.ErrLimitExceeded, workspace.ErrorDamaged},
	{snapshot.ErrUnsafePath, workspace.ErrorDamaged},
	{snapshot.ErrUnsupportedVersion, workspace.ErrorDamaged}, // nothing here can read it, however often it is tried
	{snapshot.ErrTargetExists, workspace.ErrorConflict},
	{snapshot.ErrNoSnapshot, workspace.ErrorSnapshotMissing},
	{snapshot.ErrNoRepository, workspace.ErrorSnapshotMissing},
	{snapshot.ErrNoPath, workspace.ErrorNotFound},
	{snapshot.ErrSourceMissing, workspace.ErrorContentMissing},
	{snapshot.ErrLocalSpace, workspace.ErrorDiskFull},
	{snapshot.ErrNotStoredWhole, workspace.ErrorNotStored},
	{catalog.ErrUnknownStore, workspace.ErrorStoreMissing},
	{storage.ErrBucketNotFound, workspace.ErrorStoreMissing},
	{storage.ErrPermission, workspace.ErrorStoreDenied},
	{storage.ErrNoSpace, workspace.ErrorStoreFull},
	{storage.ErrInvalid, workspace.ErrorInvalid},
	{engine.ErrImageNotFound, workspace.ErrorImageNotFound},
	{engine.ErrImageDenied, workspace.ErrorImageDenied},
	{engine.ErrInvalid, workspace.ErrorInvalid},
	{engine.ErrConflict, workspace.ErrorConflict},
	{engine.ErrNotRunning, workspace.ErrorStartFailed},
	{syscall.ENOSPC, workspace.ErrorDiskFull},
	{syscall.EDQUOT, workspace.ErrorDiskFull},
}

// classify is what every activity returns its error through.
func classify(err error) error {
	var typed *temporal.ApplicationError
	switch {
	case err == nil:
		return nil
	case temporal.IsCanceledError(err):
		return err
	case errors.As(err, &typed):
		if err == error(typed) {
			return err
		}
		// The SDK looks at the outermost error alone: a type that is wrapped in words would be lost on the way to the
		// workflow, and what is permanent would be tried for ever.
		return temporal.NewApplicationErrorWithOptions(err.Error(), typed.Type(), temporal.ApplicationErrorOptions{
			NonRetryable: typed.NonRetryable(), NextRetryDelay: typed.NextRetryDelay(), Category: typed.Category(), Cause: err,
		})
	}
	if waits(err) {
		return err
	}
	for _, known := range kinds {
		if errors.Is(err, known.is) {
			return permanent(known.kind, err)
		}
	}
	return err
}

// waits reports that part of the failure is one that passes: with several stores, one that has lost its bucket does
// not make the other's outage permanent, and the operation as a whole can still succeed later.
func waits(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoLease) || errors.Is(err, ErrSuspect) ||
		errors.Is(err, engine.ErrUnavailable) || errors.Is(err, catalog.ErrTooFew)
}
