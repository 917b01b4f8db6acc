package activities

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// invariant 10: what each package says, wrapped in words, has its type from the closed list or is tried again.
func TestClassification(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	for cause, kind := range map[error]workspace.ErrorType{
		errForeign:                     workspace.ErrorContentForeign,
		errNoContent:                   workspace.ErrorContentMissing,
		catalog.ErrStale:               workspace.ErrorStaleToken,
		catalog.ErrConflict:            workspace.ErrorConflict,
		catalog.ErrDamaged:             workspace.ErrorDamaged,
		catalog.ErrTooFew:              "",
		keys.ErrWrongKey:               workspace.ErrorWrongKey,
		keys.ErrNotForThisNode:         workspace.ErrorNodeReplaced,
		keys.ErrWrongPurpose:           workspace.ErrorWrongKey,
		keys.ErrDamaged:                workspace.ErrorDamaged,
		snapshot.ErrNoRepository:       workspace.ErrorSnapshotMissing,
		snapshot.ErrWrongPassword:      workspace.ErrorWrongKey,
		snapshot.ErrDamaged:            workspace.ErrorDamaged,
		snapshot.ErrNoSnapshot:         workspace.ErrorSnapshotMissing,
		snapshot.ErrNoPath:             workspace.ErrorNotFound,
		snapshot.ErrSourceMissing:      workspace.ErrorContentMissing,
		snapshot.ErrTargetExists:       workspace.ErrorConflict,
		snapshot.ErrLimitExceeded:      workspace.ErrorDamaged,
		snapshot.ErrLittleMemory:       workspace.ErrorNodeFull,
		snapshot.ErrUnsafePath:         workspace.ErrorDamaged,
		snapshot.ErrLocalSpace:         workspace.ErrorDiskFull,
		snapshot.ErrNotStoredWhole:     workspace.ErrorNotStored,
		snapshot.ErrUnsupportedVersion: workspace.ErrorDamaged,
		snapshot.ErrLocked:             "",
		storage.ErrNotFound:            "",
		storage.ErrExists:              "",
		storage.ErrBucketNotFound:      workspace.ErrorStoreMissing,
		storage.ErrPermission:          workspace.ErrorStoreDenied,
		storage.ErrNoSpace:             workspace.ErrorStoreFull,
		storage.ErrIntegrity:           "",
		storage.ErrInvalid:             workspace.ErrorInvalid,
		storage.ErrStalled:             "",
		engine.ErrNotFound:             "",
		engine.ErrConflict:             workspace.ErrorConflict,
		engine.ErrNotRunning:           workspace.ErrorStartFailed,
		engine.ErrImageNotFound:        workspace.ErrorImageNotFound,
		engine.ErrImageDenied:          workspace.ErrorImageDenied,
		engine.ErrRegistryName:         "",
		engine.ErrRegistryTimeout:      "",
		engine.ErrUnavailable:          "",
		engine.ErrInvalid:              workspace.ErrorInvalid,
		syscall.ENOSPC:                 workspace.ErrorDiskFull,
		syscall.EDQUOT:                 workspace.ErrorDiskFull,
		syscall.EIO:                    "",
		ErrNoLease:                     "",
		ErrSuspect:                     "",
		context.DeadlineExceeded:       "",
		errors.New("unheard of"):       "",
	} {
		t.Run(cause.Error(), func(t *testing.T) {
			for _, err := range []error{cause, fmt.Errorf("doing: %w", cause), fmt.Errorf("more: %w", errors.Join(cause, errors.New("beside")))} {
				// Through the SDK's own conversion, as the workflow sees it.
				got := runPlain(r, func(context.Context, string) error { return classify(err) }, "")
				if kind == "" {
					transient(t, got)
				} else {
					typed(t, got, kind)
					require.ErrorContains(t, got, cause.Error())
				}
				require.ErrorIs(t, classify(err), cause, "the cause is kept")
			}
		})
	}
	require.NoError(t, classify(nil))
}

// A type that is deep inside words, or beside another error, is what the workflow sees.
func TestTypesOutliveTheirWrapping(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	inner := permanent(workspace.ErrorNotStored, errors.New("not whole"))
	for _, err := range []error{inner, fmt.Errorf("verifying: %w", inner), errors.Join(fmt.Errorf("a: %w", inner), errors.New("b"))} {
		typed(t, runPlain(r, func(context.Context, string) error { return classify(err) }, ""), workspace.ErrorNotStored)
	}
	retryable := fmt.Errorf("later: %w", temporal.NewApplicationError("busy", "Busy"))
	transient(t, runPlain(r, func(context.Context, string) error { return classify(retryable) }, ""))
}

// Several stores: what is permanent for one of them shows only when it is for all.
func TestMixedStoresAreTriedAgain(t *testing.T) {
	mixed := func(causes ...error) error {
		all := map[string]error{}
		for i, cause := range causes {
			all[fmt.Sprint(i)] = fmt.Errorf("store: %w", cause)
		}
		return fmt.Errorf("storing: %w", &storage.MirrorError{Doing: "storing", Key: "k", Causes: all})
	}
	slow := errors.New("i/o timeout")
	for name, test := range map[string]struct {
		err  error
		kind workspace.ErrorType
	}{
		"denied and slow":   {mixed(storage.ErrPermission, slow), ""},
		"missing and slow":  {mixed(storage.ErrBucketNotFound, slow), ""},
		"full and slow":     {mixed(storage.ErrNoSpace, slow), ""},
		"denied twice":      {mixed(storage.ErrPermission, storage.ErrPermission), workspace.ErrorStoreDenied},
		"denied and absent": {mixed(storage.ErrPermission, storage.ErrNotFound), workspace.ErrorStoreDenied},
		"out of time":       {fmt.Errorf("%w: %w", storage.ErrPermission, context.DeadlineExceeded), ""},
		"cancelled":         {&storage.MirrorError{Causes: map[string]error{"0": storage.ErrPermission}, Ended: context.Canceled}, ""},
	} {
		err := classify(test.err)
		if test.kind == "" {
			transient(t, err)
		} else {
			typed(t, err, test.kind)
		}
		_ = name
	}
}
