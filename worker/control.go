package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.temporal.io/sdk/worker"

	"holdfast/activities"
	"holdfast/catalog"
	"holdfast/keys"
	"holdfast/storage"
	"holdfast/workflows"
	"holdfast/workspace"
)

// ControlConfig configures a control worker.
type ControlConfig struct {
	Config
	// MasterKey is the URL of the master key (keys.OpenMaster). Only control workers and operators have it.
	MasterKey string
	// SingleWrite is the percentage of workspaces, by their ids, whose snapshots are not yet written to all stores but to
	// as few as the policy allows. It is looked at when an instance is recorded. Range 0 to 100.
	SingleWrite int
	// Ready, when set, is called once the worker takes work, with the public key that secrets are sealed to.
	Ready func(recipient string)
}

// RunControl runs a control worker until the context ends. It holds no state: any number of them may run.
func RunControl(ctx context.Context, config ControlConfig) error {
	var err error
	if config.Config, err = config.applyDefaults(); err != nil {
		return fmt.Errorf("control worker: %w", err)
	}
	if config.SingleWrite < 0 || config.SingleWrite > 100 {
		return fmt.Errorf("control worker: single write: %d %%: want 0 to 100", config.SingleWrite)
	}
	d, err := open(ctx, config.Config)
	if err != nil {
		return fmt.Errorf("control worker: %w", err)
	}
	defer d.close()
	master, err := keys.OpenMaster(ctx, config.MasterKey)
	if err != nil {
		return fmt.Errorf("control worker: opening the master key: %w", err)
	}
	defer master.Close()
	identity, err := controlIdentity(ctx, d.catalog, master)
	if err != nil {
		return fmt.Errorf("control worker: %w", err)
	}
	temporal, err := d.connect(ctx, "control")
	if err != nil {
		return fmt.Errorf("control worker: connecting to Temporal: %w", err)
	}
	defer temporal.Close()

	control := worker.New(temporal, workspace.ControlQueue, worker.Options{
		WorkerStopTimeout: config.StopGrace,
		// A control worker that died keeps a workflow's tasks for so long; the default of 5 s is felt by people.
		StickyScheduleToStartTimeout: time.Second,
		// Well below a workflow task's 10 s. The default of 1 s takes a machine that stands still for a deadlock.
		DeadlockDetectionTimeout:           5 * time.Second,
		MaxConcurrentActivityExecutionSize: 64,
	})
	workflows.Register(control)
	effects := &activities.Control{
		Client: temporal, Catalog: d.catalog, Master: master, Keys: identity, Logger: config.Logger,
		Snapshots: d.snapshots, SingleWrite: config.SingleWrite,
	}
	activities.RegisterControl(control, effects)
	if err := control.Start(); err != nil {
		return fmt.Errorf("control worker: starting: %w", err)
	}
	config.Logger.Info("control worker takes work", "recipient", identity.Recipient())
	if config.Ready != nil {
		config.Ready(identity.Recipient())
	}
	var watching sync.WaitGroup
	if config.MetricsAddress != "" { // else nobody would see it
		fleet := activities.NewFleetMetrics()
		d.metrics.MustRegister(fleet)
		watching.Go(func() { effects.WatchFleet(ctx, fleet) })
	}
	<-ctx.Done()
	watching.Wait()
	control.Stop()
	return nil
}

// controlIdentity reads the control side's keys from the catalog, or makes them when the deployment is new.
func controlIdentity(ctx context.Context, c *catalog.Catalog, master *keys.Master) (*keys.Control, error) {
	stored, err := c.Control(ctx)
	if errors.Is(err, storage.ErrNotFound) {
		var made *keys.Control
		if made, err = keys.NewControl(); err != nil {
			return nil, err
		}
		var wrapped []byte
		if wrapped, err = made.MarshalWrapped(ctx, master); err != nil {
			return nil, err
		}
		stored, err = c.CreateControl(ctx, catalog.Control{Wrapped: wrapped, MasterKey: master.ID(), Recipient: made.Recipient()})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the control side's keys from the catalog: %w", err)
	}
	identity, err := keys.OpenControl(ctx, master, stored.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w (the catalog's were wrapped by master key %s, this one is %s)", err, stored.MasterKey, master.ID())
	}
	return identity, nil
}

// ControlRecipient reads the public key that secrets are sealed to from the catalog; storage.ErrNotFound before a
// control worker has run.
func ControlRecipient(ctx context.Context, config Config) (string, error) {
	d, err := open(ctx, config)
	if err != nil {
		return "", err
	}
	defer d.close()
	stored, err := d.catalog.Control(ctx)
	return stored.Recipient, err
}
