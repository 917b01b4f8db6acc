package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/dataport"
	"holdfast/storage/gcsemulator"
	"holdfast/storage/resolver/dnsserver"
	"holdfast/workspace"
)

const demoSubject = "demo"

// quietly is the program with nobody to show progress to.
func (d *demo) quietly() *program {
	quiet := *d.p
	quiet.stderr, quiet.stderrTerminal = io.Discard, false
	return &quiet
}

// finish waits until an operation ended and fails when it did not do what was asked.
func (d *demo) finish(ctx context.Context, name, operation string, sending *upload) (workspace.State, error) {
	follow := &follower{control: d.control, show: newProgress(io.Discard, false, d.p.now), now: d.p.now, wait: d.p.wait}
	if sending != nil {
		follow.upload = sending.send
	}
	ended, state, err := follow.follow(ctx, name, operation)
	if err == nil && ended.Failed {
		err = failedOperation(ended, state)
	}
	if err == nil && ended.Ended.IsZero() {
		err = fmt.Errorf("workspace %s waits for a person: %s", name, state.Block.Message)
	}
	return state, err
}

// each does something for every workspace at once.
func (d *demo) each(ctx context.Context, do func(context.Context, *demoSpace) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, space := range d.spaces {
		group.Go(func() error {
			if err := do(ctx, space); err != nil {
				return fmt.Errorf("workspace %s: %w", space.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (s *demoSpace) placed(state workspace.State) {
	s.id, s.node, s.token = state.ID, state.Instance.Node, state.Instance.Token
}

// contentDir is where a workspace's content is on its node's disk.
func (d *demo) contentDir(space *demoSpace) string {
	return filepath.Join(d.stack.NodeDir(space.node), "workspaces", workspace.InstanceName(space.id, space.token), "content")
}

func (d *demo) work(ctx context.Context) error {
	d.out.say("Each begins with the files of %s.", d.content)
	var notes sync.Once
	// One after the other, so that they spread over the nodes.
	for _, space := range d.spaces {
		accepted, err := d.control.Start(ctx, space.name, currentUser(), newRequestID(), workspace.StartRequest{
			// What is stored is to be seen: no snapshot of a timer takes part of it away.
			Subject: demoSubject, Node: space.on, Spec: &workspace.Spec{Snapshots: workspace.SnapshotPolicy{Off: true}}, Source: workspace.Source{Kind: workspace.SourceUpload, Describe: d.content},
		})
		if err != nil {
			return err
		}
		state, err := d.finish(ctx, space.name, accepted.OperationID, &upload{program: d.quietly(), control: d.control, name: space.name, subject: demoSubject, dir: d.content})
		if err != nil {
			return err
		}
		space.placed(state)
		d.out.say("%s runs on %s.", space.name, space.node)
		for _, note := range state.Instance.Notes {
			notes.Do(func() { d.out.detail("(%s)", note) })
		}
	}
	err := d.each(ctx, func(ctx context.Context, space *demoSpace) error {
		if err := d.workIn(ctx, space, workScript, fmt.Sprint(space.newBytes)); err != nil {
			return err
		}
		var err error
		space.before, err = takeManifest(d.contentDir(space))
		return err
	})
	if err != nil {
		return err
	}
	for _, space := range d.spaces {
		files, bytes := space.before.files()
		d.out.say("%s: worked in it; it holds %s files, %s, of which %s are new data.", space.name, count(files), size(bytes), size(space.newBytes))
	}
	return nil
}

// workIn runs a script in a workspace, with its name and what else is given as arguments.
func (d *demo) workIn(ctx context.Context, space *demoSpace, script string, arguments ...string) error {
	var output strings.Builder
	return d.quietly().throughGrants(ctx, d.control, workspace.AccessInput{Name: space.name, Verb: workspace.VerbExec, Subject: demoSubject},
		func(_ workspace.Grant, client dataClient) (bool, error) {
			code, err := client.Exec(ctx, dataport.ExecRequest{
				Command: append([]string{"/bin/sh", "-c", script, "work", space.name}, arguments...),
			}, dataport.Streams{Stdout: &output, Stderr: &output})
			if err == nil && code != 0 {
				err = fmt.Errorf("the work ended with status %d: %s", code, output.String())
			}
			return true, err
		})
}

// demoSpeed makes the uploads long enough to be cut in the middle: bytes per second of the storage emulator.
const demoSpeed = 24 << 20

func (d *demo) outage(ctx context.Context) error {
	if err := d.throttle(ctx, demoSpeed); err != nil {
		return err
	}
	for _, space := range d.spaces {
		accepted, err := d.control.Update(ctx, space.name, workspace.UpdateStop, newRequestID(), workspace.StopRequest{Subject: demoSubject})
		if err != nil {
			return err
		}
		space.stop, space.stopped = accepted.OperationID, time.Now()
	}
	d.out.say("All three are asked to stop. Their backups upload to both stores; Google Cloud Storage takes %s a second.", size(demoSpeed))

	cut, err := d.untilUploading(ctx)
	if err != nil {
		return err
	}
	for _, server := range d.stack.DNS() {
		server.SetMode(dnsserver.Drop)
	}
	d.out.say("17:44 UTC, January 25th: all %d DNS servers stop answering, with %d packs stored and %d on their way.", len(d.stack.DNS()), cut.packs, cut.uploading)

	if err := d.goesOn(ctx, cut); err != nil {
		return err
	}
	const newAddress = "127.0.0.3"
	if err := d.stack.MoveStorage(ctx, newAddress); err != nil {
		return err
	}
	if err := d.throttle(ctx, demoSpeed); err != nil {
		return err
	}
	d.out.say("The storage moves to %s and every connection to it is closed: the kept addresses are wrong now, too.", newAddress)

	second := d.stack.Nodes()[1]
	pid := second.PID()
	if err := second.Kill(); err != nil {
		return err
	}
	d.out.say("The agent of %s (process %d) is killed with SIGKILL.", second.Name(), pid)
	if err := second.Start(ctx); err != nil {
		return err
	}
	d.out.say("It is started again (process %d), and remembers no address at all.", second.PID())

	for _, space := range d.spaces {
		stats, err := d.received(ctx, space)
		if err != nil {
			return err
		}
		space.receivedAtCut = stats.Received
	}
	return d.seenByAPerson(ctx)
}

// uploading is what the emulator sees of the uploads.
type uploading struct {
	packs     int
	uploading int64
	received  int64
}

// untilUploading waits until every workspace has at least one pack stored and some of them have not.
func (d *demo) untilUploading(ctx context.Context) (uploading, error) {
	for {
		stats, err := d.stats(ctx, "")
		if err != nil {
			return uploading{}, err
		}
		seen := uploading{uploading: stats.Uploading, received: stats.Received}
		with := map[string]bool{}
		for name, object := range stats.PerObject {
			if object.Stored > 0 && strings.Contains(name, "/data/") {
				seen.packs++
				for _, space := range d.spaces {
					if strings.Contains(name, "/"+space.id+"/") {
						with[space.id] = true
					}
				}
			}
		}
		if len(with) == len(d.spaces) && seen.uploading > 0 {
			return seen, nil
		}
		for _, space := range d.spaces {
			state, err := d.control.State(ctx, space.name)
			if err != nil {
				return seen, err
			}
			if findOperation(state.Recent, space.stop) != nil {
				return seen, fmt.Errorf("the stop of %s ended before DNS could be cut: %s", space.name, state.Reason)
			}
		}
		if err := d.p.wait(ctx, 50*time.Millisecond); err != nil {
			return seen, err
		}
	}
}

// goesOn shows that kept connections and last good answers carry the uploads on.
func (d *demo) goesOn(ctx context.Context, cut uploading) error {
	for {
		stats, err := d.stats(ctx, "")
		if err != nil {
			return err
		}
		if more := stats.Received - cut.received; more > 24<<20 {
			d.out.say("Nothing stops: connections are kept and the last good addresses are used. %s more have arrived since.", size(more))
			return nil
		}
		if err := d.p.wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// seenByAPerson shows what the command tells, and that the content can be fetched.
func (d *demo) seenByAPerson(ctx context.Context) error {
	space := d.spaces[0]
	explanation, err := d.untilItWaits(ctx, space)
	if err != nil {
		return err
	}
	d.out.say("What a person sees now:")
	var why strings.Builder
	renderExplanation(&why, explanation, d.p.now(), false)
	d.out.quote("holdfast why "+space.name, why.String())

	for _, space := range d.spaces {
		state, err := d.control.State(ctx, space.name)
		if err != nil {
			return err
		}
		if state.Phase != workspace.Stopping {
			return fmt.Errorf("workspace %s is %s and should be Stopping", space.name, state.Phase)
		}
		now, err := takeManifest(d.contentDir(space))
		if err != nil {
			return fmt.Errorf("the content of %s is not on its node any more: %w", space.name, err)
		}
		if differences := space.before.compare(now); len(differences) > 0 {
			return fmt.Errorf("the content of %s changed on its node: %s", space.name, differences[0])
		}
	}
	d.out.say("All three are Stopping, nothing was removed: every file is on its node as it was.")

	files, source, err := d.downloadedFiles(ctx, space)
	if err != nil {
		return err
	}
	want, _ := space.before.files()
	if files != want {
		return fmt.Errorf("the download of %s had %d files of %d", space.name, files, want)
	}
	d.out.say("`holdfast download %s` works without any store: %s files from %s (%s).", space.name, count(files), space.node, source)
	return nil
}

// untilItWaits waits until the backup of a workspace has failed and says what it waits for.
func (d *demo) untilItWaits(ctx context.Context, space *demoSpace) (workspace.Explanation, error) {
	for {
		state, err := d.control.State(ctx, space.name)
		if err != nil {
			return workspace.Explanation{}, err
		}
		pending, err := d.control.Pending(ctx, space.name)
		if err != nil {
			return workspace.Explanation{}, err
		}
		if explanation := workspace.Explain(state, pending, d.p.now()); explanation.Failure != nil && explanation.Attempt > 1 {
			return explanation, nil
		}
		if findOperation(state.Recent, space.stop) != nil {
			return workspace.Explanation{}, fmt.Errorf("the stop of %s ended although its store cannot be reached: %s", space.name, state.Reason)
		}
		if err := d.p.wait(ctx, 200*time.Millisecond); err != nil {
			return workspace.Explanation{}, err
		}
	}
}

func (d *demo) recovery(ctx context.Context) error {
	if err := d.throttle(ctx, 0); err != nil {
		return err
	}
	for _, server := range d.stack.DNS() {
		server.SetMode(dnsserver.Answer)
	}
	d.out.say("DNS answers again. Nobody does anything else.")
	err := d.each(ctx, func(ctx context.Context, space *demoSpace) error {
		state, err := d.finish(ctx, space.name, space.stop, nil)
		if err != nil {
			return err
		}
		space.took = time.Since(space.stopped)
		if state.Phase != workspace.Stopped || state.Kept != nil {
			return fmt.Errorf("it is %s: %s", state.Phase, state.Reason)
		}
		stats, err := d.received(ctx, space)
		if err != nil {
			return err
		}
		space.received, space.stored = stats.Received, stats.stored
		return nil
	})
	if err != nil {
		return err
	}
	for _, space := range d.spaces {
		d.out.say("%s is Stopped. The storage had received %s before, and received %s in all for %s that it holds: %s were sent again.",
			space.name, size(space.receivedAtCut), size(space.received), size(space.stored), size(space.againBytes()))
		if space.againBytes() > mostInFlight {
			space.problem("%s were sent again, more than the packs in flight (%s)", size(space.againBytes()), size(mostInFlight))
		}
		order, err := d.removalOrder(ctx, space)
		if err != nil {
			return err
		}
		d.out.detail("%s", order)
	}
	return nil
}

// counted is what the emulator counted for a workspace's repository.
type counted struct {
	gcsemulator.Stats
	stored int64 // bytes of its objects that are there
}

func (d *demo) received(ctx context.Context, space *demoSpace) (counted, error) {
	stats, err := d.stats(ctx, "holdfast/"+workspace.RepositoryPrefix(space.id)+"/")
	if err != nil {
		return counted{}, err
	}
	result := counted{Stats: stats}
	result.Received, result.ReceivedAgain = 0, 0
	for _, object := range stats.PerObject {
		result.Received += object.Received
		result.ReceivedAgain += object.ReceivedAgain
	}
	result.stored, err = d.storedBytes(ctx, space)
	return result, err
}

func (d *demo) stats(ctx context.Context, prefix string) (gcsemulator.Stats, error) {
	var stats gcsemulator.Stats
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.stack.StorageURL()+"/_stats?prefix="+prefix, nil)
	if err != nil {
		return stats, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return stats, fmt.Errorf("asking the storage for its counts: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return stats, fmt.Errorf("asking the storage for its counts: %s", response.Status)
	}
	return stats, json.NewDecoder(response.Body).Decode(&stats)
}

func (d *demo) startElsewhere(ctx context.Context) error {
	err := d.each(ctx, func(ctx context.Context, space *demoSpace) error {
		was := space.node
		accepted, err := d.control.Start(ctx, space.name, currentUser(), newRequestID(), workspace.StartRequest{Subject: demoSubject, NotNode: was})
		if err != nil {
			return err
		}
		state, err := d.finish(ctx, space.name, accepted.OperationID, nil)
		if err != nil {
			return err
		}
		space.placed(state)
		if space.node == was {
			return errors.New("it was started on the same node")
		}
		after, err := takeManifest(d.contentDir(space))
		if err != nil {
			return err
		}
		differences := space.before.compare(after)
		for _, difference := range differences[:min(len(differences), 5)] {
			space.problem("%s", difference)
		}
		if extra := len(differences) - 5; extra > 0 {
			space.problem("and %d more", extra)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, space := range d.spaces {
		if len(space.problems) > 0 {
			d.out.say("%s on %s is NOT as it was: %s", space.name, space.node, strings.Join(space.problems, "; "))
			continue
		}
		d.out.say("%s runs on %s, and all %s entries are as they were: content, modes, owners, times, links.", space.name, space.node, count(int64(len(space.before))))
	}
	return d.checkRepositories(ctx)
}
