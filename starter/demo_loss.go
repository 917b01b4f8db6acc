package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/engine"
	"holdfast/snapshot"
	"holdfast/workspace"
)

// lossOutcome is what the loss of its node meant for a workspace.
type lossOutcome struct {
	recovery *workspace.Recovery
	away     time.Duration // from the loss of power until it ran elsewhere
	late     manifest      // what was on the lost node, with the work that no snapshot had
	saved    string        // the recovered snapshot
	drained  bool
}

func (d *demo) lossActs() []act {
	return []act{
		{"Bring up the stack", d.bringUp},
		{"Start three workspaces and work in them", d.work},
		{"Snapshot them, and work on", d.snapshotAndWorkOn},
		{"The machine of node-1 loses power", d.powerLoss},
		{"The machine is switched on again", d.machineReturns},
		{"Temporal stands still", d.temporalStandsStill},
		{"node-2 is drained for maintenance", d.drainForMaintenance},
		{"What happened", d.lossSummary},
	}
}

// lateScript is work that no snapshot has when the node is lost.
const lateScript = `set -e
echo "written after the snapshot by $1" > notes/late.md
head -c 1048576 /dev/urandom > late.bin
sync
`

func (d *demo) snapshotAndWorkOn(ctx context.Context) error {
	for _, space := range d.spaces {
		accepted, err := d.control.Update(ctx, space.name, workspace.UpdateBackup, newRequestID(), workspace.BackupRequest{Subject: demoSubject})
		if err != nil {
			return err
		}
		state, err := d.finish(ctx, space.name, accepted.OperationID, nil)
		if err != nil {
			return err
		}
		d.out.say("%s: snapshot %s of its %s files, while it runs. Left alone, that is made every %s.", space.name, workspace.Short(state.Head.Snapshot), count(state.Head.Files), workspace.DefaultSnapshotEvery)
	}
	for _, space := range d.onLostNode() {
		if err := d.workIn(ctx, space, lateScript); err != nil {
			return fmt.Errorf("workspace %s: %w", space.name, err)
		}
		var err error
		if space.lost.late, err = takeManifest(d.contentDir(space)); err != nil {
			return err
		}
	}
	d.out.say("Somebody works on in atlas and borealis: notes/late.md and late.bin are on node-1 and nowhere else.")
	return nil
}

// onLostNode are the workspaces that began on the node that is lost.
func (d *demo) onLostNode() (spaces []*demoSpace) {
	for _, space := range d.spaces {
		if space.on == d.plan.nodes[0] {
			spaces = append(spaces, space)
		}
	}
	return spaces
}

func (d *demo) powerLoss(ctx context.Context) error {
	node := d.stack.Nodes()[0]
	at := time.Now()
	if err := errors.Join(node.Kill(), d.endInstances(ctx, node.Name())); err != nil {
		return err
	}
	d.out.say("Its agent is killed with SIGKILL, and so is all that it ran. Nobody does anything else.")
	lost, err := d.untilNode(ctx, node.Name(), "is lost", func(state workspace.NodeState) bool { return state.Loss != nil })
	if err != nil {
		return err
	}
	d.out.say("%s after that the node counts as lost: its lease ended, and it did not take a new one.", seconds(lost.Loss.At.Sub(at)))
	if err := d.quoteWhy(ctx, d.spaces[0], func(state workspace.State) bool { return state.Phase == workspace.Recovering && state.Loss != nil }); err != nil {
		return err
	}
	for _, space := range d.onLostNode() {
		state, err := d.untilSpace(ctx, space, "runs elsewhere", func(state workspace.State) bool {
			return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Node != node.Name()
		})
		if err != nil {
			return err
		}
		space.placed(state)
		space.lost.recovery, space.lost.away = state.Recovery, state.Since.Sub(at)
		d.out.say("%s: %s. It did not run for %s.", space.name, state.Recovery.Words(), seconds(space.lost.away))
		if err := d.compareNow(space); err != nil {
			return err
		}
	}
	return d.tellSame(d.onLostNode(), "as in the snapshot")
}

// endInstances kills what a node runs, as the end of its machine does.
func (d *demo) endInstances(ctx context.Context, node string) error {
	containers, err := d.openEngine(ctx, node)
	if err != nil {
		return err
	}
	defer containers.Close()
	for _, space := range d.spaces {
		if space.node != node {
			continue
		}
		instances, err := containers.List(ctx, map[string]string{engine.LabelWorkspace: space.id})
		if err != nil {
			return fmt.Errorf("listing the instances of %s: %w", space.name, err)
		}
		for _, instance := range instances {
			if err := containers.Stop(ctx, instance.ID, 0); err != nil {
				return fmt.Errorf("killing instance %s: %w", instance.Name, err)
			}
		}
	}
	return nil
}

func (d *demo) machineReturns(ctx context.Context) error {
	node := d.stack.Nodes()[0]
	if err := node.Start(ctx); err != nil {
		return err
	}
	d.out.say("The agent of %s is there again. What it finds on its disk was replaced meanwhile: it is saved, and put over nothing.", node.Name())
	for _, space := range d.onLostNode() {
		if err := d.findRecovered(ctx, space); err != nil {
			return err
		}
		d.out.say("%s: saved as the recovered snapshot %s, with notes/late.md and late.bin. Downloaded, and every file compared.", space.name, workspace.Short(space.lost.saved))
	}
	space := d.spaces[0]
	result, err := d.control.Snapshots(ctx, workspace.SnapshotsInput{Name: space.name})
	if err != nil {
		return err
	}
	var listed strings.Builder
	renderSnapshots(&listed, result.Snapshots, d.p.now())
	d.out.quote("holdfast snapshots "+space.name, listed.String())
	for _, space := range d.spaces {
		if err := d.compareNow(space); err != nil {
			return err
		}
	}
	return d.tellSame(d.spaces, "as they were before that")
}

// findRecovered waits until what a workspace's lost node had is saved, and compares it with what was there.
func (d *demo) findRecovered(ctx context.Context, space *demoSpace) error {
	for space.lost.saved == "" {
		result, err := d.control.Snapshots(ctx, workspace.SnapshotsInput{Name: space.name})
		if err != nil {
			return err
		}
		for _, line := range result.Snapshots {
			if line.Kind == string(snapshot.Recovered) {
				space.lost.saved = line.Snapshot
			}
		}
		if err := d.p.wait(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	sums, err := d.downloadedSums(ctx, space, space.lost.saved)
	if err != nil {
		return err
	}
	for path, entry := range space.lost.late {
		if entry.mode.IsRegular() && sums[path] != entry.sum {
			space.problem("%s is not in the recovered snapshot as it was", path)
		}
	}
	if len(sums) == 0 {
		space.problem("the recovered snapshot is empty")
	}
	return nil
}

// standStill is longer than a lease and its second offer last.
const standStill = 30 * time.Second

func (d *demo) temporalStandsStill(ctx context.Context) error {
	if err := d.stack.Temporal().Pause(); err != nil {
		return err
	}
	d.out.say("Temporal's process is stopped for %s: every lease ends, and nobody can say whose fault it is.", standStill)
	if err := errors.Join(d.p.wait(ctx, standStill), d.stack.Temporal().Resume()); err != nil {
		return err
	}
	for _, node := range d.stack.Nodes() {
		if _, err := d.untilNode(ctx, node.Name(), "has its lease", func(state workspace.NodeState) bool {
			return state.Phase == workspace.NodeReady && state.Loss == nil && !state.AwayAt.IsZero()
		}); err != nil {
			return err
		}
	}
	for _, space := range d.spaces {
		state, err := d.untilSpace(ctx, space, "is not under way", func(state workspace.State) bool { return state.Phase == workspace.Running && state.Operation == nil })
		if err != nil {
			return err
		}
		if state.Instance.Token != space.token {
			space.problem("it was moved although only Temporal was away")
		}
	}
	d.out.say("It goes on, and every node has its lease again. The time-outs came too late to say anything of the nodes: nothing moved.")
	return nil
}

func (d *demo) drainForMaintenance(ctx context.Context) error {
	node := d.plan.nodes[1]
	began := time.Now()
	state, err := d.control.OrderNode(ctx, node, newRequestID(), workspace.NodeOrder{Kind: workspace.OrderDrain, Subject: demoSubject})
	if err != nil {
		return err
	}
	d.out.say("Nothing new is placed on it, and each of its workspaces is backed up there and restored elsewhere.")
	if state, err = d.quietly().followDrain(ctx, d.control, node, state); err != nil {
		return err
	}
	if state.Drain.Drained.IsZero() {
		return fmt.Errorf("%s was not drained: %s", node, state.Drain.Words(d.p.now()))
	}
	var moved []*demoSpace
	for _, space := range d.spaces {
		if space.node != node {
			continue
		}
		now, err := d.untilSpace(ctx, space, "runs elsewhere", func(state workspace.State) bool {
			return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Node != node
		})
		if err != nil {
			return err
		}
		space.placed(now)
		space.lost.drained = true
		moved = append(moved, space)
		if err := d.compareNow(space); err != nil {
			return err
		}
	}
	d.out.say("%s is drained after %s: %d moved, nothing is left on it.", node, seconds(time.Since(began)), state.Drain.Moved)
	return d.tellSame(moved, "as they were")
}
