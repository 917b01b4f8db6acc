package telemetry

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func scrape(t *testing.T, address, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + path)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	registry := NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_test_total", Help: "of a test"})
	registry.MustRegister(counter, broken{})
	counter.Inc()
	s, err := Serve("127.0.0.1:0", registry, logger)
	require.NoError(t, err)
	status, body := scrape(t, s.Address(), "/metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "\nholdfast_test_total 1\n", "a collector that fails hides the others")
	require.Contains(t, body, "\ngo_goroutines ")
	require.Contains(t, body, "\nprocess_resident_memory_bytes ")
	status, _ = scrape(t, s.Address(), "/")
	require.Equal(t, http.StatusNotFound, status)

	_, err = Serve(s.Address(), registry, logger)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, s.Address())
	require.NoError(t, s.Close())
	s, err = Serve(s.Address(), registry, logger) // at once, at the same place
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// broken is a collector that fails.
type broken struct{}

func (broken) Describe(chan<- *prometheus.Desc) {}
func (broken) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.NewInvalidMetric(prometheus.NewDesc("holdfast_broken", "", nil, nil), errors.New("it fails"))
}

func TestTemporal(t *testing.T) {
	handler := NewTemporal()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(handler)
	// One name with several sets of labels, as the SDK does it.
	root := handler.WithTags(map[string]string{"namespace": "holdfast"})
	root.Counter("temporal_request").Inc(2)
	root.WithTags(map[string]string{"operation": "Poll", "namespace": "other"}).Counter("temporal_request").Inc(1)
	root.WithTags(map[string]string{"operation": "Poll"}).Counter("temporal_request").Inc(3)
	handler.WithTags(map[string]string{"operation": "Poll"}).WithTags(map[string]string{"namespace": "holdfast"}).Counter("temporal_request").Inc(4)
	root.Gauge("temporal_num_pollers").Update(5)
	root.Gauge("temporal_num_pollers").Update(2)
	root.Timer("temporal_request_latency").Record(20 * time.Millisecond)
	root.Timer("temporal_request_latency").Record(3 * time.Hour)
	s, err := Serve("127.0.0.1:0", registry, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer s.Close()
	_, body := scrape(t, s.Address(), "/metrics")
	for _, want := range []string{
		`temporal_request_total{namespace="holdfast"} 2`,
		`temporal_request_total{namespace="other",operation="Poll"} 1`,
		`temporal_request_total{namespace="holdfast",operation="Poll"} 7`,
		`temporal_num_pollers{namespace="holdfast"} 2`,
		`temporal_request_latency_seconds_bucket{namespace="holdfast",le="0.01"} 0`,
		`temporal_request_latency_seconds_bucket{namespace="holdfast",le="0.025"} 1`,
		`temporal_request_latency_seconds_bucket{namespace="holdfast",le="7200"} 1`,
		`temporal_request_latency_seconds_bucket{namespace="holdfast",le="+Inf"} 2`,
		`temporal_request_latency_seconds_count{namespace="holdfast"} 2`,
	} {
		require.Contains(t, strings.Split(body, "\n"), want)
	}
}
