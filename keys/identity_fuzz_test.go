package keys

import (
	"encoding/base64"
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

// FuzzControlIdentity: what the catalog holds as the control side's identity, once the master key has opened it, is a whole
// identity that survives a round trip, or it is refused without being quoted.
func FuzzControlIdentity(f *testing.F) {
	master, err := OpenMaster(f.Context(), "base64key://"+base64.URLEncoding.EncodeToString(make([]byte, 32)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"version":1,"age":"AGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSM8R5HC","seed":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"age":"topsecret","seed":"AAAA"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, plain []byte) {
		wrapped, err := master.Wrap(t.Context(), PurposeControlIdentity, plain)
		if err != nil {
			t.Fatal(err)
		}
		control, err := OpenControl(t.Context(), master, wrapped)
		if err != nil {
			if strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "AGE-SECRET-KEY") {
				t.Fatalf("the identity is quoted: %v", err)
			}
			return
		}
		again, err := control.MarshalWrapped(t.Context(), master)
		if err != nil {
			t.Fatal(err)
		}
		same, err := OpenControl(t.Context(), master, again)
		if err != nil || same.Recipient() != control.Recipient() || !same.VerifyKey().Equal(control.VerifyKey()) {
			t.Fatalf("it does not survive a round trip: %v", err)
		}
	})
}
