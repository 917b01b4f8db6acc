package catalog

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// Repair copies what some providers lack of the catalog objects that a workspace needs: its own, the one that ties its
// name to its id, and the control side's keys, without which the environment in its records cannot be opened. It succeeds
// when all providers of the policy have all of them. Create-only objects never differ, so there is no question which
// version is right. Placements are left out: one that a provider lacks is of an instance whose node the others name.
func (c *Catalog) Repair(ctx context.Context, id, name string) (storage.RepairReport, error) {
	all := storage.RepairReport{Copied: map[string]int{}, Bytes: map[string]int64{}}
	mirror, err := storage.NewMirror(c.providers, storage.MirrorOptions{Policy: c.policy})
	if err != nil {
		return all, err
	}
	defer mirror.Close()
	prefixes := []string{workspacePrefix(id), nameKey(name, id), controlKey}
	reports := make([]storage.RepairReport, len(prefixes))
	var group errgroup.Group
	for i, prefix := range prefixes {
		group.Go(func() (err error) {
			reports[i], err = mirror.Repair(ctx, prefix, storage.RepairOptions{})
			return err
		})
	}
	err = group.Wait()
	for _, report := range reports {
		all.Objects += report.Objects
		all.Conflicts = append(all.Conflicts, report.Conflicts...)
		all.Lost = append(all.Lost, report.Lost...)
		all.Held = append(all.Held, report.Held...)
		for provider, objects := range report.Copied {
			all.Copied[provider] += objects
			all.Bytes[provider] += report.Bytes[provider]
		}
	}
	if err != nil {
		return all, fmt.Errorf("repairing the catalog of %s: %w", id, err)
	}
	if !all.Complete() {
		return all, fmt.Errorf("repairing the catalog of %s: stores hold different objects under %v: %w", id, all.Conflicts, ErrConflict)
	}
	return all, nil
}
