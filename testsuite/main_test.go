package testsuite_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// product is the built command, once for all tests of the package.
var product struct {
	once sync.Once
	dir  string
	err  error
}

// longest are the tests that take two minutes and more, most of it waiting for intervals of the product, and those of more
// than a minute that are two stacks. They begin at once: the package takes as long as the last of them to begin, otherwise.
func longest() []string {
	return []string{
		"TestIdleStopOfProcesses", "TestIdleStopOfContainers", "TestFrozenTemporalMovesNothing", "TestKilledSalvage",
		"TestKilledAgentResumes", "TestLifeOfAWorkspace", "TestSnapshotsWhileRunning", "TestFullDisks", "TestDrain",
		"TestNodeThatReachesNothingPauses", "TestPartitionedNodePausesWhatWasReplaced",
	}
}

// places are those for the stacks of all other tests: so many more at once than there are processors, because they wait
// too, and no more, because a stack takes memory. Whatever ends leaves its place to them; the size is more than there are stacks.
var places = make(chan struct{}, 100)

// takePlace waits for a place, which is given back when the test ends, after everything else of it.
func takePlace(t *testing.T) {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	if !slices.Contains(longest(), test) {
		select {
		case <-places:
		case <-t.Context().Done():
			t.Fatal("waiting for a place: ", t.Context().Err())
		}
	}
	t.Cleanup(func() { places <- struct{}{} })
}

// TestMain lets all tests begin, unless -parallel says how many: what they wait for is a place.
func TestMain(m *testing.M) {
	flag.Parse()
	for range 3 { // beside the longest
		places <- struct{}{}
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "100"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if product.dir != "" {
		os.RemoveAll(product.dir)
	}
	os.Exit(code)
}

// binary returns the path of the product's one program, built from this source tree.
func binary(t *testing.T) string {
	t.Helper()
	product.once.Do(func() {
		if product.dir, product.err = os.MkdirTemp("", "holdfast-testsuite-"); product.err != nil {
			return
		}
		output, err := exec.Command("go", "build", "-o", filepath.Join(product.dir, "holdfast"), "holdfast/starter").CombinedOutput()
		if err != nil {
			product.err = fmt.Errorf("building the product: %w: %s", err, output)
		}
	})
	if product.err != nil {
		t.Fatal(product.err)
	}
	return filepath.Join(product.dir, "holdfast")
}
