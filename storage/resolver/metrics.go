package resolver

import "github.com/prometheus/client_golang/prometheus"

var (
	descQueries = prometheus.NewDesc("holdfast_resolver_queries_total",
		"Lookups in which a name server was asked, by outcome.", []string{"server", "outcome"}, nil)
	descDemoted = prometheus.NewDesc("holdfast_resolver_server_demoted",
		"1 while a name server is asked last because it was silent or failed where another answered.", []string{"server"}, nil)
	descTCP = prometheus.NewDesc("holdfast_resolver_tcp_answers_total",
		"Answers of a name server that only TCP gave.", []string{"server"}, nil)
	descLookups = prometheus.NewDesc("holdfast_resolver_lookups_total",
		"Names looked up, by where the answer came from.", []string{"source"}, nil)
	descFailed = prometheus.NewDesc("holdfast_resolver_lookup_failures_total",
		"Lookups that ended in an error, by kind.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (r *Resolver) Describe(descs chan<- *prometheus.Desc) {
	descs <- descQueries
	descs <- descDemoted
	descs <- descTCP
	descs <- descLookups
	descs <- descFailed
}

// Collect implements prometheus.Collector.
func (r *Resolver) Collect(metrics chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, value int64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	stats := r.Stats()
	for _, s := range stats.Servers {
		counter(descQueries, s.Answers, s.Address, "answer")
		counter(descQueries, s.NotFound, s.Address, "not_found")
		counter(descQueries, s.Failures, s.Address, "failure")
		counter(descQueries, s.Timeouts, s.Address, "timeout")
		counter(descQueries, s.Beaten, s.Address, "beaten")
		counter(descTCP, s.TCP, s.Address)
		demoted := 0.0
		if s.Demoted {
			demoted = 1
		}
		metrics <- prometheus.MustNewConstMetric(descDemoted, prometheus.GaugeValue, demoted, s.Address)
	}
	counter(descLookups, stats.Hits, "cache")
	counter(descLookups, stats.Stale, "stale")
	counter(descLookups, stats.Lookups-stats.Hits-stats.Stale, "servers")
	counter(descFailed, stats.NotFound, "not_found")
	counter(descFailed, stats.Failed-stats.NotFound, "unavailable")
}
