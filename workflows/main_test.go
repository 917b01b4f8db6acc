package workflows_test

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain has garbage collected less often, unless GOGC says how often: thousands of small worlds leave much of it, and a
// sixth of the time went into that.
func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	os.Exit(m.Run())
}
