package testsuite_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// product is the built command, once for all tests of the package.
var product struct {
	once sync.Once
	dir  string
	err  error
}

// TestMain lets more tests run at once than there are processors, unless -parallel says how many: they wait for time-outs
// and for stores that are away, mostly.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "10"); err != nil {
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
