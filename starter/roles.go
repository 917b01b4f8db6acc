package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/devstack"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/storage/gcsemulator"
	"holdfast/worker"
	"holdfast/workspace"
)

// guardRole is the command that is a node's guard process.
const guardRole = "guard"

func (p *program) roleCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "worker", Usage: "run one of the two roles: a control worker, or the agent of a node",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "control", Usage: "be a control worker: workflows, catalog, master key; any number may run"},
				&cli.StringFlag{Name: "node", Usage: "be the agent of the node `NAME`"},
				&cli.StringFlag{Name: "data-dir", EnvVars: []string{"HOLDFAST_DATA_DIR"}, Usage: "where a node keeps content and keys (`DIR`; default: nodes/NAME in the state directory)"},
				&cli.StringFlag{Name: "engine", EnvVars: []string{"HOLDFAST_ENGINE"}, Usage: "container `ENGINE` of a node: auto, docker or process"},
				&cli.StringFlag{Name: "listen", EnvVars: []string{"HOLDFAST_LISTEN"}, Usage: "`ADDRESS` of a node's data port (default 127.0.0.1:0)"},
				&cli.StringFlag{Name: "advertise", EnvVars: []string{"HOLDFAST_ADVERTISE"}, Usage: "`ADDRESS` under which others reach the data port"},
				&cli.StringFlag{Name: flagSharedVolumes, EnvVars: []string{"HOLDFAST_SHARED_VOLUMES"}, Usage: "`DIR` that several nodes mount, and that `holdfast volume make` has made a shared volume of (default: none)"},
				&cli.DurationFlag{Name: flagPauseAfter, EnvVars: []string{"HOLDFAST_PAUSE_AFTER"}, Value: worker.DefaultPauseAfter, Usage: "`TIME` (10s to 24h) for which a node may reach neither Temporal nor a store before it pauses its workspaces"},
				&cli.IntFlag{Name: flagDoubleWrite, EnvVars: []string{"HOLDFAST_DOUBLE_WRITE"}, Value: 100, Usage: "`PERCENT` of workspaces whose snapshots a control worker has written to all stores; the others' go to as few as the policy allows"},
				&cli.StringFlag{Name: flagMetricsAddress, EnvVars: []string{"HOLDFAST_METRICS_ADDRESS"}, Usage: "serve Prometheus metrics at /metrics of `HOST:PORT`, to everybody who reaches it (default: nowhere)"},
				&cli.StringFlag{Name: "log-format", EnvVars: []string{"HOLDFAST_LOG_FORMAT"}, Value: "text", Usage: "`FORMAT` of the log on standard error: text or json"},
				&cli.StringFlag{Name: "log-level", EnvVars: []string{"HOLDFAST_LOG_LEVEL"}, Value: "info", Usage: "`LEVEL` of the log: debug, info, warn or error"},
			},
			Action: p.worker,
		},
		{
			Name: guardRole, Usage: "be the process that pauses a node's exclusive workspaces when the node has had no lease for a while; agents start it by themselves",
			Description: "It outlives the node's agent: also when that is killed, frozen or removed, what nothing else may write to stands still.\n" +
				"An agent starts it, or finds it running. Run it as a service of its own where the agent's end takes all its processes along.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "node", Usage: "the node's `NAME`, for its usual data directory"},
				&cli.StringFlag{Name: "data-dir", EnvVars: []string{"HOLDFAST_DATA_DIR"}, Usage: "the node's data directory (`DIR`; default: nodes/NAME in the state directory)"},
				&cli.BoolFlag{Name: "replace", Usage: "take over from one that runs, without a gap; else it is waited for"},
				&cli.StringFlag{Name: "log-format", EnvVars: []string{"HOLDFAST_LOG_FORMAT"}, Value: "text", Usage: "`FORMAT` of the log on standard error: text or json"},
				&cli.StringFlag{Name: "log-level", EnvVars: []string{"HOLDFAST_LOG_LEVEL"}, Value: "info", Usage: "`LEVEL` of the log: debug, info, warn or error"},
			},
			Action: p.guard,
		},
		{
			Name: devstack.StorageRole, Hidden: true, Usage: "serve the one-machine stack's GCS emulator",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "dir", Required: true},
				&cli.StringFlag{Name: "listen", Required: true},
				&cli.StringFlag{Name: "bucket", Required: true},
			},
			Action: p.storageEmulator,
		},
	}
}

// logger writes to standard error as the flags say.
func (p *program) logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, usage("--log-level %q: want debug, info, warn or error", c.String("log-level"))
	}
	options := &slog.HandlerOptions{Level: level}
	switch c.String("log-format") {
	case "text":
		return slog.New(slog.NewTextHandler(p.stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(p.stderr, options)), nil
	default:
		return nil, usage("--log-format %q: want text or json", c.String("log-format"))
	}
}

func (p *program) worker(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	node := c.String("node")
	switch {
	case c.Bool("control") == (node != ""):
		return usage("worker: want exactly one of --control and --node NAME")
	case node != "":
		if err := workspace.ValidateName("--node", node); err != nil {
			return usage("%w", err)
		}
	}
	logger, err := p.logger(c)
	if err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	if c.IsSet(flagMetricsAddress) {
		s.MetricsAddress = c.String(flagMetricsAddress)
	}
	if err := checkMetricsAddress(s.MetricsAddress); err != nil {
		return err
	}
	double := c.Int(flagDoubleWrite)
	if s.DoubleWrite != nil && !c.IsSet(flagDoubleWrite) {
		double = *s.DoubleWrite
	}
	if double < 0 || double > 100 {
		return usage("--%s %d: want a percentage from 0 to 100", flagDoubleWrite, double)
	}
	pauseAfter, err := pauseAfterOf(c, s.PauseAfter)
	if err != nil {
		return err
	}
	d, err := findDeployment(s)
	if err != nil {
		return err
	}
	for _, store := range d.Stores {
		if err := checkStoreAddress("--"+flagStore, store); err != nil {
			return err
		}
	}
	if err := d.requireStores(); err != nil {
		return err
	}
	policy, err := d.policy()
	if err != nil {
		return err
	}
	target, codecKey, err := temporalTarget(c, s)
	if err != nil {
		return err
	}
	config := worker.Config{
		Temporal: target, CodecKey: codecKey, Stores: d.Stores, Policy: policy.String(), GCSEndpoint: d.GCSEndpoint, CAFile: d.CAFile,
		DNS: d.DNS, PrivateZones: d.PrivateZones, Logger: logger, MetricsAddress: d.MetricsAddress,
	}
	if node == "" {
		masterKey, err := d.masterKeyURL()
		if err != nil {
			return err
		}
		return endedWell(c.Context, worker.RunControl(c.Context, worker.ControlConfig{Config: config, MasterKey: masterKey, SingleWrite: 100 - double}))
	}
	return p.agent(c, d, worker.NodeConfig{Config: config, Name: node, PauseAfter: pauseAfter, Version: version()})
}

// checkMetricsAddress refuses what cannot be listened on before anything is opened.
func checkMetricsAddress(address string) error {
	if address == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		return usage("--%s %q: want HOST:PORT", flagMetricsAddress, address).
			withMend("127.0.0.1:9464 is for this machine only, :9464 for everybody who reaches it")
	}
	return nil
}

// pauseAfterOf is --pause-after, else what the settings say.
func pauseAfterOf(c *cli.Context, setting string) (time.Duration, error) {
	after, name := c.Duration(flagPauseAfter), "--"+flagPauseAfter
	if setting != "" && !c.IsSet(flagPauseAfter) {
		var err error
		if after, err = time.ParseDuration(setting); err != nil {
			return 0, usage("pause_after %q: want a time such as 2m", setting)
		}
		name = "pause_after"
	}
	if after < 10*time.Second || after > 24*time.Hour {
		return 0, usage("%s %s: want 10s to 24h", name, after)
	}
	return after, nil
}

// agent runs a node's agent.
func (p *program) agent(c *cli.Context, d deployment, config worker.NodeConfig) error {
	dir := c.String("data-dir")
	if dir == "" {
		dir = filepath.Join(d.StateDir, "nodes", config.Name)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return usage("--data-dir: %w", err)
	}
	kind := c.String("engine")
	if kind == "" {
		kind = d.Engine
	}
	program, err := os.Executable()
	if err != nil {
		return fail(exitFailed, "finding this program, which supervises instances: %w", err)
	}
	// Before the engine makes its own directory in it: a data directory that cannot be written is no fault of the engine.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(exitFailed, "making the data directory: %w", err).
			withMend("make it writable for this user, or name another with --data-dir")
	}
	containers, err := detect.Open(c.Context, kind, detect.Options{
		Process: process.Options{Root: filepath.Join(dir, "engine"), Supervisor: []string{program, superviseRole}},
		Logger:  config.Logger,
	})
	if err != nil {
		return fail(exitFailed, "opening the container engine: %w", err).
			withMend("start it and let this user use it, or run workspaces as processes with --engine process")
	}
	config.GuardCommand = []string{program, guardRole, "--data-dir", dir, "--replace"}
	config.SharedVolumes = d.SharedVolumes
	if given := c.String(flagSharedVolumes); given != "" {
		config.SharedVolumes = given
	}
	if config.SharedVolumes != "" {
		if config.SharedVolumes, err = filepath.Abs(config.SharedVolumes); err != nil {
			return usage("--%s: %w", flagSharedVolumes, err)
		}
	}
	config.DataDir, config.Engine, config.Listen, config.Advertise = dir, containers, c.String("listen"), c.String("advertise")
	return endedWell(c.Context, worker.RunNode(c.Context, config))
}

// endedWell forgives a role that ends because it was told to.
func endedWell(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted)) {
		return nil
	}
	return err
}

func (p *program) storageEmulator(c *cli.Context) error {
	emulator, err := gcsemulator.New(gcsemulator.Options{
		Dir: c.String("dir"), Buckets: []string{c.String("bucket")},
		Logger: slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		return fmt.Errorf("opening the emulator's store: %w", err)
	}
	server, err := emulator.Serve(c.String("listen"), nil)
	if err != nil {
		return errors.Join(err, emulator.Close())
	}
	<-c.Context.Done()
	return errors.Join(server.Close(), emulator.Close())
}
