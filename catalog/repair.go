package catalog

import (
	"context"
	"fmt"

	"holdfast/storage"
)

// Repair copies the catalog objects of a workspace that some providers lack. It succeeds when all providers of the
// policy have all of them. Create-only objects never differ, so there is no question which version is right.
func (c *Catalog) Repair(ctx context.Context, id string) (storage.RepairReport, error) {
	mirror, err := storage.NewMirror(c.providers, storage.MirrorOptions{Policy: c.policy})
	if err != nil {
		return storage.RepairReport{}, err
	}
	defer mirror.Close()
	report, err := mirror.Repair(ctx, workspacePrefix(id), storage.RepairOptions{})
	if err != nil {
		return report, fmt.Errorf("repairing the catalog of %s: %w", id, err)
	}
	if !report.Complete() {
		return report, fmt.Errorf("repairing the catalog of %s: stores hold different objects under %v: %w", id, report.Conflicts, ErrConflict)
	}
	return report, nil
}
