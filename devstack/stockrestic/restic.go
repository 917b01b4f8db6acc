// Package stockrestic is the newest release of restic that Holdfast's repositories are held against: the tests of package
// snapshot let it read, check, change and copy them, beside whatever restic the machine has.
package stockrestic

import (
	"context"
	"io"

	"holdfast/devstack/toolbuild"
)

// Build makes sure that the restic that tools/restic pins is there, and returns its path. It needs Go and the modules'
// source once; progress, which may be nil, is told what takes long.
func Build(ctx context.Context, progress io.Writer) (string, error) {
	return toolbuild.Build(ctx, toolbuild.Options{
		Name: "restic", Package: "github.com/restic/restic/cmd/restic", Progress: progress,
		// Restic's own build leaves them out too: its client for Google's storage speaks HTTP.
		Tags: "disable_grpc_modules",
	})
}
