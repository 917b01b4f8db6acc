package devstack

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"holdfast/devstack/toolbuild"
)

// What is built when there is nothing else; tools/temporal pins the same version, and a test compares them.
const (
	temporalCLIVersion = "v1.5.1"
	temporalCLIPackage = "github.com/temporalio/cli/cmd/temporal"
)

// builtTemporal returns the path of the program that was built before; empty when there is none that can be used.
func builtTemporal(ctx context.Context, options FindOptions) string {
	path := filepath.Join(options.CacheDir, temporalCLIVersion, "temporal") // as toolbuild.Options.CacheDir says
	if !isFile(path) || canRunDevServer(ctx, path) != nil {
		return ""
	}
	return path
}

// buildTemporal builds the program once; other processes that want it at the same time wait for that.
func buildTemporal(ctx context.Context, options FindOptions) (string, error) {
	options.Progress("building Temporal's server from source, once: about 3 minutes on 2 cores")
	path, err := toolbuild.Build(ctx, toolbuild.Options{
		Name:     "temporal",
		Package:  temporalCLIPackage,
		Version:  temporalCLIVersion,
		Dir:      options.Source,
		CacheDir: options.CacheDir,
		Progress: lines(options.Progress),
		Install:  ErrNoTemporal.Error(),
	})
	if errors.Is(err, toolbuild.ErrNoSource) {
		return "", ErrNoTemporal
	}
	if err != nil {
		return "", fmt.Errorf("building Temporal's server: %w", err)
	}
	return path, nil
}

// lines is a writer of whole lines.
type lines func(string)

// Write implements io.Writer.
func (f lines) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		f(strings.TrimRight(line, "\r\n"))
	}
	return len(p), nil
}
