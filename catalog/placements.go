package catalog

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
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
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: len(c.providers), Within: c.answerWithin},
		func(ctx context.Context, provider storage.Provider, _ func()) (struct{}, error) {
			return struct{}{}, provider.Delete(ctx, placementKey(node, id, token))
		}, nil) {
		if answer.Err != nil {
			causes[answer.Provider.URL()] = answer.Err
		}
	}
	if len(causes) > 0 {
		return unheard(ctx, "removing", placementKey(node, id, token), causes)
	}
	return nil
}

// Placement reads one placement, with its workspace's name; storage.ErrNotFound when no provider has it.
func (c *Catalog) Placement(ctx context.Context, node, id string, token uint64) (Placement, error) {
	return load[Placement](ctx, c, placementKey(node, id, token))
}

// Placements lists what any provider says that a node holds.
func (c *Catalog) Placements(ctx context.Context, node string) ([]Placement, error) {
	keys, causes := c.keysAnywhere(ctx, "catalog/nodes/"+node+"/")
	placements := make([]Placement, 0, len(keys))
	for _, key := range keys {
		id, token, err := workspace.ParseInstanceName(path.Base(key))
		if err != nil {
			continue // not ours
		}
		placements = append(placements, Placement{WorkspaceID: id, Token: token})
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

// keysAnywhere lists the keys that any provider has, in ascending order, and says which providers could not be listed to
// the end.
func (c *Catalog) keysAnywhere(ctx context.Context, prefix string) ([]string, map[string]error) {
	var keys []string
	causes := map[string]error{}
	for _, answer := range onAll(ctx, c, func(ctx context.Context, provider storage.Provider) ([]string, error) {
		return c.keysBelow(ctx, provider, prefix)
	}) {
		keys = append(keys, answer.Value...)
		if answer.Err != nil {
			causes[answer.Provider.URL()] = answer.Err
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), causes
}

// keysBelow lists the keys of one provider, in ascending order; with an error, those that it had given before.
func (c *Catalog) keysBelow(ctx context.Context, provider storage.Provider, prefix string) (keys []string, err error) {
	err = c.soon(ctx, func(ctx context.Context) error {
		return provider.List(ctx, prefix, func(object storage.Object) error {
			keys = append(keys, object.Key)
			return nil
		})
	})
	return keys, err
}

// soon asks one provider within answerWithin.
func (c *Catalog) soon(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.answerWithin)
	defer cancel()
	return ask(ctx)
}

// FindID returns the id that a name has: the one that was not deleted. storage.ErrNotFound when there is none. While a
// store that might know of a deletion cannot be asked, the only id that the name ever had is returned all the same: an
// operator needs its password then most of all.
func (c *Catalog) FindID(ctx context.Context, name string) (string, error) {
	ids, causes := c.keysAnywhere(ctx, "catalog/names/"+name+"/")
	var live, unsure []string
	var doubt error
	for _, key := range ids {
		id := strings.TrimSuffix(path.Base(key), ".json")
		switch _, err := load[deleted](ctx, c, workspacePrefix(id)+"deleted.json"); {
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
