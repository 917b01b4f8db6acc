package dataport

import (
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzNarrow: whatever a client asks for, what it gets is within the content and within what its token permits, and what is
// given is stable.
func FuzzNarrow(f *testing.F) {
	f.Add("", "a/../b")
	f.Add("src", "src/./x//y/")
	f.Add("src", "srcs")
	f.Add("a\x00", "/etc")
	f.Fuzz(func(t *testing.T, permitted, asked string) {
		given, err := narrow(permitted, asked)
		if err != nil {
			return
		}
		if given != "" && (!filepath.IsLocal(given) || path.Clean(given) != given) {
			t.Fatalf("%q within %q gives %q, which leaves the content or is not clean", asked, permitted, given)
		}
		within, err := cleanPath(permitted)
		if err != nil {
			t.Fatal(err)
		}
		if within != "" && given != within && !strings.HasPrefix(given, within+"/") {
			t.Fatalf("%q within %q gives %q", asked, permitted, given)
		}
		if again, err := narrow(permitted, given); err != nil || again != given && given != "" {
			t.Fatalf("%q becomes %q, %v", given, again, err)
		}
	})
}
