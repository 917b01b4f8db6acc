package stack

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

// tests are what the tests of one package share.
var tests = struct {
	// binary is the built command, once for all of them.
	binary struct {
		once sync.Once
		dir  string
		err  error
	}
	// longest begin at once, places are those for the stacks of all others: more than there are processors, because they wait, too,
	// and no more, because a stack takes memory. Whatever ends leaves its place to them; the size is more than there are stacks.
	longest []string
	places  chan struct{}
}{places: make(chan struct{}, 100)}

// beside is how many stacks there are at once beside those of the longest tests, until those end.
const beside = 3

// Main is TestMain of a package. The longest of its tests, which take two minutes and more, most of it waiting for intervals of the
// product, and those of more than a minute that are two stacks, begin at once: the package takes as long as the last of them to
// begin, otherwise. All others begin, too, unless -parallel says how many: what they wait for is a place.
func Main(m *testing.M, longest ...string) {
	flag.Parse()
	tests.longest = longest
	for range beside {
		tests.places <- struct{}{}
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
	if tests.binary.dir != "" {
		os.RemoveAll(tests.binary.dir)
	}
	os.Exit(code)
}

// takePlace waits for a place, which is given back when the test ends, after everything else of it.
func takePlace(t *testing.T) {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	if !slices.Contains(tests.longest, test) {
		select {
		case <-tests.places:
		case <-t.Context().Done():
			t.Fatal("waiting for a place: ", t.Context().Err())
		}
	}
	t.Cleanup(func() { tests.places <- struct{}{} })
}

// Binary returns the path of the product's one program, built from this source tree.
func Binary(t *testing.T) string {
	t.Helper()
	built := &tests.binary
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "holdfast-testsuite-"); built.err != nil {
			return
		}
		output, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "holdfast"), "holdfast/starter").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("building the product: %w: %s", err, output)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "holdfast")
}
