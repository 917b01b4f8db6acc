// Package docker runs workspaces as Docker containers, through the engine's API and nothing else.
//
// A container gets its content as a plain bind mount at /workspace, so that what it writes is in the agent's directory at
// once and survives the container. It gets few rights: see containers.go for which and why. Only containers that
// carry our own label are ever looked at, stopped or removed.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"holdfast/engine"
)

// Options of New. The zero value is useful.
type Options struct {
	// Host is the engine's address as in DOCKER_HOST; empty is DOCKER_HOST, else the usual socket of the machine or, where
	// that is absent, of the user.
	Host string
	// Logger gets what is no error of a call; the default is slog.Default().
	Logger *slog.Logger
	// DefaultImage is tried when no image is asked for; the default is "debian:stable-slim". "-" never tries one.
	DefaultImage string
	// DefaultImageTimeout bounds how long the registry may be silent then; the default is 5 s. After a failure it is
	// not asked again for five minutes.
	DefaultImageTimeout time.Duration
	// PullTimeout is the longest silence of a pull that was asked for; the default is one minute. A pull that
	// progresses may take any time.
	PullTimeout time.Duration
	// AlwaysPull asks the registry also for images that are here, and uses the copy when it cannot be asked.
	AlwaysPull bool
	// Credentials gives the user name and password (or token) for a registry's host name; nil or false is none.
	Credentials func(registry string) (username, password string, ok bool)
	// HostImage is the repository of images made from this machine's programs; the default is "holdfast/host".
	HostImage string
}

func (o *Options) applyDefaults() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.DefaultImage == "" {
		o.DefaultImage = "debian:stable-slim"
	}
	if o.DefaultImageTimeout <= 0 {
		o.DefaultImageTimeout = 5 * time.Second
	}
	if o.PullTimeout <= 0 {
		o.PullTimeout = time.Minute
	}
	if o.HostImage == "" {
		o.HostImage = "holdfast/host"
	}
}

// Engine runs instances as Docker containers. Make one with New.
type Engine struct {
	options Options
	client  *client.Client
	images  chan struct{} // held while an image is made or pulled: two at once would do the work twice

	mu              sync.Mutex
	hostHash        string // of the host image's inputs, once they were read
	registryFailure time.Time
}

var _ engine.Engine = (*Engine)(nil)

// New makes a client of the engine; it does not ask it anything yet. The API version is negotiated with the first call.
func New(options Options) (*Engine, error) {
	options.applyDefaults()
	settings := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host := options.Host; host != "" {
		settings = append(settings, client.WithHost(host))
	} else if os.Getenv(client.EnvOverrideHost) == "" {
		if socket := userSocket(); socket != "" {
			settings = append(settings, client.WithHost("unix://"+socket))
		}
	}
	opened, err := client.NewClientWithOpts(settings...)
	if err != nil {
		return nil, fmt.Errorf("opening the docker engine: %w", err)
	}
	return &Engine{options: options, client: opened, images: make(chan struct{}, 1)}, nil
}

// userSocket is the socket of a rootless engine where the machine has no other.
func userSocket() string {
	if _, err := os.Stat("/var/run/docker.sock"); err == nil {
		return ""
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return ""
	}
	socket := filepath.Join(dir, "docker.sock")
	if _, err := os.Stat(socket); err != nil {
		return ""
	}
	return socket
}

// Info asks the engine who it is.
func (e *Engine) Info(ctx context.Context) (engine.Info, error) {
	answer, err := e.client.Info(ctx)
	if err != nil {
		return engine.Info{}, mapError("asking the docker engine", err)
	}
	info := engine.Info{Kind: "docker", Version: answer.ServerVersion, Root: answer.DockerRootDir}
	info.Details = fmt.Sprintf("API %s, storage %s, cgroup v%s", e.client.ClientVersion(), answer.Driver, answer.CgroupVersion)
	note := func(text string) { info.Notes = append(info.Notes, text) }
	if !answer.MemoryLimit {
		note("the engine cannot limit memory on this machine")
	}
	if !answer.CPUCfsQuota {
		note("the engine cannot limit CPU on this machine")
	}
	if !answer.PidsLimit {
		note("the engine cannot limit processes on this machine")
	}
	for _, option := range answer.SecurityOptions {
		switch {
		case strings.Contains(option, "name=rootless"):
			note("the engine is rootless: owners of files in the content are mapped")
		case strings.Contains(option, "name=userns"):
			note("the engine remaps users: owners of files in the content are the mapped ones, and root inside cannot write what root made here")
		}
	}
	return info, nil
}

// Close ends the client's connections. Instances go on.
func (e *Engine) Close() error {
	if err := e.client.Close(); err != nil {
		return fmt.Errorf("closing the docker client: %w", err)
	}
	return nil
}

// mapError gives the engine's answers our sentinels. notFound is for calls about containers.
func mapError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%s: %w: %w", doing, engine.ErrUnavailable, err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", doing, engine.ErrNotFound, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// hidden gives the error without any of the environment's values. An error that holds one loses its chain with it: the
// values would be in there too; the sentinels stay.
func hidden(err error, environment map[string]string) error {
	if err == nil {
		return nil
	}
	text := engine.Redact(err.Error(), environment)
	if text == err.Error() {
		return err
	}
	for _, sentinel := range []error{engine.ErrUnavailable, engine.ErrNotFound, engine.ErrConflict, engine.ErrImageNotFound, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("%w: %s", sentinel, text)
		}
	}
	return errors.New(text)
}
