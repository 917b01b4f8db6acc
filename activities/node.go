package activities

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/activities/pulse"
	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// Node has the activities of one node and answers its data port. Its fields are set once, before anything runs.
type Node struct {
	Name    string
	Engine  engine.Engine
	Volumes *Volumes
	// Shared, when set, is the shared volume that this node reaches, of which several nodes have a part each.
	Shared   *Volumes
	Catalog  *catalog.Catalog
	Identity *keys.NodeIdentity
	Lease    *Lease
	// Guard, when set, knows why instances are paused.
	Guard *Guard
	// Holder is the node's guard process, which outlives the agent. Nil: it has none, and runs nothing that is exclusive.
	Holder Holder
	Beater pulse.Beater
	Logger *slog.Logger
	// Reserve is the room in bytes that stays free on the node's disk, so that what is on it can always be worked with
	// (A18). Default 256 MiB.
	Reserve int64
	// PruneGrace is how old a pack must be before a Prune removes it. Default snapshot.DefaultPruneGrace.
	PruneGrace time.Duration
	// Snapshots adjusts how repositories are opened.
	Snapshots snapshot.Options
	// Stores adjusts how long stores are waited for in one attempt; their policy is the catalog's.
	Stores storage.MirrorOptions
	// StorageNote, when set, says what a person should know about how storage is reached now.
	StorageNote func() string
	// Shell is the command that an empty shell request runs. Default: a login shell of whatever kind there is.
	Shell []string

	uploads arrivals
	use     uses
}

const defaultReserve = 256 << 20

func (n *Node) reserve() int64 {
	if n.Reserve > 0 {
		return n.Reserve
	}
	return defaultReserve
}

// stallAfter is how long an activity that moves bytes may move none. It is longer than any single call to a store may
// take, and ends what hangs for another reason.
const stallAfter = 10 * time.Minute

// locked runs work as the only operation on the workspace on this node, while it beats. When the next one begins to wait,
// it asks at once whether it is still wanted: a start that took the place of a backup does not wait for the next beat.
func (n *Node) locked(ctx context.Context, target workspace.Target, options pulse.Options, work func(context.Context) error) error {
	mine := newTurn()
	options.Sooner = mine.wanted
	return classify(pulse.Run(ctx, n.Beater, options, func(ctx context.Context) error {
		unlock, err := n.Volumes.lock(ctx, target.WorkspaceID, mine)
		if err != nil {
			return err
		}
		defer unlock()
		return work(ctx)
	}))
}

// repository opens the workspace's repository on the stores that the workspace's newest record names.
func (n *Node) repository(ctx context.Context, id string, sealed []byte) (*snapshot.Repository, error) {
	stores, err := n.Catalog.StoresOf(ctx, id)
	if err != nil {
		return nil, err
	}
	return n.repositoryOn(ctx, stores, id, sealed)
}

// repositoryOn opens the workspace's repository on these stores, with the password that was sealed to this node. The
// control side made it.
func (n *Node) repositoryOn(ctx context.Context, stores []storage.Provider, id string, sealed []byte) (*snapshot.Repository, error) {
	password, err := n.Identity.Open(sealed, keys.PurposeRepositoryPassword)
	if err != nil {
		return nil, fmt.Errorf("opening the password of workspace %s: %w", id, err)
	}
	return n.repositoryBy(ctx, n.Catalog.Policy(), stores, id, password)
}

// readable opens the workspace's repository for a person who only reads, and waits: what one store says of what is named by its hash is
// enough, so that a store which is away, or silent, is not waited for, whatever the policy requires of a write.
func (n *Node) readable(ctx context.Context, id string, sealed []byte) (*snapshot.Repository, error) {
	password, err := n.Identity.Open(sealed, keys.PurposeRepositoryPassword)
	if err != nil {
		return nil, fmt.Errorf("opening the password of workspace %s: %w", id, err)
	}
	stores, err := n.Catalog.StoresToRead(ctx, id)
	if err != nil {
		return nil, err
	}
	return n.repositoryBy(ctx, storage.PolicyAny, stores, id, password)
}

func (n *Node) repositoryBy(ctx context.Context, policy storage.Policy, stores []storage.Provider, id string, password []byte) (*snapshot.Repository, error) {
	mirror, err := repositoryMirror(policy, stores, id, n.Stores)
	if err != nil {
		return nil, err
	}
	options := n.Snapshots
	options.Logger = n.Logger
	return snapshot.Open(ctx, mirror, password, options)
}

func repositoryMirror(policy storage.Policy, stores []storage.Provider, id string, options storage.MirrorOptions) (*storage.Mirror, error) {
	providers := make([]storage.Provider, len(stores))
	for i, provider := range stores {
		providers[i] = storage.Sub(provider, workspace.RepositoryPrefix(id))
	}
	options.Policy = policy
	return storage.NewMirror(providers, options)
}

// topLevel turns the URLs of a workspace's part of the stores into those of the stores.
func topLevel(c *catalog.Catalog, id string, urls []string) []string {
	var names []string
	for _, provider := range c.Providers() {
		part := storage.Sub(provider, workspace.RepositoryPrefix(id)).URL()
		for _, url := range urls {
			if url == part {
				names = append(names, provider.URL())
			}
		}
	}
	return names
}

// secrets opens what the person gave for this node to read.
func (n *Node) secrets(sealed []byte) (workspace.Secrets, error) {
	var secrets workspace.Secrets
	if len(sealed) == 0 {
		return secrets, nil
	}
	plain, err := n.Identity.Open(sealed, keys.PurposeWorkspaceSecrets)
	if err != nil {
		return secrets, fmt.Errorf("opening the workspace's secrets: %w", err)
	}
	// The cause could quote a value.
	if json.Unmarshal(plain, &secrets) != nil {
		return secrets, fmt.Errorf("opening the workspace's secrets: %w", keys.ErrDamaged)
	}
	return secrets, nil
}

// meter collects progress for heartbeats.
type meter struct {
	mutex      sync.Mutex
	checkpoint workspace.BackupCheckpoint
	note       func() string
}

func (m *meter) update(p snapshot.Progress) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.checkpoint = workspace.BackupCheckpoint{
		Files: p.Files, Bytes: p.Bytes, BytesUploaded: p.BytesUploaded, PacksUploaded: p.PacksUploaded,
		TotalFiles: p.TotalFiles, TotalBytes: p.TotalBytes,
	}
}

func (m *meter) options() pulse.Options {
	return pulse.Options{
		StallAfter: stallAfter,
		Progress: func() int64 {
			m.mutex.Lock()
			defer m.mutex.Unlock()
			return m.checkpoint.Files + m.checkpoint.Bytes + m.checkpoint.BytesUploaded + m.checkpoint.PacksUploaded
		},
		Checkpoint: func() any {
			m.mutex.Lock()
			defer m.mutex.Unlock()
			checkpoint := m.checkpoint
			checkpoint.At = time.Now()
			if m.note != nil {
				checkpoint.Note = m.note()
			}
			return checkpoint
		},
	}
}
