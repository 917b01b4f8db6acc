package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// ErrNoTemporal means that there is no Temporal server program and none can be had here. The text says what to do.
var ErrNoTemporal = errors.New("no Temporal server: install Temporal's command line as `temporal` on the PATH " +
	"(https://docs.temporal.io/cli), or set TEMPORAL_ADDRESS to a server that runs, or run holdfast from its source with " +
	"`go run ./starter`, which builds one")

// FindOptions configures FindTemporal.
type FindOptions struct {
	// Progress is told what is being done whenever it takes long, at least every few seconds. Default: nobody.
	Progress func(string)
	// CacheDir is where programs are kept. Default: holdfast/tools in the person's cache directory.
	CacheDir string
	// NoDownload leaves out the download, for machines that must not reach out.
	NoDownload bool
	// Source is the directory of the Go module that pins the program. Default: tools/temporal of the source tree that this
	// program was built in; a released program has none.
	Source string
}

// FindTemporal returns the path of a `temporal` program that can run the dev server: the one on the PATH, else the one
// that the Temporal SDK downloads and keeps, else one built from the Go module that tools/temporal pins. The last two
// happen once per person and machine, and one at a time over all processes.
func FindTemporal(ctx context.Context, options FindOptions) (string, error) {
	if options.Progress == nil {
		options.Progress = func(string) {}
	}
	if options.CacheDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding Temporal: %w", err)
		}
		options.CacheDir = filepath.Join(cache, "holdfast", "tools")
	}
	if err := os.MkdirAll(options.CacheDir, 0o700); err != nil {
		return "", fmt.Errorf("finding Temporal: %w", err)
	}

	if path, err := exec.LookPath("temporal"); err == nil {
		if err = canRunDevServer(ctx, path); err == nil {
			return filepath.Abs(path)
		}
		options.Progress(fmt.Sprintf("the temporal program on the PATH is not used: %v", err))
	}
	if path := sdkDownload(options.CacheDir); isFile(path) && canRunDevServer(ctx, path) == nil {
		return path, nil
	}
	if path := sdkDownload(os.TempDir()); trusted(path) && canRunDevServer(ctx, path) == nil {
		return path, nil
	}
	if path := builtTemporal(ctx, options); path != "" {
		return path, nil
	}
	if !options.NoDownload {
		path, err := downloadTemporal(ctx, options)
		if err == nil {
			return path, nil
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("finding Temporal: %w", err)
		}
		options.Progress(fmt.Sprintf("Temporal's server cannot be downloaded here (%v)", err))
	}
	path, err := buildTemporal(ctx, options)
	if err != nil {
		return "", fmt.Errorf("finding Temporal: %w", err)
	}
	if err := canRunDevServer(ctx, path); err != nil {
		return "", fmt.Errorf("finding Temporal: the one that was built: %w", err)
	}
	return path, nil
}

// neededFlags are those of `server start-dev` without which StartTemporal cannot work; old programs lack some.
var neededFlags = []string{
	"--db-filename", "--sqlite-pragma", "--search-attribute", "--dynamic-config-value", "--ui-ip", "--headless", "--namespace",
}

// canRunDevServer checks a program that may be anything.
func canRunDevServer(ctx context.Context, path string) error {
	help, err := ask(ctx, path, "server", "start-dev", "--help")
	if err != nil {
		return err
	}
	for _, flag := range neededFlags {
		if !strings.Contains(help, flag) {
			return fmt.Errorf("%s server start-dev does not know %s (too old?)", path, flag)
		}
	}
	_, err = temporalVersion(ctx, path)
	return err
}

var serverVersion = regexp.MustCompile(`Server (\d+\.\d+\.\d+[0-9A-Za-z.+-]*)`)

// temporalVersion is the version of the server inside a `temporal` program.
func temporalVersion(ctx context.Context, path string) (string, error) {
	text, err := ask(ctx, path, "--version")
	if err != nil {
		return "", err
	}
	match := serverVersion.FindStringSubmatch(text)
	if match == nil {
		return "", fmt.Errorf("%s --version does not tell its server's version: %.100q", path, text)
	}
	return match[1], nil
}

func ask(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = TemporalOptions{}.environment()
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w (%.200q)", path, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
