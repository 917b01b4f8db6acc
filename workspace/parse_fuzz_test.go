package workspace

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// FuzzParseHook: a hook that is accepted has a point, a command that is what stood after the first colon, a timeout within
// its range and a rule for its failure; what is refused names the field.
func FuzzParseHook(f *testing.F) {
	for _, text := range []string{
		"pre-stop:sync", "pre-snapshot,timeout=30s,on-error=fail:a:b", "post-snapshot,timeout=5m1s:x", "pre-stop,timeout=1.5s:x",
		"pre-stop,on-error=:x", "pre-stop,timeout=1s,timeout=2s:x", "pre-stop: ", ":x", "pre-stop", ",:", "pre-stop,:x", "pre-stop:\x00",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		hook, err := ParseHook(text)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || !strings.Contains(invalid.Field, "hook") {
				t.Fatalf("%q: %v names no field", text, err)
			}
			return
		}
		_, command, _ := strings.Cut(text, ":")
		if hook.Command != command || strings.TrimSpace(command) == "" || strings.ContainsRune(command, 0) {
			t.Fatalf("%q gives the command %q", text, hook.Command)
		}
		if limit := hook.Timeout(); limit < time.Second || limit > 5*time.Minute {
			t.Fatalf("%q may run for %s", text, limit)
		}
		if err := (Spec{Volume: Volume{Kind: VolumeLocal}, Hooks: []Hook{hook}}).Validate(); err != nil {
			t.Fatalf("%q is accepted by itself and refused in a specification: %v", text, err)
		}
	})
}

// FuzzParseSnapshotEvery: an interval that is accepted is off or within its range, and means what it says.
func FuzzParseSnapshotEvery(f *testing.F) {
	for _, text := range []string{"5m", "off", "0", "0s", "-1s", "10s", "9s", "24h", "24h1s", "1500ms", "1h0m1.5s", "9223372036854775807ns", "often", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		policy, err := ParseSnapshotEvery(text)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || invalid.Field != "snapshot interval" {
				t.Fatalf("%q: %v names no field", text, err)
			}
			return
		}
		if policy.Off {
			if text != "off" && text != "0" {
				t.Fatalf("%q switches snapshots off", text)
			}
			return
		}
		every, err := time.ParseDuration(text)
		if err != nil || policy.Every() != every || every < MinSnapshotEvery || every > MaxSnapshotEvery {
			t.Fatalf("%q is every %s (%v)", text, policy.Every(), err)
		}
	})
}
