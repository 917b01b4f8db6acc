package storage

import (
	"errors"
	"strings"
	"testing"
)

// FuzzParsePolicy: a policy that is accepted is written back as the same policy, requires at least one store and never more
// than there are; what is refused is quoted and says what would be right.
func FuzzParsePolicy(f *testing.F) {
	for _, text := range []string{"all", "any", "quorum 2", "quorum 0", "quorum +3", " quorum  1 ", "quorum 99999999999999999999", "ANY", ""} {
		f.Add(text, 3)
	}
	f.Fuzz(func(t *testing.T, text string, stores int) {
		policy, err := ParsePolicy(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "quorum N") || policy != (Policy{}) {
				t.Fatalf("%+v, %v", policy, err)
			}
			return
		}
		if again, err := ParsePolicy(policy.String()); err != nil || again != policy {
			t.Fatalf("%q is %+v, and written as %q is %+v (%v)", text, policy, policy, again, err)
		}
		if n := policy.Count(stores); stores > 0 && (n < 1 || n > stores) {
			t.Fatalf("%q requires %d of %d stores", text, n, stores)
		}
	})
}

// FuzzDecodeCRC32C: a checksum that is accepted is the one whose header has just these four bytes; the checksum of checksums
// that a multipart upload has is none.
func FuzzDecodeCRC32C(f *testing.F) {
	for _, text := range []string{"AAAAAA==", "yZRlqg==", "yZRlqg==-3", "AAAA", "AAAAAAAA", "\nyZRl qg==", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sum, ok := decodeCRC32C(&text)
		if !ok {
			return
		}
		// Line breaks inside are ignored, as the standard's decoders do.
		if plain := strings.NewReplacer("\r", "", "\n", "").Replace(text); len(plain) != 8 {
			t.Fatalf("%q is taken for the checksum %08x", text, sum)
		}
		encoded := encodeCRC32C(sum)
		if again, ok := decodeCRC32C(&encoded); !ok || again != sum {
			t.Fatalf("%08x is written as %q", sum, encoded)
		}
	})
}
