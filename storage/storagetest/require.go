package storagetest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Missing ends a test that needs a tool which is not there: a skip on a developer's machine, a failure when the
// environment variable HOLDFAST_REQUIRE (names separated by commas) has the tool's name.
func Missing(t testing.TB, tool, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), tool) {
		t.Fatalf("%s (HOLDFAST_REQUIRE names %s)", why, tool)
	}
	t.Skipf("skipped: %s", why)
}
