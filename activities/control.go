package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"holdfast/catalog"
	"holdfast/dataport"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// Control has the activities of the control side. It alone holds the master key.
type Control struct {
	Client  client.Client
	Catalog *catalog.Catalog
	Master  *keys.Master
	Keys    *keys.Control
	Logger  *slog.Logger
	// Snapshots adjusts how repositories are made and opened.
	Snapshots snapshot.Options
	// Stores adjusts how long stores are waited for in one attempt; their policy is the catalog's.
	Stores storage.MirrorOptions
	// SingleWrite is the percentage of workspaces whose snapshots are not yet written to all stores. Range 0 to 100.
	SingleWrite int

	fleet fleetView
	loads nodeLoads
	// sweepPatience is shorter in tests.
	sweepPatience time.Duration
	// drainPoll is shorter in tests.
	drainPoll time.Duration
}

// perStore bounds how long one look at all stores takes, so that one that hangs does not take the others' answer with it.
const perStore = 25 * time.Second

// DescribeControl says what the control side makes public.
func (c *Control) DescribeControl(context.Context) (workspace.ControlInfo, error) {
	return workspace.ControlInfo{Recipient: c.Keys.Recipient(), VerifyKey: c.Keys.VerifyKey(), Policy: c.Catalog.Policy().String()}, nil
}

// ReadHead asks every store for a workspace's head.
func (c *Control) ReadHead(ctx context.Context, input workspace.ReadHeadInput) (workspace.ReadHeadResult, error) {
	ctx, cancel := context.WithTimeout(ctx, perStore)
	defer cancel()
	return c.Catalog.ReadHead(ctx, input.WorkspaceID), nil
}

// Seal seals the repository's password and the person's secrets to a node. A workspace that has no repository yet gets
// its password and its repository here, by one writer, so that no node ever makes a second one.
func (c *Control) Seal(ctx context.Context, input workspace.SealInput) (workspace.SealResult, error) {
	result, err := c.seal(ctx, input)
	return result, classify(err)
}

func (c *Control) seal(ctx context.Context, input workspace.SealInput) (workspace.SealResult, error) {
	var result workspace.SealResult
	password, err := c.password(ctx, input.WorkspaceID, input.Name)
	if err != nil {
		return result, err
	}
	if result.Password, err = keys.SealTo(input.Recipient, password, keys.PurposeRepositoryPassword); err != nil {
		return result, err
	}
	if len(input.Secrets) > 0 {
		plain, err := c.Keys.Open(input.Secrets, keys.PurposeWorkspaceSecrets)
		if err != nil {
			return result, fmt.Errorf("opening the secrets that were sealed to the control side: %w", err)
		}
		var secrets workspace.Secrets
		if json.Unmarshal(plain, &secrets) != nil { // the cause could quote a value
			return result, permanent(workspace.ErrorInvalid, errors.New("the workspace's secrets are not of the expected form"))
		}
		if err := secrets.Validate(); err != nil {
			return result, permanent(workspace.ErrorInvalid, err)
		}
		if result.Secrets, err = keys.SealTo(input.Recipient, plain, keys.PurposeWorkspaceSecrets); err != nil {
			return result, err
		}
	}
	if input.OriginName == "" {
		return result, nil
	}
	origin, err := c.origin(ctx, input.OriginName, input.OriginSnapshot)
	if err != nil {
		return result, err
	}
	result.OriginID, result.OriginSnapshot = origin.id, origin.snapshot
	wrapped, err := c.Catalog.Password(ctx, origin.id)
	if err != nil {
		return result, err
	}
	plain, err := c.Master.Unwrap(ctx, keys.PurposeRepositoryPassword, wrapped.Wrapped)
	if err != nil {
		return result, err
	}
	result.OriginPassword, err = keys.SealTo(input.Recipient, plain, keys.PurposeRepositoryPassword)
	return result, err
}

// password returns a workspace's password; a new workspace gets one, and its repository.
func (c *Control) password(ctx context.Context, id, name string) ([]byte, error) {
	stored, err := c.Catalog.Password(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		wrapped, err := c.Master.Wrap(ctx, keys.PurposeRepositoryPassword, []byte(keys.NewRepositoryPassword()))
		if err != nil {
			return nil, err
		}
		stored, err = c.Catalog.CreatePassword(ctx, catalog.Password{WorkspaceID: id, Name: name, Wrapped: wrapped, MasterKey: c.Master.ID()})
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	password, err := c.Master.Unwrap(ctx, keys.PurposeRepositoryPassword, stored.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrapping the password of workspace %s, which master key %s wrapped: %w", name, stored.MasterKey, err)
	}
	// On all stores, whichever its snapshots are written to: it is then there when they come to be written to more.
	mirror, err := repositoryMirror(c.Catalog.Policy(), c.Catalog.Providers(), id, c.Stores)
	if err != nil {
		return nil, err
	}
	options := c.Snapshots
	if options.KDF == (snapshot.KDFParameters{}) {
		options.KDF = machineMade
	}
	repository, err := snapshot.OpenOrCreate(ctx, mirror, password, options)
	if err != nil {
		return nil, fmt.Errorf("opening the repository of workspace %s: %w", name, err)
	}
	return password, repository.Close()
}

// machineMade is the cost of key derivation for our passwords. A person's password needs a costly one against guessing;
// ours are 256 random bits, which no cost makes harder to guess, and every backup, restore and look derives the key
// again (docs/decisions/0006-key-derivation.md).
var machineMade = snapshot.KDFParameters{N: 1 << 10, R: 8, P: 1}

type originSnapshot struct{ id, snapshot string }

// origin finds the snapshot that a new workspace begins with.
func (c *Control) origin(ctx context.Context, name, wanted string) (originSnapshot, error) {
	id, err := c.Catalog.FindID(ctx, name)
	if errors.Is(err, storage.ErrNotFound) {
		return originSnapshot{}, permanent(workspace.ErrorNotFound, fmt.Errorf("there is no workspace %s to begin with", name))
	}
	if err != nil || wanted != "" {
		return originSnapshot{id, wanted}, err
	}
	var newest *workspace.Commit
	var unheard error
	for _, answer := range c.Catalog.ReadHead(ctx, id).Providers {
		head := answer.Head
		if head == nil && answer.Base != "" {
			head = &workspace.Commit{Token: answer.Token, Snapshot: answer.Base}
		}
		if answer.Error != "" {
			unheard = errors.Join(unheard, fmt.Errorf("%s: %s", answer.Provider, answer.Error))
		}
		if head.Newer(newest) {
			newest = head
		}
	}
	switch {
	case unheard != nil:
		// An older version might be taken without a word (invariant 4).
		return originSnapshot{}, fmt.Errorf("which version of %s is the newest cannot be told (name one with @SNAPSHOT): %w", name, unheard)
	case newest == nil:
		return originSnapshot{}, permanent(workspace.ErrorSnapshotMissing, fmt.Errorf("workspace %s has no snapshot yet", name))
	}
	return originSnapshot{id, newest.Snapshot}, nil
}

// RecordInstance records an instance, or a token that only seals (invariant 3), and with it which stores the workspace's
// snapshots are written to: all that write, look and remove go by the record (invariants 1 and 2).
func (c *Control) RecordInstance(ctx context.Context, record workspace.InstanceRecord) (workspace.RecordInstanceResult, error) {
	stores, err := c.record(ctx, record)
	return workspace.RecordInstanceResult{Stores: stores}, classify(err)
}

func (c *Control) record(ctx context.Context, record workspace.InstanceRecord) (stores []string, err error) {
	if record.Stores, err = c.Catalog.Choose(ctx, record.WorkspaceID, 100-c.SingleWrite); err != nil {
		return nil, err
	}
	err = c.Catalog.RecordInstance(ctx, record)
	if !errors.Is(err, catalog.ErrConflict) {
		return record.Stores, err
	}
	// An attempt whose answer was lost may have chosen by another setting. What it wrote counts (invariant 8).
	there, readErr := c.Catalog.Instance(ctx, record.WorkspaceID, record.Token)
	if readErr != nil || slices.Equal(there.Stores, record.Stores) {
		return nil, err
	}
	record.Stores = there.Stores
	return record.Stores, c.Catalog.RecordInstance(ctx, record)
}

// ReleasePlacement says that a node no longer holds an instance.
func (c *Control) ReleasePlacement(ctx context.Context, input workspace.ReleasePlacementInput) error {
	return classify(c.Catalog.ReleasePlacement(ctx, input.Node, input.WorkspaceID, input.Token))
}

// RecordDeleted records that a workspace was deleted, and removes its repository when a person said so by name.
func (c *Control) RecordDeleted(ctx context.Context, input workspace.RecordDeletedInput) error {
	if err := c.Catalog.RecordDeleted(ctx, input.WorkspaceID, input.Name, input.Token, input.Subject); err != nil {
		return classify(err)
	}
	if input.DiscardData == "" || input.DiscardData != input.Name {
		return nil
	}
	return classify(c.Catalog.DiscardRepository(ctx, input.WorkspaceID, workspace.RepositoryPrefix(input.WorkspaceID)))
}

func (c *Control) nodes(ctx context.Context) ([]string, error) {
	var names []string
	var token []byte
	for {
		page, err := c.Client.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query:         fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running'", workspace.NodeWorkflow),
			NextPageToken: token,
		})
		if err != nil {
			return nil, fmt.Errorf("listing nodes: %w", err)
		}
		for _, execution := range page.Executions {
			id := execution.Execution.WorkflowId
			if prefix := workspace.NodeWorkflowID(""); len(id) > len(prefix) && id[:len(prefix)] == prefix {
				names = append(names, id[len(prefix):])
			}
		}
		if token = page.NextPageToken; len(token) == 0 {
			return names, nil
		}
	}
}

var errNoNode = errors.New("no such node")

func (c *Control) node(ctx context.Context, name string) (workspace.NodeState, error) {
	var state workspace.NodeState
	err := c.query(ctx, workspace.NodeWorkflowID(name), &state)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return state, fmt.Errorf("node %s: %w", name, errNoNode)
	}
	return state, err
}

func (c *Control) query(ctx context.Context, workflowID string, state any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	value, err := c.Client.QueryWorkflow(ctx, workflowID, "", workspace.QueryState)
	if err != nil {
		return fmt.Errorf("asking %s: %w", workflowID, err)
	}
	return value.Get(state)
}

func (c *Control) workspace(ctx context.Context, name string) (workspace.State, error) {
	var state workspace.State
	err := c.query(ctx, workspace.WorkflowID(name), &state)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return state, permanent(workspace.ErrorNotFound, fmt.Errorf("there is no workspace %s", name))
	}
	return state, err
}

// accessLifetime is how long an access token can be used to begin something.
const accessLifetime = 2 * time.Minute

// grant signs one way to reach something on a node.
func (c *Control) grant(info workspace.NodeInfo, claims dataport.Claims) (workspace.Grant, error) {
	claims.Node = info.Name
	claims.Expires = time.Now().Add(accessLifetime)
	token, err := c.Keys.Sign(claims)
	if err != nil {
		return workspace.Grant{}, err
	}
	return workspace.Grant{
		Node: info.Name, Address: info.Address, Fingerprint: info.Fingerprint, Token: token, Snapshot: claims.Snapshot,
	}, nil
}
