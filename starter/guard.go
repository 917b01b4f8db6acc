package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/urfave/cli/v2"

	"holdfast/engine/docker"
	"holdfast/engine/process"
	"holdfast/guard"
	"holdfast/worker"
	"holdfast/workspace"
)

// guard is a node's guard process.
func (p *program) guard(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	logger, err := p.logger(c)
	if err != nil {
		return err
	}
	dir, node := c.String("data-dir"), c.String("node")
	switch {
	case (dir == "") == (node == ""):
		return usage("guard: want one of --data-dir and --node NAME")
	case node != "":
		if err := workspace.ValidateName("--node", node); err != nil {
			return usage("%w", err)
		}
		s, err := loadSettings(c)
		if err != nil {
			return err
		}
		d, err := findDeployment(s)
		if err != nil {
			return err
		}
		dir = filepath.Join(d.StateDir, "nodes", node)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return usage("--data-dir: %w", err)
	}
	// Both kinds: the agent's next start may use the other engine while instances of this one still run.
	containers, err := docker.New(docker.Options{Logger: logger})
	if err != nil {
		return fail(exitFailed, "opening the docker engine: %w", err)
	}
	defer containers.Close()
	program, err := os.Executable()
	if err != nil {
		return fail(exitFailed, "finding this program: %w", err)
	}
	processes, err := process.New(process.Options{Root: filepath.Join(dir, "engine"), Supervisor: []string{program, superviseRole}, Logger: logger})
	if err != nil {
		return fail(exitFailed, "opening the engine's directory: %w", err)
	}
	spareMe(func(text string, err error) { logger.Info(text, "error", err) })
	if err := guard.Run(c.Context, guard.Options{
		Dir: worker.GuardDir(dir), Version: version(), Replace: c.Bool("replace"), Logger: logger,
		Pausers: map[string]guard.Pauser{"docker": containers, "process": processes},
	}); err != nil {
		return endedWell(c.Context, fail(exitFailed, "the guard: %w", err))
	}
	return nil
}

// guardScore makes the kernel end a guard after nearly everything else when memory runs out: it holds little, and what it guards
// is lost with it.
const guardScore = -900

func spareMe(say func(string, error)) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(guardScore)), 0); err != nil {
		say("the guard has the machine's usual share of the kernel's killing when memory runs out: lowering it needs privileges", fmt.Errorf("oom_score_adj: %w", err))
	}
}
