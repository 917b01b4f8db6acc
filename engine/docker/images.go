package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"
	"github.com/docker/go-units"

	"holdfast/engine"
)

// registryRest is how long the default image's registry is left alone after it failed.
const registryRest = 5 * time.Minute

// PrepareImage makes the image available: the copy that is here, else the registry's, else (where none was asked for)
// one made from this machine's programs.
func (e *Engine) PrepareImage(ctx context.Context, wanted string, progress func(string)) (engine.Image, error) {
	if progress == nil {
		progress = func(string) {}
	}
	select {
	case e.images <- struct{}{}:
		defer func() { <-e.images }()
	case <-ctx.Done():
		return engine.Image{}, fmt.Errorf("waiting for another image: %w", ctx.Err())
	}
	if wanted == "" {
		return e.prepareDefault(ctx, progress)
	}
	name, err := normalize(wanted)
	if err != nil {
		return engine.Image{}, err
	}
	return e.prepare(ctx, name, wanted, e.options.PullTimeout, progress)
}

func normalize(wanted string) (reference.Named, error) {
	name, err := reference.ParseDockerRef(wanted)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not an image reference: %w", engine.ErrImageNotFound, wanted, err)
	}
	return name, nil
}

func (e *Engine) prepare(ctx context.Context, name reference.Named, wanted string, silence time.Duration, progress func(string)) (engine.Image, error) {
	local, err := e.local(ctx, wanted)
	if err != nil {
		return engine.Image{}, err
	}
	if local.Reference != "" && !e.options.AlwaysPull {
		return local, nil
	}
	pullErr := e.pull(ctx, name, silence, progress)
	if pullErr == nil {
		if local, err = e.local(ctx, wanted); err == nil && local.Reference == "" {
			err = fmt.Errorf("%w: %s was pulled and is not here", engine.ErrImageNotFound, wanted)
		}
		return local, err
	}
	if local.Reference != "" && (errors.Is(pullErr, engine.ErrRegistryName) || errors.Is(pullErr, engine.ErrRegistryTimeout)) {
		progress("the registry cannot be asked; the copy of " + wanted + " that is here is used")
		local.Cached = true
		return local, nil
	}
	return engine.Image{}, pullErr
}

// local finds the image on the engine; one that is not there has no Reference.
func (e *Engine) local(ctx context.Context, wanted string) (engine.Image, error) {
	found, err := e.client.ImageInspect(ctx, wanted)
	if err == nil {
		return engine.Image{Reference: wanted, ID: found.ID}, nil
	}
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return engine.Image{}, nil
	}
	if client.IsErrConnectionFailed(err) {
		return engine.Image{}, fmt.Errorf("looking for the image: %w: %w", engine.ErrUnavailable, err)
	}
	return engine.Image{}, fmt.Errorf("looking for the image: %w", err)
}

// prepareDefault tries the default image for a short time, then makes one.
func (e *Engine) prepareDefault(ctx context.Context, progress func(string)) (engine.Image, error) {
	if e.options.DefaultImage != "-" {
		found, err := e.defaultFromRegistry(ctx, progress)
		if err == nil {
			return found, nil
		}
		if ctx.Err() != nil || errors.Is(err, engine.ErrUnavailable) {
			return engine.Image{}, err
		}
		progress(fmt.Sprintf("no image was given and %s cannot be had (%v); one is made from this machine's programs", e.options.DefaultImage, err))
	}
	return e.hostImage(ctx, progress)
}

var errRegistryRests = errors.New("the registry failed a moment ago and is not asked again yet")

func (e *Engine) defaultFromRegistry(ctx context.Context, progress func(string)) (engine.Image, error) {
	name, err := normalize(e.options.DefaultImage)
	if err != nil {
		return engine.Image{}, err
	}
	local, err := e.local(ctx, e.options.DefaultImage)
	if err != nil || local.Reference != "" {
		return local, err
	}
	e.mu.Lock()
	resting := !e.registryFailure.IsZero() && time.Since(e.registryFailure) < registryRest
	e.mu.Unlock()
	if resting {
		return engine.Image{}, errRegistryRests
	}
	found, err := e.prepare(ctx, name, e.options.DefaultImage, e.options.DefaultImageTimeout, progress)
	if err != nil && ctx.Err() == nil {
		e.mu.Lock()
		e.registryFailure = time.Now()
		e.mu.Unlock()
	}
	return found, err
}

// pullMessage is a line of the engine's answer.
type pullMessage struct {
	Status   string `json:"status"`
	ID       string `json:"id"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error string `json:"error"`
}

// errSilent is the cause of a pull's end when the registry said nothing for too long.
var errSilent = errors.New("no answer for too long")

// pull asks the registry for the image. Only silence ends it, never its length.
func (e *Engine) pull(ctx context.Context, name reference.Named, silence time.Duration, progress func(string)) error {
	auth, err := e.auth(reference.Domain(name))
	if err != nil {
		return err
	}
	pulling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer timer.Stop()
	explain := func(err error) error {
		if errors.Is(context.Cause(pulling), errSilent) {
			return fmt.Errorf("pulling %s: %w: nothing was heard for %s", name, engine.ErrRegistryTimeout, silence)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("pulling %s: %w", name, ctx.Err())
		}
		return fmt.Errorf("pulling %s: %w", name, classifyPull(err, reference.Path(name)))
	}
	progress("pulling " + name.String())
	stream, err := e.client.ImagePull(pulling, name.String(), image.PullOptions{RegistryAuth: auth})
	if err != nil {
		return explain(err)
	}
	defer stream.Close()
	decoder := json.NewDecoder(stream)
	said := map[string]time.Time{}
	for {
		var message pullMessage
		if err := decoder.Decode(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return explain(err)
		}
		timer.Reset(silence)
		if message.Error != "" {
			return explain(errors.New(message.Error))
		}
		if text := message.text(); text != "" && time.Since(said[message.ID]) > time.Second {
			said[message.ID] = time.Now()
			progress(text)
		}
	}
}

func (m pullMessage) text() string {
	switch {
	case m.Progress.Total > 0:
		return fmt.Sprintf("%s: %s %s of %s", m.ID, m.Status, units.HumanSize(float64(m.Progress.Current)), units.HumanSize(float64(m.Progress.Total)))
	case m.ID != "":
		return m.ID + ": " + m.Status
	}
	return m.Status
}

func (e *Engine) auth(domain string) (string, error) {
	if e.options.Credentials == nil {
		return "", nil
	}
	username, password, ok := e.options.Credentials(domain)
	if !ok {
		return "", nil
	}
	encoded, err := registry.EncodeAuthConfig(registry.AuthConfig{Username: username, Password: password, ServerAddress: domain})
	if err != nil {
		return "", fmt.Errorf("encoding the credentials for %s: %w", domain, errors.New("they cannot be encoded"))
	}
	return encoded, nil
}
