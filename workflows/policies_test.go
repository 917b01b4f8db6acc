package workflows

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A2: however long an outage is, a backup is tried again, and soon after it ends.
func TestPatienceHasNoEnd(t *testing.T) {
	require.Zero(t, patient.MaximumAttempts)
	require.Empty(t, patient.NonRetryableErrorTypes)
	require.LessOrEqual(t, patient.MaximumInterval.Seconds(), 30.0)
	require.Positive(t, patient.BackoffCoefficient)
}
