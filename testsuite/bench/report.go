package main

import (
	"fmt"
	"slices"
	"time"
)

// median is 0 of nothing.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// spread is the least, the median and the most, in seconds, as cells of a table.
func spread(all []time.Duration) string {
	return fmt.Sprintf("%.2f | **%.2f** | %.2f", slices.Min(all).Seconds(), median(all).Seconds(), slices.Max(all).Seconds())
}

func (b *bench) row(what string, all []time.Duration) {
	b.report("| %s | %d | %s |", what, len(all), spread(all))
}
