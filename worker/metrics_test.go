package worker

import (
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// scrape gives what is served, without comments, by name and labels.
func scrape(t *testing.T, address string) map[string]string {
	t.Helper()
	answer, err := http.Get("http://" + address + "/metrics")
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s", body)
	values := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && !strings.HasPrefix(line, "#") {
			values[name+"}"] = value
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			values[name] = value
		}
	}
	return values
}

// requireDocumented compares Holdfast's own metrics with the list in docs/operations.md.
func requireDocumented(t *testing.T, workers ...map[string]string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	require.NoError(t, err)
	documented := map[string]bool{}
	for _, name := range regexp.MustCompile("`(holdfast_[a-z_]+)").FindAllStringSubmatch(string(page), -1) {
		documented[name[1]] = true
	}
	names := map[string]bool{}
	served := map[string]string{}
	for _, one := range workers {
		maps.Copy(served, one)
	}
	for name := range served {
		if name, _, _ = strings.Cut(name, "{"); strings.HasPrefix(name, "holdfast_") {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				name = strings.TrimSuffix(name, part)
			}
			names[name] = true
		}
	}
	require.Equal(t, names, documented, "what workers serve, and what docs/operations.md lists")
}

// TestMetricsOfAWorker scrapes both roles after a workspace was started, stopped through a backup, and started again.
func TestMetricsOfAWorker(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	_, stopAgent := s.agent()
	s.nodeIs(workspace.NodeReady)
	atlas := s.start()
	require.NoError(t, os.WriteFile(filepath.Join(s.content(atlas, 1), "notes.txt"), []byte("what a person wrote"), 0o600))
	s.stop()
	s.start()

	agent := scrape(t, s.agentMetrics)
	for name, want := range map[string]string{
		`holdfast_snapshot_operations_total{operation="backup",outcome="ok"}`:  "1",
		`holdfast_snapshot_operations_total{operation="restore",outcome="ok"}`: "1",
		`holdfast_snapshot_operations_running{operation="backup"}`:             "0",
		`holdfast_snapshot_duration_seconds_count{operation="backup"}`:         "1",
		`holdfast_snapshot_backup_files_total`:                                 "1",
		`holdfast_snapshot_backup_bytes_total`:                                 "19",
		`holdfast_snapshot_backup_owed_total`:                                  "0",
		`holdfast_snapshot_restore_bytes_total`:                                "19",
		`holdfast_store_away{store="` + s.place.Stores[0] + `"}`:               "0",
		`holdfast_store_behind_total{store="` + s.place.Stores[1] + `"}`:       "0",
	} {
		require.Equal(t, want, agent[name], name)
	}
	for _, store := range s.place.Stores {
		require.NotEmpty(t, agent[`holdfast_store_operations_total{operation="put",outcome="ok",store="`+store+`"}`])
		require.NotEqual(t, "0", agent[`holdfast_store_bytes_total{direction="written",store="`+store+`"}`])
	}
	require.Contains(t, agent, `holdfast_resolver_lookups_total{source="servers"}`)
	require.NotEqual(t, "0", agent["process_resident_memory_bytes"])

	control := scrape(t, s.controlMetrics)
	require.Contains(t, control, `holdfast_store_bytes_total{direction="written",store="`+s.place.Stores[0]+`"}`)
	for role, served := range map[string]map[string]string{workspace.ControlQueue: control, workspace.NodeQueue("node-1"): agent, workspace.LeaseQueue("node-1"): agent} {
		pattern := regexp.MustCompile(`^temporal_num_pollers{.*task_queue="` + regexp.QuoteMeta(role) + `"`)
		found := false
		for name, value := range served {
			found = found || pattern.MatchString(name) && value != "0"
		}
		require.True(t, found, "no pollers of queue %s among Temporal's metrics", role)
	}

	require.Eventually(t, func() bool {
		control = scrape(t, s.controlMetrics)
		return control[`holdfast_nodes{phase="Ready"}`] == "1"
	}, patience, 100*time.Millisecond)
	require.Equal(t, "0", control[`holdfast_drain_late{node="node-1"}`])
	require.Equal(t, "0", control["holdfast_fleet_look_failed"])
	requireDocumented(t, agent, control)

	address := s.agentMetrics
	stopAgent()
	_, err := http.Get("http://" + address + "/metrics")
	require.Error(t, err, "a stopped agent serves nothing")
}
