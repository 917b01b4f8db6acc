package snapshot

import (
	"context"
	"fmt"

	"holdfast/storage"
)

// RepairMirror copies what some providers lack of a repository, as ciphertext: no password is needed and nothing is
// encrypted again. What is referenced comes before what references it, so that a copy that is cut never makes a
// repository that promises what it does not have. Locks are not copied: they are about one provider's users.
//
// The report adds up all parts, also when there is an error.
func RepairMirror(ctx context.Context, mirror *storage.Mirror, progress func(storage.RepairProgress)) (storage.RepairReport, error) {
	total := storage.RepairReport{Copied: map[string]int{}, Bytes: map[string]int64{}}
	for _, part := range []string{"config", "keys/", "data/", "index/", "snapshots/"} {
		report, err := mirror.Repair(ctx, part, storage.RepairOptions{
			// Every name but config's is the SHA-256 of the object (docs/snapshot-format.md, section "Envelope").
			Verify:   func(key string) bool { return key != "config" },
			Progress: progress,
		})
		total.Objects += report.Objects
		total.Replaced += report.Replaced
		total.Conflicts = append(total.Conflicts, report.Conflicts...)
		total.Lost = append(total.Lost, report.Lost...)
		total.Held = append(total.Held, report.Held...)
		for provider, objects := range report.Copied {
			total.Copied[provider] += objects
			total.Bytes[provider] += report.Bytes[provider]
		}
		if err != nil {
			return total, fmt.Errorf("copying what stores lack of %s: %w", part, err)
		}
		if !report.Complete() {
			return total, fmt.Errorf("copying what stores lack of %s: no good copy of %v, differing objects %v: %w", part, report.Lost, report.Conflicts, ErrDamaged)
		}
	}
	return total, nil
}
