package snapshot

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestMetrics: every operation is counted once, with how it ended, and what a report says is in the sums.
func TestMetrics(t *testing.T) {
	options := testOptions()
	options.Metrics = NewMetrics()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(options.Metrics))
	provider := storagetest.NewMemory()
	r, err := OpenOrCreate(t.Context(), newTestMirror(t, storage.PolicyAll, provider), testPassword, options)
	require.NoError(t, err)
	dir, target := t.TempDir(), t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": randomBytes(1, 1000), "b": randomBytes(2, 500)})

	first, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	second, err := r.Backup(t.Context(), dir, BackupOptions{}) // nothing is new
	require.NoError(t, err)
	_, err = r.Backup(t.Context(), filepath.Join(dir, "absent"), BackupOptions{})
	require.ErrorIs(t, err, ErrSourceMissing)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Backup(ended, dir, BackupOptions{})
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.Restore(t.Context(), "latest", filepath.Join(target, "a"), RestoreOptions{})
	require.NoError(t, err)
	_, err = r.Restore(t.Context(), "latest", filepath.Join(target, "a"), RestoreOptions{})
	require.ErrorIs(t, err, ErrTargetExists)
	_, err = r.VerifyStored(t.Context(), first.Snapshot)
	require.NoError(t, err)
	keys := allKeys(t, provider)
	for _, key := range keys {
		if filepath.Dir(key)+"/" == snapshotPrefix {
			overwrite(t, provider, key, []byte("damaged"))
		}
	}
	checked, err := r.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.NotEmpty(t, checked.Errors)

	families, err := registry.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetValue()
			}
			value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			if value != 0 {
				got[name] = value
			}
		}
	}
	require.NotZero(t, first.BytesUploaded)
	for name, want := range map[string]float64{
		"holdfast_snapshot_operations_total backup ok":      2,
		"holdfast_snapshot_operations_total backup failed":  1,
		"holdfast_snapshot_operations_total backup left":    1,
		"holdfast_snapshot_operations_total restore ok":     1,
		"holdfast_snapshot_operations_total restore failed": 1,
		"holdfast_snapshot_operations_total verify ok":      1,
		"holdfast_snapshot_operations_total check ok":       1,
		"holdfast_snapshot_operations_running backup":       0,
		"holdfast_snapshot_duration_seconds backup":         2,
		"holdfast_snapshot_backup_files_total":              4,
		"holdfast_snapshot_backup_bytes_total":              3000,
		"holdfast_snapshot_backup_new_bytes_total":          1500,
		"holdfast_snapshot_backup_stored_bytes_total":       float64(first.BytesUploaded + second.BytesUploaded),
		"holdfast_snapshot_backup_packs_total":              float64(first.PacksUploaded + second.PacksUploaded),
		"holdfast_snapshot_restore_files_total":             2,
		"holdfast_snapshot_restore_bytes_total":             1500,
		"holdfast_snapshot_check_errors_total":              float64(len(checked.Errors)),
	} {
		require.Equal(t, want, got[name], name)
	}
}
