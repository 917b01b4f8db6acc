// Command prebuild makes sure that the programs that Holdfast runs but does not link are there, before a test or a stack
// needs them:
//
//	go run ./devstack/prebuild
//
// They are found, or built, as the tests and `holdfast dev` do it, and kept where those look: without it the first test that
// needs one builds it, which takes minutes once. It prints the programs' paths.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"holdfast/devstack"
	"holdfast/devstack/s3gateway"
	"holdfast/devstack/stockrestic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "prebuild:", err)
		os.Exit(1)
	}
}

// run goes one by one: the Go command uses all the machine for each.
func run(ctx context.Context, out, progress io.Writer) error {
	temporal, err := devstack.FindTemporal(ctx, devstack.FindOptions{
		Progress: func(line string) { fmt.Fprintln(progress, line) },
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, temporal)
	gateway, err := s3gateway.Build(ctx, progress)
	if err != nil {
		return fmt.Errorf("building versitygw: %w", err)
	}
	fmt.Fprintln(out, gateway)
	restic, err := stockrestic.Build(ctx, progress)
	if err != nil {
		return fmt.Errorf("building restic: %w", err)
	}
	fmt.Fprintln(out, restic)
	return nil
}
