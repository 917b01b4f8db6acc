// Command holdfast runs cloud workspaces and never loses their files.
//
// It is thin: it talks to Temporal, where every operation is a durable workflow, and to the data ports of nodes, and
// prints text or JSON. The roles of a deployment (`holdfast worker`) and the one-machine stack (`holdfast dev`) are
// subcommands of the same program.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // working hours are by the clocks of a place, also on a machine that knows none

	"holdfast/engine/process"
)

func main() {
	// The process engine's supervisors are this program too. They outlive the agent that started them.
	if len(os.Args) > 1 && os.Args[1] == superviseRole {
		os.Exit(process.Supervise(os.Args[2:]))
	}
	os.Exit(run(os.Args))
}

// superviseRole is the argument that makes this program a supervisor of one instance of the process engine.
const superviseRole = "engine-supervise"

func run(args []string) int {
	ctx, stop := interruptible(context.Background())
	defer stop()
	program := newProgram()
	program.typed = args
	app := program.app()
	err := app.RunContext(ctx, normalize(app, args))
	return exitCode(err, program.stderr)
}

// interruptible ends the context at the first Ctrl-C or SIGTERM, with errInterrupted as its cause; a second one ends
// the process at once.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			signal.Stop(signals) // from here on the default: die
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}
