package snapshot

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what repositories do, for all that are given it in their Options. It is a Prometheus collector. What
// goes over the wire is counted by storage.Metrics, store by store.
type Metrics struct {
	operations *prometheus.CounterVec   // by operation, outcome
	running    *prometheus.GaugeVec     // by operation
	seconds    *prometheus.HistogramVec // by operation; of those that succeeded

	backupFiles, backupBytes, backupNew, backupStored, backupPacks, backupOmissions, backupOwed prometheus.Counter
	restoreFiles, restoreBytes, restoreReused                                                   prometheus.Counter
	checkErrors, prunedBytes                                                                    prometheus.Counter
}

// NewMetrics makes one with all counts at zero.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "holdfast", Subsystem: "snapshot", Name: name, Help: help})
	}
	return &Metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "holdfast", Subsystem: "snapshot", Name: "operations_total",
			Help: "Operations on repositories, by outcome: ok, failed, left (who asked ended it).",
		}, []string{"operation", "outcome"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "holdfast", Subsystem: "snapshot", Name: "operations_running", Help: "Operations on repositories that are under way.",
		}, []string{"operation"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "snapshot", Name: "duration_seconds", Help: "How long operations on repositories took that succeeded.",
			Buckets: []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600},
		}, []string{"operation"}),
		backupFiles:     counter("backup_files_total", "Files in the snapshots that were made."),
		backupBytes:     counter("backup_bytes_total", "Content bytes in the snapshots that were made."),
		backupNew:       counter("backup_new_bytes_total", "Content bytes of those that the repository did not have yet."),
		backupStored:    counter("backup_stored_bytes_total", "Bytes stored for the snapshots that were made, for one store."),
		backupPacks:     counter("backup_packs_total", "Packs stored for the snapshots that were made, for one store."),
		backupOmissions: counter("backup_omissions_total", "Things that could not be backed up as they were."),
		backupOwed:      counter("backup_owed_total", "Stores that did not hold a snapshot whole when it was made."),
		restoreFiles:    counter("restore_files_total", "Files restored and verified."),
		restoreBytes:    counter("restore_bytes_total", "Content bytes restored and verified."),
		restoreReused:   counter("restore_reused_bytes_total", "Content bytes of those that an attempt which was cut had left, and that were not fetched again."),
		checkErrors:     counter("check_errors_total", "Errors that checks found."),
		prunedBytes:     counter("pruned_bytes_total", "Stored bytes that prunes removed, less those that they wrote anew."),
	}
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.operations, m.running, m.seconds, m.backupFiles, m.backupBytes, m.backupNew, m.backupStored, m.backupPacks,
		m.backupOmissions, m.backupOwed, m.restoreFiles, m.restoreBytes, m.restoreReused, m.checkErrors, m.prunedBytes,
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(metrics chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(metrics)
	}
}

// began counts an operation; the returned function ends it. A nil Metrics counts nothing, here and below.
func (m *Metrics) began(operation string) (ended func(error)) {
	if m == nil {
		return func(error) {}
	}
	start, running := time.Now(), m.running.WithLabelValues(operation)
	running.Inc()
	return func(err error) {
		running.Dec()
		outcome := "ok"
		switch {
		case err == nil:
			m.seconds.WithLabelValues(operation).Observe(time.Since(start).Seconds())
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			outcome = "left"
		default:
			outcome = "failed"
		}
		m.operations.WithLabelValues(operation, outcome).Inc()
	}
}

func (m *Metrics) backedUp(result *BackupResult) {
	if m == nil {
		return
	}
	m.backupFiles.Add(float64(result.Files))
	m.backupBytes.Add(float64(result.Bytes))
	m.backupNew.Add(float64(result.BytesAdded))
	m.backupStored.Add(float64(result.BytesUploaded))
	m.backupPacks.Add(float64(result.PacksUploaded))
	m.backupOmissions.Add(float64(len(result.Omissions)))
	m.backupOwed.Add(float64(len(result.Owed)))
}

func (m *Metrics) restored(report *RestoreReport) {
	if m == nil {
		return
	}
	m.restoreFiles.Add(float64(report.Files))
	m.restoreBytes.Add(float64(report.Bytes))
	m.restoreReused.Add(float64(report.Reused))
}

func (m *Metrics) checked(report *CheckReport) {
	if m != nil {
		m.checkErrors.Add(float64(len(report.Errors)))
	}
}

// pruned takes in a report that may be of a prune which failed half-way.
func (m *Metrics) pruned(report *PruneReport) {
	if m != nil && !report.DryRun {
		m.prunedBytes.Add(float64(max(report.BytesRemoved-report.BytesWritten, 0)))
	}
}
