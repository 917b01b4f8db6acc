package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"holdfast/activities/pulse"
	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/workspace"
)

// errUnguarded: what is exclusive runs only where a process that outlives the agent pauses it.
var errUnguarded = errors.New("no guard process holds the node's exclusive instances")

// Holder keeps a node's exclusive instances from running without a lease, also when the agent is gone.
type Holder interface {
	// Hold takes an instance of the engine's, by its id, from before it is started until it is removed. Nil is the process's
	// own word that it holds it, and has it written down.
	Hold(ctx context.Context, id string) error
}

// PrepareImage makes the image available on the node.
func (n *Node) PrepareImage(ctx context.Context, input workspace.PrepareImageInput) (workspace.PrepareImageResult, error) {
	var result workspace.PrepareImageResult
	err := pulse.Run(ctx, n.Beater, pulse.Options{}, func(ctx context.Context) error {
		if err := n.Lease.CheckNew(); err != nil { // invariant 7
			return err
		}
		image, err := n.Engine.PrepareImage(ctx, input.Image, func(message string) { n.Logger.Info("preparing image", "image", input.Image, "progress", message) })
		if err != nil {
			return fmt.Errorf("preparing the image: %w", err)
		}
		result.Reference = image.Reference
		if image.Made {
			result.Notes = append(result.Notes, "no image was given and none could be pulled: it runs this machine's own programs")
		}
		if image.Cached {
			result.Notes = append(result.Notes, "the registry could not be asked: the image that was on the node is used")
		}
		return nil
	})
	return result, classify(err)
}

// StartInstance creates and starts the container and waits until it takes commands. When it fails, nothing runs.
func (n *Node) StartInstance(ctx context.Context, input workspace.StartInstanceInput) (workspace.StartInstanceResult, error) {
	var result workspace.StartInstanceResult
	err := n.locked(ctx, input.Target, pulse.Options{}, func(ctx context.Context) error {
		if err := n.Lease.CheckNew(); err != nil { // invariant 7
			return err
		}
		volumes, err := n.onOrElsewhere(input.Target.Volume)
		if err != nil {
			return fmt.Errorf("starting: %w", err)
		}
		content, mark, err := volumes.usable(input.Target.WorkspaceID, input.Target.Token)
		if err != nil {
			return fmt.Errorf("starting: %w", err)
		}
		secrets, err := n.secrets(input.Secrets)
		if err != nil {
			return err
		}
		labels, exclusive := n.labels(input.Target), input.Exclusive || input.Target.Volume != ""
		if exclusive {
			if n.Holder == nil {
				return fmt.Errorf("starting: %w", errUnguarded)
			}
			labels[engine.LabelExclusive] = engine.Exclusive
		}
		id, err := n.Engine.Create(ctx, engine.Spec{
			Name:        "holdfast-" + workspace.InstanceName(input.Target.WorkspaceID, input.Target.Token),
			Image:       input.Image,
			Environment: secrets.Environment,
			Labels:      labels,
			ContentDir:  content,
			Hostname:    input.Target.Name,
		})
		if err != nil {
			return fmt.Errorf("creating the instance: %w", err)
		}
		result.Container = id
		if exclusive {
			// Before anything of it runs: from here on the guard pauses it, whatever becomes of this agent.
			if err := n.Holder.Hold(ctx, id); err != nil {
				return fmt.Errorf("starting: %w: %w", errUnguarded, err)
			}
		}
		if mark.State != contentStarted {
			// Before anything can write to the content: from here on only a backup lets it go.
			mark.State = contentStarted
			if err := volumes.mark(mark); err != nil {
				return err
			}
		}
		if err := n.run(ctx, input.Target, id); err != nil {
			if errors.Is(err, engine.ErrPaused) {
				return fmt.Errorf("starting the instance: %w", err) // it is there as it was, and nothing of it moves
			}
			// Whoever goes on must find nothing running; ctx may have ended.
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return errors.Join(fmt.Errorf("starting the instance: %w", err), n.Engine.Stop(stop, id, time.Second))
		}
		return nil
	})
	return result, err
}

func (n *Node) run(ctx context.Context, target workspace.Target, id string) error {
	err := n.Engine.Start(ctx, id)
	if errors.Is(err, engine.ErrPaused) {
		err = n.resume(ctx, target, id)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = n.Engine.Ready(ctx, id)
	if errors.Is(err, context.DeadlineExceeded) {
		return permanent(workspace.ErrorStartFailed, errors.New("the instance did not become ready within two minutes"))
	}
	return err
}

// resume lets an instance go on that the guard paused and that is to run: whoever asks may be late, so that the catalog has
// the last word, as it has for a commit. With an error it is still paused.
func (n *Node) resume(ctx context.Context, target workspace.Target, id string) error {
	newest, err := n.Catalog.NewestToken(ctx, target.WorkspaceID)
	switch {
	case err != nil:
		return fmt.Errorf("%w, and whether another has taken its place cannot be asked: %v", engine.ErrPaused, err) // in words: it is asked again, whatever a store says
	case newest > target.Token: // invariant 7
		return fmt.Errorf("%w, because instance %d has taken its place: %w", engine.ErrPaused, newest, catalog.ErrStale)
	}
	if err := n.Lease.CheckNew(); err != nil { // invariant 7: asking may have taken long
		return fmt.Errorf("%w: %w", engine.ErrPaused, err)
	}
	if err := n.Engine.Unpause(ctx, id); err != nil {
		return fmt.Errorf("%w, and letting it go on failed: %w", engine.ErrPaused, err)
	}
	n.Logger.Info("instance resumed: it is to run, and no other has taken its place", "instance", workspace.InstanceName(target.WorkspaceID, target.Token))
	return nil
}

// FindInstance says whether an instance that ran on this node still does, and that its content is there (invariant 5). It
// changes nothing and waits for no other operation, so that it needs no lease. One that the guard has paused is not said to
// run: whether it goes on is being decided, and it is asked for again.
//
// An instance that runs without its content in its place is ErrorContentForeign, never ErrorContentMissing: what it works
// on is somewhere, and nothing may be started elsewhere beside it (A12).
func (n *Node) FindInstance(ctx context.Context, input workspace.FindInstanceInput) (workspace.FindInstanceResult, error) {
	var result workspace.FindInstanceResult
	err := pulse.Run(ctx, n.Beater, pulse.Options{}, func(ctx context.Context) error {
		paused := false
		instances, err := n.Engine.List(ctx, n.labels(input.Target))
		if err != nil {
			return fmt.Errorf("looking for the instance: %w", err)
		}
		for _, instance := range instances {
			result.Status = string(instance.Status)
			paused = instance.Status == engine.StatusPaused
			result.Runs = instance.Status == engine.StatusRunning || paused
			if result.Runs {
				break
			}
		}
		volumes, err := n.on(input.Target.Volume)
		if err == nil {
			_, _, err = volumes.usable(input.Target.WorkspaceID, input.Target.Token)
		}
		switch {
		case err != nil && result.Runs && errors.Is(err, errNoContent):
			return fmt.Errorf("the instance runs, but on content that is not in its place: %w: %v", errForeign, err)
		case err != nil:
			return fmt.Errorf("looking for the instance: %w", err)
		case paused:
			return fmt.Errorf("%w: %s", engine.ErrPaused, n.Guard.Why(workspace.InstanceName(input.Target.WorkspaceID, input.Target.Token)))
		}
		return nil
	})
	if err != nil {
		return workspace.FindInstanceResult{}, classify(err)
	}
	return result, nil
}

func (n *Node) labels(target workspace.Target) map[string]string {
	return map[string]string{
		engine.LabelWorkspace: target.WorkspaceID,
		engine.LabelToken:     strconv.FormatUint(target.Token, 10),
		engine.LabelNode:      n.Name,
	}
}

// StopInstance runs the pre-stop hook and stops the container: nothing of it runs afterwards. One that is not there does
// not run. When the hook's failure is to keep it from being stopped, it runs on.
func (n *Node) StopInstance(ctx context.Context, input workspace.StopInstanceInput) (workspace.StopInstanceResult, error) {
	before := &hooks{node: n, target: input.Target}
	err := n.locked(ctx, input.Target, pulse.Options{}, func(ctx context.Context) error {
		if err := before.run(ctx, input.PreStop); err != nil {
			return err
		}
		grace := time.Duration(input.GraceSeconds) * time.Second
		if input.Dismiss {
			grace = engine.WhereItStands // its files are another's: it must not do another thing
		}
		if err := n.halt(ctx, n.labels(input.Target), grace); err != nil || !input.Dismiss {
			return err
		}
		return n.dismiss(ctx, n.labels(input.Target))
	})
	return workspace.StopInstanceResult{Hooks: before.results}, err
}

// halt stops every instance that carries the labels.
func (n *Node) halt(ctx context.Context, labels map[string]string, grace time.Duration) error {
	instances, err := n.Engine.List(ctx, labels)
	if err != nil {
		return fmt.Errorf("looking for instances to stop: %w", err)
	}
	return n.haltAll(ctx, instances, grace)
}

func (n *Node) haltAll(ctx context.Context, instances []engine.Instance, grace time.Duration) error {
	for _, instance := range instances {
		if instance.Status == engine.StatusExited || instance.Status == engine.StatusCreated {
			continue
		}
		if err := n.Engine.Stop(ctx, instance.ID, grace); err != nil {
			return fmt.Errorf("stopping instance %s: %w", instance.Name, err)
		}
	}
	return nil
}

// dismiss stops and removes every instance that carries the labels. Content is not touched.
func (n *Node) dismiss(ctx context.Context, labels map[string]string) error {
	instances, err := n.Engine.List(ctx, labels)
	if err != nil {
		return fmt.Errorf("looking for instances to remove: %w", err)
	}
	return n.dismissAll(ctx, instances)
}

// dismissOlder stops and removes this node's instances of the workspace with tokens below the given one. One of the
// same age or newer is left alone: what asks may be a late duplicate, and an engine may serve several nodes.
func (n *Node) dismissOlder(ctx context.Context, target workspace.Target) error {
	instances, err := n.Engine.List(ctx, map[string]string{engine.LabelWorkspace: target.WorkspaceID, engine.LabelNode: n.Name})
	if err != nil {
		return fmt.Errorf("looking for instances to remove: %w", err)
	}
	older := slices.DeleteFunc(instances, func(instance engine.Instance) bool {
		token, err := strconv.ParseUint(instance.Labels[engine.LabelToken], 10, 64)
		return err != nil || token >= target.Token
	})
	return n.dismissAll(ctx, older)
}

func (n *Node) dismissAll(ctx context.Context, instances []engine.Instance) error {
	if err := n.haltAll(ctx, instances, 10*time.Second); err != nil {
		return err
	}
	for _, instance := range instances {
		if err := n.Engine.Remove(ctx, instance.ID); err != nil {
			return fmt.Errorf("removing instance %s: %w", instance.Name, err)
		}
	}
	return nil
}
