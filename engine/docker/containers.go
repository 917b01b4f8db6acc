package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/strslice"

	"holdfast/engine"
)

// ownLabel marks every container that this package made; no other is ever touched.
const ownLabel = "io.holdfast.instance"

const workspacePath = "/workspace"

// neededCapabilities is what root inside needs to install packages, own files and serve low ports. Of Docker's
// defaults this leaves out raw sockets (spoofing), device nodes, chroot, audit records, file capabilities and changes of the
// bounding set: nothing a developer's tools need, and all of them material for an escape.
var neededCapabilities = strslice.StrSlice{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"}

// keepAlive is the default command: any /bin/sh can run it. On SIGTERM it passes the signal to everything that was
// started inside, and waits for it: docker itself would only tell the main process and kill the rest.
const keepAlive = `end() { trap '' TERM INT; kill -TERM -1 2>/dev/null; wait
while :; do set -- /proc/[0-9]*; [ $# -le 2 ] && break; sleep 0.05 2>/dev/null || sleep 1 || break; done; exit 0; }
trap end TERM INT; while :; do sleep 86400 & wait $!; done`

// Create makes the container. Its process runs as the image's user when the agent is root; else as the agent's own
// user, because a backup by an agent that is not root could not read files of others.
func (e *Engine) Create(ctx context.Context, spec engine.Spec) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := spec.Validate(); err != nil {
		return "", err
	}
	if spec.Image == "" {
		return "", fmt.Errorf("%w: no image", engine.ErrInvalid)
	}
	environment := map[string]string{}
	user := ""
	capabilities := neededCapabilities
	if uid := os.Geteuid(); uid != 0 {
		user = fmt.Sprintf("%d:%d", uid, os.Getegid())
		capabilities = nil
		environment["HOME"] = workspacePath // the image knows no such user, whose home would be /
	}
	for name, value := range spec.Environment {
		environment[name] = value
	}
	environment[engine.WorkspaceVariable] = workspacePath
	labels := map[string]string{ownLabel: "1"}
	for name, value := range spec.Labels {
		labels[name] = value
	}
	command := spec.Command
	if len(command) == 0 {
		command = []string{"/bin/sh", "-c", keepAlive}
	}
	pids := spec.PIDs
	if pids == 0 {
		pids = engine.DefaultPIDs
	}
	yes := true
	made, err := e.client.ContainerCreate(ctx, &container.Config{
		Image: spec.Image, Hostname: spec.Hostname, User: user, Labels: labels, WorkingDir: workspacePath,
		Env: engine.EnvironmentList(environment),
		// The command replaces the image's entrypoint as well: what is asked for is what runs.
		Entrypoint:  strslice.StrSlice(command[:1]),
		Cmd:         strslice.StrSlice(command[1:]),
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}, // readiness is asked by us
		StopSignal:  "SIGTERM",
	}, &container.HostConfig{
		Mounts: []mount.Mount{{
			// A typed mount, unlike a bind string, fails when the source is absent instead of making an empty one.
			Type: mount.TypeBind, Source: spec.ContentDir, Target: workspacePath,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		}},
		SecurityOpt: []string{"no-new-privileges:true"},
		CapDrop:     strslice.StrSlice{"ALL"},
		CapAdd:      capabilities,
		Init:        &yes, // reaps what the main process does not
		LogConfig:   container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "10m", "max-file": "3"}},
		// Whether it starts again is decided by the workspace's workflow, never by the engine.
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		Resources: container.Resources{
			PidsLimit: &pids, Memory: spec.MemoryBytes, MemorySwap: spec.MemoryBytes, NanoCPUs: int64(spec.CPUs * 1e9),
		},
	}, nil, nil, spec.Name)
	if err == nil {
		for _, warning := range made.Warnings {
			e.options.Logger.WarnContext(ctx, "the docker engine warns", "instance", spec.Name, "warning", engine.Redact(warning, environment))
		}
		return made.ID, nil
	}
	if errdefs.IsConflict(err) {
		return e.existing(ctx, spec)
	}
	if errdefs.IsNotFound(err) {
		return "", hidden(fmt.Errorf("%w: %w", engine.ErrImageNotFound, err), environment)
	}
	return "", hidden(mapError("creating the container", err), environment)
}

// existing answers a Create whose name is taken.
func (e *Engine) existing(ctx context.Context, spec engine.Spec) (string, error) {
	found, err := e.client.ContainerInspect(ctx, spec.Name)
	if err != nil {
		return "", mapError("looking at the container that has this name", err)
	}
	if found.Config == nil || found.Config.Labels[ownLabel] == "" || !engine.SameLabels(found.Config.Labels, spec.Labels) {
		return "", fmt.Errorf("%w: %s", engine.ErrConflict, spec.Name)
	}
	return found.ID, nil
}

// inspect finds one of our containers.
func (e *Engine) inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	if id == "" || strings.ContainsAny(id, "/\\ \x00?#%") {
		return container.InspectResponse{}, fmt.Errorf("%w: %q", engine.ErrNotFound, id)
	}
	found, err := e.client.ContainerInspect(ctx, id)
	if err != nil {
		return found, mapError("inspecting the container", err)
	}
	if found.Config == nil || found.Config.Labels[ownLabel] == "" {
		return found, fmt.Errorf("%w: %s is not one of ours", engine.ErrNotFound, id)
	}
	if found.State == nil {
		return found, fmt.Errorf("inspecting the container %s: the engine reports no state", id)
	}
	return found, nil
}

func environmentOf(found container.InspectResponse) map[string]string {
	environment := make(map[string]string, len(found.Config.Env))
	for _, entry := range found.Config.Env {
		name, value, _ := strings.Cut(entry, "=")
		if name != "PATH" && name != engine.WorkspaceVariable && name != "HOME" {
			environment[name] = value
		}
	}
	return environment
}

// Start starts the container.
func (e *Engine) Start(ctx context.Context, id string) error {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	if stands(found) {
		return fmt.Errorf("starting %s: %w", id, engine.ErrPaused)
	}
	if found.State.Running {
		return nil
	}
	if err := e.client.ContainerStart(ctx, found.ID, container.StartOptions{}); err != nil {
		if _, gone := e.inspect(ctx, id); gone != nil {
			return gone
		}
		// Not through mapError: here a "not found" is the program, not the container.
		return hidden(fmt.Errorf("starting the container: %w", err), environmentOf(found))
	}
	return nil
}

// Stop signals the container's main process, waits for the grace, and kills the container: with its PID namespace,
// everything in it ends. The waiting is ours: the engine's own stop knows whole seconds only and outlives the context.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) error {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	if !found.State.Running && !found.State.Paused {
		return nil
	}
	if grace >= 0 {
		// Frozen processes cannot hear SIGTERM.
		if err := thaw(found); err != nil {
			return fmt.Errorf("letting the container %s go on to its end: %w", id, err)
		}
	}
	if found.State.Paused && grace >= 0 {
		if err := e.client.ContainerUnpause(ctx, found.ID); err != nil && !errdefs.IsConflict(err) {
			if again, err := e.inspect(ctx, id); err != nil || again.State.Paused {
				return errors.Join(mapError("unpausing the container", err), err)
			}
		}
	}
	if grace > 0 {
		if err := e.kill(ctx, found.ID, "SIGTERM"); err != nil {
			return err
		}
		ended, err := e.waitEnd(ctx, found.ID, grace)
		if err != nil || ended {
			return err
		}
	}
	if grace < 0 {
		if err := e.killWhereItStands(ctx, found); err != nil {
			return fmt.Errorf("killing the container %s where it stands: %w", id, err)
		}
	}
	if err := e.kill(ctx, found.ID, "SIGKILL"); err != nil {
		return err
	}
	if grace < 0 {
		// What was killed while it stood is let go to its end, and to nothing before it. The engine lets go what it has paused.
		if found, err = e.inspect(ctx, id); err != nil {
			return err
		}
		if err := thaw(found); err != nil {
			return fmt.Errorf("letting the container %s go to its end: %w", id, err)
		}
	}
	ended, err := e.waitEnd(ctx, found.ID, time.Minute)
	if err == nil && !ended {
		return fmt.Errorf("the container %s does not end within a minute of SIGKILL", id)
	}
	return err
}

// kill signals the main process; one that is gone is no error.
func (e *Engine) kill(ctx context.Context, id, signal string) error {
	err := e.client.ContainerKill(ctx, id, signal)
	if err == nil || errdefs.IsConflict(err) {
		return nil
	}
	if found, inspectErr := e.inspect(ctx, id); inspectErr == nil && !found.State.Running {
		return nil
	}
	return mapError("signalling the container", err)
}

// waitEnd waits until the container does not run.
func (e *Engine) waitEnd(ctx context.Context, id string, limit time.Duration) (bool, error) {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ended, failed := e.client.ContainerWait(waiting, id, container.WaitConditionNotRunning)
	select {
	case answer := <-ended:
		if answer.Error != nil {
			return false, fmt.Errorf("waiting for the container to end: %s", answer.Error.Message)
		}
		return true, nil
	case err := <-failed:
		if ctx.Err() != nil {
			return false, fmt.Errorf("waiting for the container to end: %w", ctx.Err())
		}
		if waiting.Err() != nil {
			return false, nil
		}
		return false, mapError("waiting for the container to end", err)
	}
}

// Pause freezes the container.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.changePause(ctx, id, true, e.client.ContainerPause)
}

// Unpause lets the container run on.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.changePause(ctx, id, false, e.client.ContainerUnpause)
}

func (e *Engine) changePause(ctx context.Context, id string, paused bool, change func(context.Context, string) error) error {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	if !found.State.Running {
		return fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, id, found.State.Status)
	}
	if stands(found) == paused {
		return nil
	}
	if !paused && !found.State.Paused {
		return thaw(found)
	}
	if err := change(ctx, found.ID); err != nil {
		if again, inspectErr := e.inspect(ctx, id); inspectErr == nil && again.State.Running && again.State.Paused == paused {
			return nil // somebody did it at the same time
		}
		return mapError("pausing or unpausing the container", err)
	}
	return nil
}

// Inspect describes one container.
func (e *Engine) Inspect(ctx context.Context, id string) (engine.Instance, error) {
	found, err := e.inspect(ctx, id)
	if err != nil {
		return engine.Instance{}, err
	}
	labels := map[string]string{}
	for name, value := range found.Config.Labels {
		if name != ownLabel {
			labels[name] = value
		}
	}
	instance := engine.Instance{
		ID: found.ID, Name: strings.TrimPrefix(found.Name, "/"), Image: found.Config.Image, Labels: labels,
		Status: status(found), ExitCode: found.State.ExitCode, OOMKilled: found.State.OOMKilled,
		StartedAt: parseTime(found.State.StartedAt), FinishedAt: parseTime(found.State.FinishedAt),
	}
	return instance, nil
}

// status is the engine's word, and the kernel's where that knows better.
func status(found container.InspectResponse) engine.Status {
	if stands(found) {
		return engine.StatusPaused
	}
	return statusOf(found.State)
}

func statusOf(state *container.State) engine.Status {
	switch {
	case state.Paused:
		return engine.StatusPaused
	case state.Running:
		return engine.StatusRunning
	case state.Status == container.StateCreated:
		return engine.StatusCreated
	}
	return engine.StatusExited
}

// parseTime reads the engine's times; it uses the year 1 for "never", which is Go's zero time.
func parseTime(text string) time.Time {
	parsed, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return parsed
}

// List finds our containers by label, also those that do not run.
func (e *Engine) List(ctx context.Context, labels map[string]string) ([]engine.Instance, error) {
	wanted := filters.NewArgs(filters.Arg("label", ownLabel))
	for name, value := range labels {
		if value == "" {
			wanted.Add("label", name)
		} else {
			wanted.Add("label", name+"="+value)
		}
	}
	found, err := e.client.ContainerList(ctx, container.ListOptions{All: true, Filters: wanted})
	if err != nil {
		return nil, mapError("listing containers", err)
	}
	var list []engine.Instance
	for _, one := range found {
		instance, err := e.Inspect(ctx, one.ID)
		if errors.Is(err, engine.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, instance)
	}
	return list, nil
}

// Remove removes a container that does not run. Volumes stay, and so does the content, which is no volume.
func (e *Engine) Remove(ctx context.Context, id string) error {
	found, err := e.inspect(ctx, id)
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = e.client.ContainerRemove(ctx, found.ID, container.RemoveOptions{RemoveVolumes: false, Force: false})
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	if errdefs.IsConflict(err) && strings.Contains(err.Error(), "already in progress") {
		return e.waitGone(ctx, found.ID)
	}
	return mapError("removing the container", err)
}

// waitGone waits for a removal that somebody else began.
func (e *Engine) waitGone(ctx context.Context, id string) error {
	for {
		if _, err := e.inspect(ctx, id); errors.Is(err, engine.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the container's removal: %w", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
