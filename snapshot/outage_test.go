package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

// TestOneStoreNeedsAPerson: two stores fail together, one with what passes by itself and one with what a person must
// mend. The whole passes by itself: a workspace whose backup is told otherwise would wait for a person after the outage
// has ended (A2). It is permanent once nothing passes any more.
func TestOneStoreNeedsAPerson(t *testing.T) {
	source := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(source, "file"), []byte(strings.Repeat("some text. ", 1000)), 0o600))
	operations := map[string]func(context.Context, *storage.Mirror, *Repository) error{
		"opening": func(ctx context.Context, m *storage.Mirror, _ *Repository) error {
			_, err := Open(ctx, m, testPassword, testOptions())
			return err
		},
		"opening or making": func(ctx context.Context, m *storage.Mirror, _ *Repository) error {
			_, err := OpenOrCreate(ctx, m, testPassword, testOptions())
			return err
		},
		"backing up": func(ctx context.Context, _ *storage.Mirror, r *Repository) error {
			_, err := r.Backup(ctx, source, BackupOptions{})
			return err
		},
		"listing": func(ctx context.Context, _ *storage.Mirror, r *Repository) error {
			_, err := r.Snapshots(ctx)
			return err
		},
		"restoring": func(ctx context.Context, _ *storage.Mirror, r *Repository) error {
			_, err := r.Restore(ctx, "latest", filepath.Join(t.TempDir(), "restored"), RestoreOptions{})
			return err
		},
	}
	for _, needs := range []error{storage.ErrBucketNotFound, storage.ErrPermission} {
		for name, operation := range operations {
			for _, first := range []int{0, 1} {
				t.Run(fmt.Sprintf("%s/%v/%d", name, needs, first), func(t *testing.T) {
					faults, providers := memories(2)
					mirror := newTestMirror(t, storage.PolicyAny, providers...)
					r, err := OpenOrCreate(t.Context(), mirror, testPassword, testOptions())
					require.NoError(t, err)
					t.Cleanup(func() { require.NoError(t, r.Close()) })
					_, err = r.Backup(t.Context(), source, BackupOptions{})
					require.NoError(t, err)

					faults[first].Inject(faulty.Rule{Err: needs})
					faults[1-first].Inject(faulty.Rule{})
					err = operation(t.Context(), mirror, r)
					require.ErrorIs(t, err, faulty.ErrInjected)
					require.NotErrorIs(t, err, needs)
					require.NotErrorIs(t, err, ErrDamaged)
					require.True(t, storage.Retryable(err), err)
					require.Contains(t, err.Error(), needs.Error(), "what a person has to mend is said all the same")

					faults[1-first].Clear()
					faults[1-first].Inject(faulty.Rule{Err: needs})
					err = operation(t.Context(), mirror, r)
					require.ErrorIs(t, err, needs)
					require.False(t, storage.Retryable(err), err)
				})
			}
		}
	}
}

// TestKeyAmongTheUnlisted: while one store's keys cannot be listed, a damaged key on the other is not why the repository
// does not open.
func TestKeyAmongTheUnlisted(t *testing.T) {
	faults, providers := memories(2)
	mirror := newTestMirror(t, storage.PolicyAny, providers...)
	r, err := OpenOrCreate(t.Context(), mirror, testPassword, testOptions())
	require.NoError(t, err)
	require.NoError(t, r.Close())
	keys := func(key string) bool { return strings.HasPrefix(key, keyPrefix) }
	faults[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.WrongBytes, Match: keys})
	faults[1].Inject(faulty.Rule{Op: faulty.List, Match: keys})
	faults[1].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.WrongBytes, Match: keys})
	_, err = Open(t.Context(), mirror, testPassword, testOptions())
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.False(t, errors.Is(err, ErrDamaged) || errors.Is(err, ErrWrongPassword), err)

	// Nor is a password that fits no key which is there known to be wrong.
	faults[0].Clear()
	faults[1].Clear()
	faults[1].Inject(faulty.Rule{Op: faulty.List, Match: keys})
	_, err = Open(t.Context(), mirror, []byte("another"), testOptions())
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.NotErrorIs(t, err, ErrWrongPassword)
	require.NotContains(t, err.Error(), "nil")
}
