// Package guard is the process that outlives a node's agent and pauses the node's exclusive instances when the node has had no
// lease for a while, whatever the node reaches and whatever became of the agent (docs/decisions/0018-guard-process.md).
//
// It knows three things: which instances are exclusive, when the newest beat of the lease was sent that was acknowledged, and after
// how long without one it pauses. The agent tells it over a Unix socket; they are on the node's disk too, so that another
// start of the guard goes on with them. It decides nothing else: resuming is the agent's, by the lease and the catalog.
package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/engine/freezer"
)

// Instance is an exclusive instance.
type Instance struct {
	Kind string `json:"kind"` // the engine's, as engine.Info says
	ID   string `json:"id"`   // the engine's own
}

// Pauser pauses the instances of one kind of engine.
type Pauser interface {
	// Pause has the engine do it. It may not answer: the context bounds it.
	Pause(ctx context.Context, id string) error
	// Freeze does it through the kernel alone; engine.ErrNotRunning when nothing of it runs.
	Freeze(ctx context.Context, id string) error
	// States looks at all of them in the kernel. What is not in the answer is Absent.
	States(ids []string) (map[string]freezer.State, error)
}

// Moment is a point in time on both of a machine's clocks. Boot goes on while the machine is suspended and is never set; the
// wall clock is what is left should it stand still.
type Moment struct {
	Boot time.Duration `json:"boot"` // CLOCK_BOOTTIME
	Wall time.Time     `json:"wall"`
}

// Now is this moment.
func Now() Moment {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		panic(fmt.Sprintf("this kernel has no CLOCK_BOOTTIME: %v", err)) // Linux has had it since 2.6.39
	}
	return Moment{Boot: time.Duration(boot.Nano()), Wall: time.Now().Round(0)}
}

// Since is how long ago another moment was, by the clock that says more.
func (m Moment) Since(other Moment) time.Duration {
	return max(m.Boot-other.Boot, m.Wall.Sub(other.Wall))
}

// Errors of a guard's answers.
var (
	ErrHolds   = errors.New("the guard still holds exclusive instances")
	ErrLeaving = errors.New("another guard is about to take over")
	ErrInvalid = errors.New("the guard does not understand this")
)

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the machine's boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
