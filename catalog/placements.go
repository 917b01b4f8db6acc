package catalog

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"holdfast/storage"
	"holdfast/workspace"
)

// Placement says that a node holds an instance. It is written before the instance starts and removed after its content
// was released.
type Placement struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Token       uint64 `json:"token"`
}

// ReleasePlacement removes a placement from every provider; one that is not there is no error.
func (c *Catalog) ReleasePlacement(ctx context.Context, node, id string, token uint64) error {
	causes := map[string]error{}
	for o := range c.onAll(ctx, func(ctx context.Context, provider storage.Provider) error {
		return provider.Delete(ctx, placementKey(node, id, token))
	}) {
		if o.err != nil {
			causes[o.provider.URL()] = o.err
		}
	}
	if len(causes) > 0 {
		return unheard(ctx, "removing", placementKey(node, id, token), causes)
	}
	return nil
}

// Placements lists what any provider says that a node holds.
func (c *Catalog) Placements(ctx context.Context, node string) ([]Placement, error) {
	found := map[string]Placement{}
	causes := map[string]error{}
	for _, provider := range c.providers {
		keys, err := c.keysBelow(ctx, provider, "catalog/nodes/"+node+"/")
		for _, key := range keys {
			id, token, err := workspace.ParseInstanceName(path.Base(key))
			if err != nil {
				continue // not ours
			}
			found[key] = Placement{WorkspaceID: id, Token: token}
		}
		if err != nil {
			causes[provider.URL()] = err
		}
	}
	placements := make([]Placement, 0, len(found))
	for _, placement := range found {
		placements = append(placements, placement)
	}
	sort.Slice(placements, func(i, j int) bool {
		a, b := placements[i], placements[j]
		return a.WorkspaceID < b.WorkspaceID || a.WorkspaceID == b.WorkspaceID && a.Token < b.Token
	})
	if len(causes) > 0 {
		return placements, unheard(ctx, "listing", "catalog/nodes/"+node+"/", causes)
	}
	return placements, nil
}

// keysBelow lists the keys of one provider, in ascending order.
func (c *Catalog) keysBelow(ctx context.Context, provider storage.Provider, prefix string) ([]string, error) {
	return soon(ctx, c, func(ctx context.Context) ([]string, error) {
		var keys []string
		err := provider.List(ctx, prefix, func(object storage.Object) error {
			keys = append(keys, object.Key)
			return nil
		})
		return keys, err
	})
}

// FindID returns the id that a name has: the one that was not deleted. storage.ErrNotFound when there is none. While a
// store that might know of a deletion cannot be asked, the only id that the name ever had is returned all the same: an
// operator needs its password then most of all.
func (c *Catalog) FindID(ctx context.Context, name string) (string, error) {
	ids := map[string]bool{}
	causes := map[string]error{}
	for _, provider := range c.providers {
		keys, err := c.keysBelow(ctx, provider, "catalog/names/"+name+"/")
		for _, key := range keys {
			ids[strings.TrimSuffix(path.Base(key), ".json")] = true
		}
		if err != nil {
			causes[provider.URL()] = err
		}
	}
	var live, unsure []string
	var doubt error
	for id := range ids {
		var gone deleted
		switch err := c.load(ctx, workspacePrefix(id)+"deleted.json", &gone); {
		case errors.Is(err, storage.ErrNotFound):
			live = append(live, id)
		case err != nil:
			unsure, doubt = append(unsure, id), err
		}
	}
	switch {
	case len(live) == 1 && len(unsure) == 0:
		return live[0], nil
	case len(unsure) == 1 && len(ids) == 1:
		return unsure[0], nil
	case len(unsure) > 0:
		return "", doubt
	case len(live) > 1:
		return "", fmt.Errorf("name %s has several workspaces in the catalog (%v): %w", name, live, ErrConflict)
	case len(causes) > 0:
		return "", unheard(ctx, "listing", "catalog/names/"+name+"/", causes)
	default:
		return "", fmt.Errorf("workspace %s: %w", name, storage.ErrNotFound)
	}
}

func sortCommits(commits []workspace.Commit) {
	sort.Slice(commits, func(i, j int) bool { return commits[j].Newer(&commits[i]) })
}
