package activities

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"holdfast/activities/pulse"
	"holdfast/guard"
	"holdfast/workspace"
)

// Errors of a node without a live lease. They are transient: the lease comes back, or the work goes elsewhere.
var (
	ErrNoLease = errors.New("this node has no live lease: it may not commit, remove or begin anything")
	ErrSuspect = errors.New("this node's lease has not been renewed for a while: it begins nothing new")
)

const (
	beatInterval = 2 * time.Second
	beatTimeout  = 2 * time.Second
	// fenceBefore is how long before the server's time-out the node stops acting on its lease; suspectBefore when it
	// stops beginning new work (DESIGN section 7: 7 s and 6 s of 10).
	fenceBefore   = 3 * time.Second
	suspectBefore = 4 * time.Second
)

// Lease is a node's right to act now. It counts from the sending of the last beat that was acknowledged, because the
// server counts from its receipt, which is later; so the node always fences itself first.
type Lease struct {
	mutex        sync.Mutex
	epoch        uint64
	timeout      time.Duration
	held         bool
	acknowledged moment // when the last beat that was acknowledged was sent; meaningful while held
	verifyKey    ed25519.PublicKey
	clock        func() moment // the machine's, when nil
}

// moment is a point in time on both of a machine's clocks: the steady one stands still while a machine is suspended,
// the wall clock can be set back.
type moment struct {
	wall   time.Time
	steady time.Duration
}

// steadyOrigin is where the steady clock counts from.
var steadyOrigin = time.Now()

func (l *Lease) now() moment {
	if l.clock != nil {
		return l.clock()
	}
	now := time.Now()
	return moment{wall: now.Round(0), steady: now.Sub(steadyOrigin)}
}

// since is how long ago another moment was, by the clock that says more.
func (m moment) since(other moment) time.Duration {
	return max(m.steady-other.steady, m.wall.Sub(other.wall))
}

// Check returns nil while the lease is live. It is asked immediately before every commit and removal (invariant 7).
func (l *Lease) Check() error {
	if l.left(fenceBefore) <= 0 {
		return ErrNoLease
	}
	return nil
}

// CheckNew returns nil while the node may begin new work (invariant 7).
func (l *Lease) CheckNew() error {
	if err := l.Check(); err != nil {
		return err
	}
	if l.left(suspectBefore) <= 0 {
		return ErrSuspect
	}
	return nil
}

// left is how long the lease goes on, less the margin.
func (l *Lease) left(margin time.Duration) time.Duration {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if !l.held {
		return 0
	}
	return l.timeout - margin - l.now().since(l.acknowledged)
}

// VerifyKey is the control side's public key, which came with the lease.
func (l *Lease) VerifyKey() (ed25519.PublicKey, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.verifyKey, len(l.verifyKey) == ed25519.PublicKeySize
}

// renew counts the lease of an epoch from the sending of a beat that was acknowledged. A late answer to an older
// epoch's beat renews nothing.
func (l *Lease) renew(epoch uint64, sent moment) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.epoch == epoch {
		l.acknowledged, l.held = sent, true
	}
}

func (l *Lease) begin(input workspace.LeaseInput) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.epoch, l.timeout, l.held = input.Epoch, input.Timeout, false
	if len(input.VerifyKey) == ed25519.PublicKeySize {
		l.verifyKey = input.VerifyKey
	}
}

// drop ends the lease of an epoch at once; a newer one is left alone.
func (l *Lease) drop(epoch uint64) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.epoch == epoch {
		l.held = false
	}
}

// Signaler signals a workflow; client.Client does.
type Signaler interface {
	SignalWorkflow(ctx context.Context, workflowID, runID, signalName string, arg any) error
}

// LeaseHolder is the activity that holds a node's lease. It has a connection of its own, so that backups never delay a
// beat.
type LeaseHolder struct {
	Lease       *Lease
	Incarnation string
	Client      interface {
		pulse.Beater
		Signaler
	}
	Logger *slog.Logger
	// Guard, when set, says how many instances there are and which are paused: it travels in the beats, for people to see.
	Guard *Guard
	// Process is the node's guard process, which is told of every acknowledged beat; nil: there is none.
	Process *guard.Client
}

// HoldLease beats until the lease is lost, renewed by the workflow, or given back because the agent stops.
func (h *LeaseHolder) HoldLease(ctx context.Context, input workspace.LeaseInput) (workspace.LeaseResult, error) {
	if input.Incarnation != h.Incarnation {
		return workspace.LeaseResult{}, permanent(workspace.ErrorConflict,
			errors.New("this lease was offered to another start of the agent"))
	}
	h.Lease.begin(input)
	defer h.Lease.drop(input.Epoch)
	h.Logger.Info("lease taken", "epoch", input.Epoch)
	if err := h.Client.SignalWorkflow(ctx, workspace.NodeWorkflowID(input.Node), "", workspace.SignalLeaseTaken,
		workspace.LeaseTaken{Epoch: input.Epoch, Incarnation: input.Incarnation}); err != nil {
		return workspace.LeaseResult{}, fmt.Errorf("saying that the lease was taken: %w", err)
	}
	info := activity.GetInfo(ctx)
	ticker := time.NewTicker(beatInterval)
	defer ticker.Stop()
	for {
		sent, at := h.Lease.now(), guard.Now()
		err := h.beat(ctx, info.TaskToken, h.details(input.Epoch, sent))
		var gone *serviceerror.NotFound
		switch {
		case err == nil:
			h.Lease.renew(input.Epoch, sent)
			h.Process.Beat(at)
		case errors.As(err, &gone), temporal.IsCanceledError(err), errors.Is(err, activity.ErrActivityPaused), errors.Is(err, activity.ErrActivityReset):
			h.Logger.Warn("lease lost", "epoch", input.Epoch, "error", err)
			return workspace.LeaseResult{}, fmt.Errorf("lease %d was taken away: %w", input.Epoch, err)
		default:
			h.Logger.Warn("lease beat failed", "epoch", input.Epoch, "error", err)
		}
		if time.Until(info.Deadline) < input.Timeout {
			return h.result(false), nil // the workflow renews it
		}
		select {
		case <-ticker.C:
		case <-activity.GetWorkerStopChannel(ctx):
			return h.result(true), nil
		case <-ctx.Done():
			return workspace.LeaseResult{}, ctx.Err()
		}
	}
}

func (h *LeaseHolder) details(epoch uint64, sent moment) workspace.LeaseBeat {
	instances, paused := h.Guard.Load()
	guarded, pauseAfter := h.Process.Guarded()
	beat := workspace.LeaseBeat{Epoch: epoch, Sent: sent.wall, Instances: instances, Guarded: guarded, PauseAfter: pauseAfter}
	if len(paused) > 0 {
		told := workspace.SummarizePaused(paused, *instances)
		beat.Pauses = &told
	}
	return beat
}

func (h *LeaseHolder) result(released bool) workspace.LeaseResult {
	guarded, pauseAfter := h.Process.Guarded()
	return workspace.LeaseResult{Released: released, Guarded: guarded, PauseAfter: pauseAfter}
}

func (h *LeaseHolder) beat(ctx context.Context, taskToken []byte, beat workspace.LeaseBeat) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	return h.Client.RecordActivityHeartbeat(ctx, taskToken, beat)
}
