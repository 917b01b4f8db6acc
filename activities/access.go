package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/dataport"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// GrantAccess gives a person the ways to reach a workspace's instance or content, best first.
func (c *Control) GrantAccess(ctx context.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
	result, err := c.access(ctx, input)
	return result, classify(err)
}

func (c *Control) access(ctx context.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
	var result workspace.AccessResult
	state, err := c.workspace(ctx, input.Name)
	if err != nil {
		return result, err
	}
	claims := dataport.Claims{
		WorkspaceID: state.ID, Name: state.Name, Verb: dataport.Verb(input.Verb), Subject: input.Subject, Path: input.Path,
	}
	if input.Verb == workspace.VerbDownload {
		return c.download(ctx, input, state, claims)
	}
	if state.Instance == nil {
		return result, permanent(workspace.ErrorRefused, fmt.Errorf("workspace %s is not running (%s)", state.Name, state.Phase))
	}
	if input.Verb == workspace.VerbUpload && (state.Operation == nil || state.Operation.Step != workspace.StepUpload) {
		return result, permanent(workspace.ErrorRefused, fmt.Errorf("workspace %s does not wait for content", state.Name))
	}
	node, err := c.node(ctx, state.Instance.Node)
	if err != nil {
		return result, err
	}
	claims.Token, claims.Volume = state.Instance.Token, state.Instance.Volume
	grant, err := c.grant(node.Info, claims)
	if err != nil {
		return result, err
	}
	result.Grants = append(result.Grants, grant)
	return result, nil
}

// download offers the newest content that exists anywhere (A6): what is on a node first, then the head, served by any
// node that is ready, with the password sealed to it for this once.
func (c *Control) download(ctx context.Context, input workspace.AccessInput, state workspace.State, claims dataport.Claims) (workspace.AccessResult, error) {
	var result workspace.AccessResult
	holder, token, volume := "", uint64(0), ""
	switch {
	case state.Instance != nil:
		holder, token, volume = state.Instance.Node, state.Instance.Token, state.Instance.Volume
	case state.Kept != nil:
		holder, token, volume = state.Kept.Node, state.Kept.Token, state.Kept.Volume
	}
	var unasked error
	patience := perStore
	if holder != "" && input.Snapshot == "" {
		claims := claims
		claims.Token, claims.Volume = token, volume
		switch grant, phase, err := c.onHolder(ctx, holder, claims); {
		case err != nil:
			// What the stores have is still offered (A6).
			unasked = err
			result.Notes = append(result.Notes, fmt.Sprintf("the newest content is on node %s, which cannot be asked about: %v", holder, err))
		default:
			if state.Phase == workspace.Running {
				grant.Source = "live"
			}
			result.Grants = append(result.Grants, grant)
			patience = besides
			if phase != workspace.NodeReady {
				patience = perStore
				result.Notes = append(result.Notes, fmt.Sprintf("the newest content is on node %s, which is %s and may not answer", holder, phase))
			}
		}
		if volume != "" && state.Phase != workspace.Running {
			result.Grants = append(result.Grants, c.onVolume(ctx, holder, claims)...)
		}
	}
	wanted, taken := input.Snapshot, time.Time{}
	if state.Head != nil && (wanted == "" || wanted == state.Head.Snapshot) {
		wanted, taken = state.Head.Snapshot, state.Head.Time
	}
	if wanted == "" {
		if unasked != nil {
			return result, unasked
		}
		if len(result.Grants) == 0 {
			return result, permanent(workspace.ErrorSnapshotMissing, fmt.Errorf("workspace %s has no content yet", state.Name))
		}
		return result, nil
	}
	grants, err := c.fromStores(ctx, claims, wanted, taken, patience)
	if err != nil {
		if len(result.Grants) == 0 {
			return result, err
		}
		// The node's own content needs no store: that is what it is for.
		result.Notes = append(result.Notes, "the newest snapshot cannot be offered now: "+err.Error())
	}
	result.Grants = append(result.Grants, grants...)
	return result, nil
}

// onHolder gives the way to the content that a node holds, and that node's phase.
func (c *Control) onHolder(ctx context.Context, holder string, claims dataport.Claims) (workspace.Grant, workspace.NodePhase, error) {
	node, err := c.node(ctx, holder)
	if err != nil {
		return workspace.Grant{}, "", err
	}
	grant, err := c.grant(node.Info, claims)
	grant.Source, grant.Time = "node", time.Now()
	return grant, node.Phase, err
}

// onVolume gives the ways to content on a shared volume through other nodes than the one that holds it: they read it as it is.
func (c *Control) onVolume(ctx context.Context, holder string, claims dataport.Claims) (grants []workspace.Grant) {
	all, err := c.fleet.look(ctx, c, time.Now().Add(-fleetFor))
	if err != nil {
		c.Logger.Warn("looking for nodes with a shared volume", "volume", claims.Volume, "error", err)
	}
	for _, node := range all.states {
		if node.Info.Name == holder || node.Phase != workspace.NodeReady || !node.Info.HasVolume(claims.Volume) {
			continue
		}
		grant, err := c.grant(node.Info, claims)
		if err != nil {
			c.Logger.Warn("granting access through a node with a shared volume", "node", node.Info.Name, "error", err)
			continue
		}
		grant.Source, grant.Time = "node", time.Now()
		grants = append(grants, grant)
	}
	return grants
}

// besides is how long the stores are asked for a snapshot when a node offers what is newer: the person waits for that.
const besides = 3 * time.Second

func (c *Control) fromStores(ctx context.Context, claims dataport.Claims, wanted string, taken time.Time, patience time.Duration) ([]workspace.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stored, err := c.Catalog.Password(ctx, claims.WorkspaceID)
	if err != nil {
		return nil, err
	}
	password, err := c.Master.Unwrap(ctx, keys.PurposeRepositoryPassword, stored.Wrapped)
	if err != nil {
		return nil, err
	}
	names, err := c.nodes(ctx)
	if err != nil {
		return nil, err
	}
	var grants []workspace.Grant
	var unasked error
	for _, name := range names {
		node, err := c.node(ctx, name)
		if err != nil && !errors.Is(err, errNoNode) {
			unasked = errors.Join(unasked, err)
		}
		if err != nil || node.Phase != workspace.NodeReady {
			continue
		}
		claims := claims
		claims.Snapshot = wanted
		if claims.Sealed, err = keys.SealTo(node.Info.Recipient, password, keys.PurposeRepositoryPassword); err != nil {
			return nil, err
		}
		grant, err := c.grant(node.Info, claims)
		if err != nil {
			return nil, err
		}
		grant.Source, grant.Time = "snapshot", taken
		grants = append(grants, grant)
	}
	if len(grants) == 0 && unasked != nil {
		return nil, fmt.Errorf("looking for a node that could read the snapshot: %w", unasked) // one that does not answer now may be ready
	}
	if len(grants) == 0 {
		return nil, permanent(workspace.ErrorNoNode, errors.New("no node is ready that could read the snapshot from the stores; an operator can, with `holdfast key show` and `holdfast snapshot dump`"))
	}
	return grants, nil
}

// ListSnapshots reads a workspace's snapshots from its repository and marks what the commits say of them.
func (c *Control) ListSnapshots(ctx context.Context, input workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
	result, err := c.listSnapshots(ctx, input)
	return result, classify(err)
}

// mostSnapshots bounds the answer's size; the newest are kept.
const mostSnapshots = 1000

func (c *Control) listSnapshots(ctx context.Context, input workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
	var result workspace.SnapshotsResult
	state, err := c.workspace(ctx, input.Name)
	if err != nil {
		return result, err
	}
	result.WorkspaceID = state.ID
	if state.Token == 0 {
		return result, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*perStore)
	defer cancel()
	commits, holders, failed := c.Catalog.CommitsToShow(ctx, state.ID)
	for provider, err := range failed {
		result.Notes = append(result.Notes, fmt.Sprintf("%s cannot be asked: %v", provider, err))
	}
	known, timed := map[string]bool{}, map[string]bool{} // timed ones may have been forgotten
	for _, commit := range commits {
		known[commit.Snapshot], timed[commit.Snapshot] = true, commit.Timed
		result.Snapshots = append(result.Snapshots, workspace.SnapshotLine{
			Snapshot: commit.Snapshot, Time: commit.Time, Kind: commit.Kind, Token: commit.Token, Sequence: commit.Sequence,
			Files: commit.Files, Bytes: commit.Bytes, Omitted: commit.Omitted, Providers: holders[commit.Snapshot],
			Head: state.Head != nil && state.Head.Snapshot == commit.Snapshot,
		})
		if commit.Excluded != nil {
			result.Snapshots[len(result.Snapshots)-1].Excluded = commit.Excluded.Count
		}
	}
	stored, unseen, err := c.stored(ctx, state.ID)
	switch {
	case err != nil:
		result.Notes = append(result.Notes, "what the stores hold could not be listed, so that snapshots which no commit names are not shown, and those which were forgotten are: "+err.Error())
	case unseen != nil:
		// One that is only where nobody could look is not one that was forgotten.
		result.Notes = append(result.Notes, "not all that the stores hold could be seen, so that some snapshots which no commit names may be missing, and those which were forgotten are shown: "+unseen.Error())
	default:
		for i := range stored {
			delete(timed, stored[i].ID)
		}
		result.Snapshots = slices.DeleteFunc(result.Snapshots, func(line workspace.SnapshotLine) bool {
			return timed[line.Snapshot] && !line.Head
		})
	}
	result.Snapshots = interleave(result.Snapshots, uncommitted(stored, known, state.ID))
	if extra := len(result.Snapshots) - mostSnapshots; extra > 0 {
		result.Snapshots = result.Snapshots[extra:]
		result.Notes = append(result.Notes, fmt.Sprintf("%d older snapshots are not shown", extra))
	}
	return result, nil
}

// stored lists the snapshots of a workspace's repository, and says why there may be more.
func (c *Control) stored(ctx context.Context, id string) (infos []snapshot.Info, unseen, err error) {
	wrapped, err := c.Catalog.Password(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	password, err := c.Master.Unwrap(ctx, keys.PurposeRepositoryPassword, wrapped.Wrapped)
	if err != nil {
		return nil, nil, err
	}
	stores, err := c.Catalog.StoresToRead(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	// It is to be shown: a store that nobody heard is in unseen, and is not waited for.
	mirror, err := repositoryMirror(storage.PolicyAny, stores, id, c.Stores)
	if err != nil {
		return nil, nil, err
	}
	repository, err := snapshot.Open(ctx, mirror, password, c.Snapshots)
	if err != nil {
		return nil, nil, err
	}
	defer repository.Close()
	return repository.SnapshotsSeen(ctx)
}

// interleave puts what no commit names where its time is among the commits, whose own order is the catalog's and not that of clocks.
func interleave(commits, others []workspace.SnapshotLine) []workspace.SnapshotLine {
	slices.SortStableFunc(others, func(a, b workspace.SnapshotLine) int { return a.Time.Compare(b.Time) })
	merged := make([]workspace.SnapshotLine, 0, len(commits)+len(others))
	for _, commit := range commits {
		for len(others) > 0 && others[0].Time.Before(commit.Time) {
			merged, others = append(merged, others[0]), others[1:]
		}
		merged = append(merged, commit)
	}
	return append(merged, others...)
}

// uncommitted are the snapshots that no commit names: recovered ones, those of stock restic, and those whose commit was
// never made. None of them is ever the head (invariant 3).
func uncommitted(stored []snapshot.Info, known map[string]bool, id string) []workspace.SnapshotLine {
	var lines []workspace.SnapshotLine
	for _, info := range stored {
		if known[info.ID] {
			continue
		}
		line := workspace.SnapshotLine{
			Snapshot: info.ID, Time: info.Time, Kind: "foreign", Files: info.Files, Bytes: info.Bytes, Omitted: info.Omissions, Excluded: info.Excluded,
		}
		for _, store := range info.Stores {
			line.Providers = append(line.Providers, strings.TrimSuffix(store, "/"+workspace.RepositoryPrefix(id))) // as commits name them
		}
		switch info.Kind {
		case snapshot.Recovered:
			line.Kind = string(snapshot.Recovered)
		case snapshot.Live, snapshot.Final:
			line.Kind = "uncommitted"
		}
		lines = append(lines, line)
	}
	return lines
}
