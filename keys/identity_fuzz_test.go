package keys

import (
	"strings"
	"testing"
)

// FuzzIdentity: what is accepted as an identity file holds one identity, and what is not is refused without being quoted.
func FuzzIdentity(f *testing.F) {
	f.Add("# a comment\n\nAGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSM8R5HC\n")
	f.Add("AGE-SECRET-KEY-1")
	f.Fuzz(func(t *testing.T, text string) {
		identity, err := parseIdentity(text)
		if err != nil {
			for line := range strings.Lines(text) {
				if line = strings.TrimSpace(line); len(line) > 40 && strings.Contains(err.Error(), line) {
					t.Fatalf("the error quotes the file: %v", err)
				}
			}
			return
		}
		if again, err := parseIdentity(identity.String()); err != nil || again.Recipient().String() != identity.Recipient().String() {
			t.Fatalf("an identity does not survive a round trip: %v", err)
		}
	})
}
