package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"holdfast/activities/pulse"
	"holdfast/storage"
	"holdfast/workspace"
)

const (
	// drainPoll is between two looks at what is being moved.
	drainPoll = 500 * time.Millisecond
	// drainReport is how soon what has changed is told to the node's workflow, and at the latest that nothing has.
	drainReport  = 5 * time.Second
	drainSilence = 30 * time.Second
	// drainAnswer bounds one request to a workspace.
	drainAnswer = 20 * time.Second
)

// DrainNode makes one round of a drain: it looks at everything that the catalog places on the node, asks workspaces to
// move, no more at once than the plan says, follows those, and ends when there is something to tell.
//
// It remembers nothing and needs no checkpoint: what was asked for before, by an attempt that was cut too, is read from the
// workspaces, and a workspace that has left refuses.
func (c *Control) DrainNode(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
	d := &drainRound{control: c, input: input, limit: rate.NewLimiter(tellRate, tellPage), poll: drainPoll, report: drainReport, here: map[string]*drainee{}}
	if c.drainPoll > 0 {
		d.poll, d.report = c.drainPoll, 4*c.drainPoll
	}
	err := pulse.Run(ctx, c.Client, pulse.Options{}, d.run)
	if err != nil {
		return workspace.DrainResult{}, classify(err)
	}
	return d.result(), nil
}

type drainRound struct {
	control *Control
	input   workspace.DrainInput
	limit   *rate.Limiter
	poll    time.Duration
	report  time.Duration

	mutex   sync.Mutex
	here    map[string]*drainee // by name
	left    []workspace.DrainItem
	unheard []error
}

// drainee is a workspace that has, or had, something on the node.
type drainee struct {
	id   string // empty when the catalog does not place it here
	step workspace.DrainStep
	at   time.Time // when it was seen to be gone
}

func (d *drainRound) run(ctx context.Context) error {
	began := time.Now()
	if err := d.look(ctx); err != nil {
		return err
	}
	// A larger node takes longer to look at, and is looked at as much less often.
	report, silence := max(d.report, 4*time.Since(began), d.input.Report), max(drainSilence, 4*time.Since(began), d.input.Report)
	if d.input.Round == 1 {
		return nil // so that what has gone later is known to have been here
	}
	for {
		changed, err := d.fill(ctx)
		switch {
		case errors.Is(err, errDrainOver):
			return nil
		case err != nil:
			return err
		}
		under := d.under()
		past := time.Since(began)
		if len(under) == 0 || past > silence || changed && past > report {
			return nil
		}
		select {
		case <-time.After(d.poll):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.refresh(ctx, under); err != nil {
			return err
		}
	}
}

// look sees everything that the catalog places on the node, and how those are that an earlier round knew.
func (d *drainRound) look(ctx context.Context) error {
	placements, err := d.control.Catalog.Placements(ctx, d.input.Node)
	if err != nil {
		d.doubt(fmt.Errorf("listing what is on the node: %w", err))
	}
	tokens := map[string]uint64{}
	for _, placement := range placements {
		tokens[placement.WorkspaceID] = placement.Token // the newest of each
	}
	var group errgroup.Group
	group.SetLimit(tellParallel)
	for id, token := range tokens {
		group.Go(func() error {
			if err := d.limit.Wait(ctx); err != nil {
				return err
			}
			described, err := d.control.Catalog.Placement(ctx, d.input.Node, id, token)
			switch {
			case errors.Is(err, storage.ErrNotFound):
				return nil // released meanwhile
			case err != nil:
				d.doubt(fmt.Errorf("reading whose %s is: %w", workspace.InstanceName(id, token), err))
				return nil
			}
			d.see(ctx, described.Name, id, token, listed)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, name := range d.input.On {
		if d.one(name) != nil {
			continue
		}
		group.Go(func() error {
			if err := d.limit.Wait(ctx); err != nil {
				return err
			}
			d.see(ctx, name, "", 0, notListed)
			return nil
		})
	}
	return group.Wait()
}

func (d *drainRound) doubt(err error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.unheard = append(d.unheard, err)
}

func (d *drainRound) one(name string) *drainee {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.here[name]
}

// listing says what the catalog's listing had of a workspace.
type listing int

const (
	notListed listing = iota
	listed
	listedBefore // and what it says itself is newer
)

// see asks a workspace how it is and decides what is done about it. The token is of the placement that the listing had.
func (d *drainRound) see(ctx context.Context, name, id string, token uint64, by listing) {
	state, err := d.control.workspace(ctx, name)
	placed := by == listed || by == listedBefore &&
		(err != nil || slices.ContainsFunc(state.Placed, func(p workspace.Placed) bool { return p.Node == d.input.Node }))
	step := workspace.DrainStep{DrainItem: workspace.DrainItem{Name: name}}
	var typed *temporal.ApplicationError
	switch {
	case errors.As(err, &typed) && typed.Type() == string(workspace.ErrorNotFound) && !placed:
		step.Verdict = workspace.DrainGone
	case errors.As(err, &typed) && typed.Type() == string(workspace.ErrorNotFound), err == nil && id != "" && state.ID != id:
		step.Verdict, step.Why, step.Only = workspace.DrainLeft, "it belongs to no workspace that is known; it is kept", true
	case err != nil:
		step.Verdict, step.Why = workspace.DrainWait, "it could not be asked: "+err.Error()
	default:
		step = workspace.DecideDrain(state, d.input.Node, placed, d.input.Plan, time.Now())
		if step.Verdict == workspace.DrainLeft && by == listed && d.released(ctx, id, token) {
			step = workspace.DecideDrain(state, d.input.Node, false, d.input.Plan, time.Now())
		}
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if step.Verdict == workspace.DrainLeft {
		delete(d.here, name)
		d.left = append(d.left, step.DrainItem)
		return
	}
	now := time.Time{}
	if step.Verdict == workspace.DrainGone {
		now = time.Now()
	}
	d.here[name] = &drainee{id: id, step: step, at: now}
}

// released says whether a placement is gone that was there before its workspace was asked: it has left between the two.
func (d *drainRound) released(ctx context.Context, id string, token uint64) bool {
	_, err := d.control.Catalog.Placement(ctx, d.input.Node, id, token)
	return errors.Is(err, storage.ErrNotFound)
}

// under are the names of those of whom something was asked that is not done.
func (d *drainRound) under() []string { return d.having(workspace.DrainUnder) }

func (d *drainRound) having(verdicts ...workspace.DrainVerdict) (names []string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for name, one := range d.here {
		if slices.Contains(verdicts, one.step.Verdict) {
			names = append(names, name)
		}
	}
	slices.Sort(names) // two attempts at once ask the same ones, who refuse to be asked twice
	return names
}

// fill asks as many workspaces as may be under way. It says whether anything has changed since the look.
func (d *drainRound) fill(ctx context.Context) (changed bool, err error) {
	room := d.input.Plan.Parallel - len(d.under())
	for _, name := range d.having(workspace.DrainMove, workspace.DrainStop) {
		if room <= 0 {
			break
		}
		if err := d.allowed(ctx); err != nil {
			return true, err
		}
		under, err := d.ask(ctx, name)
		if err != nil {
			return true, err
		}
		if under {
			room--
		}
	}
	return len(d.having(workspace.DrainGone)) > 0, nil
}

// errDrainOver ends a round that is not the newest of a drain that goes on.
var errDrainOver = errors.New("the drain was ended, or another round has begun")

// allowed asks the node's workflow, before every request, whether this round still is the drain: one that was cancelled, or
// that another round has followed, asks for nothing more.
func (d *drainRound) allowed(ctx context.Context) error {
	state, err := d.control.node(ctx, d.input.Node)
	if err != nil {
		return err
	}
	drain := state.Drain
	if !drain.Active() || drain.ID != d.input.Plan.ID || drain.Round != d.input.Round || state.Cordoned == "" || state.Phase != workspace.NodeReady {
		return errDrainOver
	}
	return nil
}

// ask looks at a workspace once more and asks it to move, or to stop.
func (d *drainRound) ask(ctx context.Context, name string) (under bool, err error) {
	d.seeAgain(ctx, name)
	one := d.one(name)
	if one == nil {
		return false, nil // what is left of it there is nothing to move
	}
	subject := "the drain of node " + d.input.Node + " by " + d.input.Plan.By
	options := client.UpdateWorkflowOptions{
		UpdateID: d.input.Plan.OperationID(uuid.NewString()), WorkflowID: workspace.WorkflowID(name), WaitForStage: client.WorkflowUpdateStageCompleted,
	}
	switch one.step.Verdict {
	case workspace.DrainMove:
		options.UpdateName, options.Args = workspace.UpdateMove, []any{workspace.MoveRequest{Subject: subject, From: d.input.Node}}
	case workspace.DrainStop:
		options.UpdateName, options.Args = workspace.UpdateStop, []any{workspace.StopRequest{Subject: subject, From: d.input.Node}}
	default:
		return one.step.Verdict == workspace.DrainUnder, nil
	}
	answer, cancel := context.WithTimeout(ctx, drainAnswer)
	defer cancel()
	handle, err := d.control.Client.UpdateWorkflow(answer, options)
	if err == nil {
		err = handle.Get(answer, nil)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	var refused *temporal.ApplicationError
	if errors.As(err, &refused) {
		one.step.Verdict, one.step.Why = workspace.DrainWait, refused.Message()
		return false, nil
	}
	// One whose answer was lost may be under way: it says so itself when it is asked the next time.
	one.step.Verdict, one.step.Why, one.step.Mend, one.step.Again = workspace.DrainUnder, "it is to be moved", "", time.Time{}
	if err != nil {
		d.control.Logger.Warn("asking a workspace to leave a node", "workspace", name, "node", d.input.Node, "error", err)
	}
	return true, nil
}

// refresh looks again at what is under way.
func (d *drainRound) refresh(ctx context.Context, names []string) error {
	var group errgroup.Group
	group.SetLimit(tellParallel)
	for _, name := range names {
		group.Go(func() error {
			if err := d.limit.Wait(ctx); err != nil {
				return err
			}
			d.seeAgain(ctx, name)
			return nil
		})
	}
	return group.Wait()
}

// seeAgain is see of what was seen before.
func (d *drainRound) seeAgain(ctx context.Context, name string) {
	one, by := d.one(name), listedBefore
	if one.id == "" {
		by = notListed
	}
	d.see(ctx, name, one.id, 0, by)
}

// result is what is known in the end.
func (d *drainRound) result() workspace.DrainResult {
	var result workspace.DrainResult
	for name, one := range d.here {
		if one.step.Verdict == workspace.DrainGone {
			if slices.Contains(d.input.On, name) {
				result.Departed = append(result.Departed, workspace.DrainDeparture{Name: name, To: one.step.To, At: one.at})
			}
			continue
		}
		result.On = append(result.On, name)
		if one.step.Verdict == workspace.DrainUnder {
			result.Moving = append(result.Moving, one.step.DrainItem)
		} else {
			result.Waiting = append(result.Waiting, one.step.DrainItem)
		}
	}
	slices.Sort(result.On)
	slices.SortFunc(result.Departed, func(a, b workspace.DrainDeparture) int {
		return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Name, b.Name))
	})
	result.LeftCount = len(d.left)
	for _, list := range []*[]workspace.DrainItem{&result.Moving, &result.Waiting, &d.left} {
		slices.SortFunc(*list, func(a, b workspace.DrainItem) int {
			if trouble := a.Mend != ""; trouble != (b.Mend != "") {
				return map[bool]int{true: -1, false: 1}[trouble] // those in trouble first
			}
			return strings.Compare(a.Name, b.Name)
		})
		*list = (*list)[:min(len(*list), workspace.MaxDrainItems)]
	}
	result.Left = d.left
	if err := errors.Join(d.unheard[:min(len(d.unheard), 3)]...); err != nil {
		result.Unheard = err.Error()
	}
	return result
}
