package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"holdfast/activities"
	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/guard"
	"holdfast/keys"
	"holdfast/workspace"
)

// DefaultPauseAfter is NodeConfig.PauseAfter when that is 0.
const DefaultPauseAfter = activities.DefaultPauseAfter

// NodeConfig configures the agent of a node.
type NodeConfig struct {
	Config
	// Name is the node's, as workspace.ValidateName wants it.
	Name string
	// DataDir holds everything of the node: content, trash, keys. Its file system is the node's disk.
	DataDir string
	// SharedVolumes is where the node has a directory that several nodes mount: what is in it survives each of them. Empty: none.
	SharedVolumes string
	// Engine runs instances. It is closed when the agent stops.
	Engine engine.Engine
	// Listen and Advertise are the data port's addresses (dataport.ServerOptions).
	Listen, Advertise string
	// Reserve is the room in bytes that stays free on the disk. Default 256 MiB.
	Reserve int64
	// PauseAfter is how long the node may reach neither Temporal nor a store before it pauses its instances. Default
	// DefaultPauseAfter.
	PauseAfter time.Duration
	// GuardCommand is the program, with its arguments, that is the node's guard process (package guard). Empty: the node has none,
	// and runs nothing that is exclusive.
	GuardCommand []string
	// Concurrency is how many activities the node runs at once. Default 8: backups are bound by disk and network, and
	// what waits in the queue waits safely.
	Concurrency int
	// Salvages is how many workspaces the node saves and removes what was replaced of at once, beside its other work. Default 2.
	Salvages int
	// Version is the program's.
	Version string
	// Ready, when set, is called once the agent takes work.
	Ready func()

	// leased, when set, is given the lease: tests look at it.
	leased func(*activities.Lease)
}

// RunNode runs the agent of a node until the context ends. Stopping leaves workspaces running: whoever starts the agent
// again goes on with them.
func RunNode(ctx context.Context, config NodeConfig) error {
	if err := runNode(ctx, config); err != nil {
		return fmt.Errorf("node %s: %w", config.Name, err)
	}
	return nil
}

func runNode(ctx context.Context, config NodeConfig) error {
	var err error
	if config.Config, err = config.applyDefaults(); err != nil {
		return err
	}
	if err := workspace.ValidateName("node", config.Name); err != nil {
		return err
	}
	if config.Engine == nil {
		return errors.New("engine: none is configured; give one that runs instances")
	}
	defer config.Engine.Close()
	if config.DataDir == "" {
		return errors.New("data directory: none is configured; give one with --data-dir, on the disk that holds the workspaces")
	}
	if config.Reserve < 0 {
		return fmt.Errorf("reserve: %d bytes: want 0 (the default) or more", config.Reserve)
	}
	if config.PauseAfter < 0 {
		return fmt.Errorf("pause after: %s: want 0 (the default, %s) or more", config.PauseAfter, DefaultPauseAfter)
	}
	if config.Concurrency <= 0 {
		config.Concurrency = 8
	}
	if config.PauseAfter == 0 {
		config.PauseAfter = DefaultPauseAfter
	}
	if config.Salvages <= 0 {
		config.Salvages = 2
	}
	logger := config.Logger.With("node", config.Name)
	config.Logger = logger
	if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w; choose another with --data-dir, or make it writable", err)
	}
	release, lock, err := holdDataDir(ctx, config.DataDir, logger)
	if err != nil {
		return err
	}
	defer release()
	volumes, err := activities.OpenVolumes(config.DataDir)
	if err != nil {
		return err
	}
	identity, err := keys.LoadOrCreateNodeIdentity(filepath.Join(config.DataDir, "node.key"))
	if err != nil {
		return err
	}
	var shared *activities.Volumes
	var mounted *volumeWatch
	if config.SharedVolumes != "" {
		shared = activities.OpenShared(config.SharedVolumes, config.Name, identity.Recipient())
		mounted = watchVolume(shared, config.SharedVolumes)
		defer background(ctx, mounted.run)()
	}
	d, err := open(ctx, config.Config)
	if err != nil {
		return err
	}
	defer d.close()
	lease := &activities.Lease{}
	if config.leased != nil {
		config.leased(lease)
	}
	var leases client.Client
	var connected atomic.Bool // leases is set
	watch := &activities.Guard{
		Node: config.Name, Engine: config.Engine, Catalog: d.catalog, Lease: lease, Volumes: volumes, Logger: logger, PauseAfter: config.PauseAfter,
		Memory: filepath.Join(config.DataDir, "guard.json"), Metrics: activities.NewGuardMetrics(),
		Temporal: func(ctx context.Context) error {
			if !connected.Load() {
				return errors.New("it was not found yet")
			}
			_, err := leases.CheckHealth(ctx, &client.CheckHealthRequest{})
			return err
		},
	}
	d.metrics.MustRegister(watch.Metrics)
	// Before anything is waited for: an agent that is started again while its node is cut off guards what runs there.
	defer background(ctx, watch.Run)()
	var outliving *guard.Client
	if len(config.GuardCommand) > 0 {
		outliving = &guard.Client{
			Dir: GuardDir(config.DataDir), Command: config.GuardCommand, Version: config.Version, PauseAfter: config.PauseAfter,
			Engine: config.Engine, Node: config.Name, Logger: logger,
		}
		defer background(ctx, outliving.Run)()
	}

	// The lease has a connection of its own, so that a busy node never misses a beat.
	work, err := d.connect(ctx, config.Name)
	if err != nil {
		return fmt.Errorf("connecting to Temporal: %w", err)
	}
	defer work.Close()
	if leases, err = d.connect(ctx, config.Name+"-lease"); err != nil {
		return fmt.Errorf("connecting to Temporal for the lease: %w", err)
	}
	defer leases.Close()
	connected.Store(true)

	node := &activities.Node{
		Name: config.Name, Engine: config.Engine, Volumes: volumes, Shared: shared, Catalog: d.catalog, Identity: identity, Lease: lease, Guard: watch,
		Beater: work, Logger: logger, Reserve: config.Reserve, Snapshots: d.snapshots, StorageNote: d.stale.note,
	}
	if outliving != nil {
		node.Holder = outliving
	}
	port, err := dataport.New(dataport.ServerOptions{
		Listen: config.Listen, Advertise: config.Advertise, Node: config.Name, Dir: config.DataDir,
		VerifyKey: lease.VerifyKey, Host: node, Logger: logger,
	})
	if err != nil {
		return fmt.Errorf("opening the data port: %w", err)
	}
	portCtx, stopPort := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPort()
	served := make(chan error, 1)
	// Without its data port a node's content cannot be fetched: an agent that has lost it ends, and is started again.
	ctx, lostPort := context.WithCancel(ctx)
	defer lostPort()
	go func() {
		served <- port.Serve(portCtx)
		lostPort()
	}()

	a := &agent{
		config: config, volumes: volumes, shared: shared, mounted: mounted, lease: lease, client: leases, guard: outliving,
		info: workspace.NodeInfo{
			Name: config.Name, Incarnation: uuid.NewString(), Recipient: identity.Recipient(), Lock: lock,
			Address: port.Address(), Fingerprint: port.Fingerprint(), Version: config.Version,
		},
	}
	a.hold = func() (*tenure, error) {
		return a.begin(work, node, &activities.LeaseHolder{Lease: lease, Incarnation: a.info.Incarnation, Client: leases, Logger: logger, Guard: watch, Process: outliving})
	}
	a.scan(ctx)
	a.awaitGuard(ctx)
	go func() {
		// Beside the work: deleting millions of files must keep the node neither from taking its lease nor from stopping.
		if err := volumes.EmptyTrash(ctx); err != nil && ctx.Err() == nil {
			logger.Warn("emptying the trash", "error", err)
		}
		if shared != nil {
			a.scanShared(ctx)
		}
	}()
	defer background(ctx, node.WatchUse)() // before the engine is closed
	return a.serve(ctx, func() error {
		stopPort()
		return <-served
	})
}

// background runs something until the returned function is called, which waits for its end.
func background(ctx context.Context, run func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// agent announces the node and looks at what is on it.
type agent struct {
	config  NodeConfig
	volumes *activities.Volumes
	shared  *activities.Volumes // nil: none
	mounted *volumeWatch
	lease   *activities.Lease
	client  client.Client
	guard   *guard.Client // may be nil
	info    workspace.NodeInfo
	hold    func() (*tenure, error) // begins to take work
	ready   bool                    // it has taken work before
}

// scan names what is on the node, and what belongs to nobody; nothing of it is ever removed by that (invariant 1).
func (a *agent) scan(ctx context.Context) {
	unknown, err := a.volumes.Unknown()
	if err != nil {
		a.config.Logger.Warn("looking for content that belongs to nobody", "error", err)
	}
	for _, name := range unknown {
		a.config.Logger.Warn("a directory belongs to no instance; it is kept", "directory", name)
	}
	held, err := a.volumes.Held()
	if err != nil {
		a.config.Logger.Warn("looking for content", "error", err)
	}
	for _, content := range held {
		a.config.Logger.Info("content is on this node", "content", content)
	}
	if info, err := a.config.Engine.Info(ctx); err != nil {
		a.config.Logger.Warn("the engine does not answer", "error", err)
	} else {
		a.info.Engine, a.info.Notes = info.Kind, info.Notes
		if info.Details != "" {
			a.info.Notes = append([]string{info.Details}, info.Notes...)
		}
	}
}

// guardWithin is how long the first announcement waits for the guard process.
const guardWithin = 5 * time.Second

// awaitGuard gives the guard process a moment, so that the node's first word is that it has one.
func (a *agent) awaitGuard(ctx context.Context) {
	if a.guard == nil {
		return
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < guardWithin; {
		if guarded, _ := a.guard.Guarded(); guarded {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// GuardDir is where a node's guard process keeps its things.
func GuardDir(dataDir string) string { return filepath.Join(dataDir, "guard") }

func (a *agent) register(ctx context.Context) error {
	a.info.Guarded, a.info.PauseAfter = a.guard.Guarded()
	ctx, cancel := context.WithTimeout(ctx, registerWithin)
	defer cancel()
	before := a.info.Volume
	a.info.Volume = a.mounted.now()
	operation := a.client.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID:                       workspace.NodeWorkflowID(a.config.Name),
		TaskQueue:                workspace.ControlQueue,
		WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		StaticSummary:            "node " + a.config.Name,
		TypedSearchAttributes:    temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind).ValueSet("node")),
	}, workspace.NodeWorkflow, workspace.NodeInput{Node: a.config.Name})
	handle, err := a.client.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: operation,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateName:   workspace.UpdateRegister,
			Args:         []any{workspace.RegisterRequest{Info: a.info}},
			WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	if err != nil {
		a.info.Volume = before // it is still to be said
		return fmt.Errorf("registering: %w", err)
	}
	var state workspace.NodeState
	if err := handle.Get(ctx, &state); err != nil {
		a.info.Volume = before
		var refused *temporal.ApplicationError
		if errors.As(err, &refused) {
			return fmt.Errorf("registering was refused: %w", err)
		}
		return fmt.Errorf("registering: %w", err)
	}
	return nil
}
