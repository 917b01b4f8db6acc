package crowd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"

	"holdfast/workspace"
)

// Most is the largest of something that was seen, and what it was of.
type Most struct {
	Value int64
	Where string
}

func (m *Most) see(value int64, where string) {
	if value > m.Value || m.Where == "" {
		m.Value, m.Where = value, where
	}
}

// Usage is the most that was seen of what Temporal limits for one run of a workflow, and of what processes took.
type Usage struct {
	// Looks counts at how many workflows it was looked.
	Looks int
	// Events and Bytes are of a history. Updates are those that a run has accepted, InFlight those that it has not completed,
	// Activities those that are pending.
	Events, Bytes, Updates, InFlight, Activities Most
	// ControlMemory and TemporalMemory are the largest resident sets in bytes, HostMemory that of a process with several agents; 0
	// where the system does not tell.
	ControlMemory, TemporalMemory, HostMemory int64
	// Refused are what Temporal's log says of limits, and workflow tasks that failed, the first maxRefused.
	Refused []string
}

const maxRefused = 20

// Limits bound a Usage. 0 is no bound. What Temporal itself limits: 51,200 events and 50 MB (with a warning from 10,240 and 10 MB
// on), 2,000 updates, 10 of them in flight, 2,000 pending activities.
type Limits struct {
	Events, Bytes, Updates, InFlight, Activities int64
	ControlMemory, TemporalMemory                int64
}

// Within is nil when nothing is above the limits; else it names all that is.
func (u Usage) Within(limits Limits) error {
	var errs []error
	for _, one := range []struct {
		what  string
		most  Most
		limit int64
	}{
		{"events of a history", u.Events, limits.Events},
		{"bytes of a history", u.Bytes, limits.Bytes},
		{"updates of a run", u.Updates, limits.Updates},
		{"updates in flight", u.InFlight, limits.InFlight},
		{"pending activities", u.Activities, limits.Activities},
		{"bytes of memory", Most{u.ControlMemory, "the control worker"}, limits.ControlMemory},
		{"bytes of memory", Most{u.TemporalMemory, "Temporal"}, limits.TemporalMemory},
	} {
		if one.limit > 0 && one.most.Value > one.limit {
			errs = append(errs, fmt.Errorf("%s: %d %s: want at most %d", one.most.Where, one.most.Value, one.what, one.limit))
		}
	}
	for _, line := range u.Refused {
		errs = append(errs, errors.New(line))
	}
	if u.Looks == 0 {
		errs = append(errs, errors.New("nothing was looked at"))
	}
	return errors.Join(errs...)
}

// add counts what another look has seen.
func (u *Usage) add(other Usage) {
	u.Looks += other.Looks
	for _, pair := range [][2]*Most{
		{&u.Events, &other.Events}, {&u.Bytes, &other.Bytes}, {&u.Updates, &other.Updates}, {&u.InFlight, &other.InFlight}, {&u.Activities, &other.Activities},
	} {
		pair[0].see(pair[1].Value, pair[1].Where)
	}
	u.ControlMemory = max(u.ControlMemory, other.ControlMemory)
	u.TemporalMemory = max(u.TemporalMemory, other.TemporalMemory)
	u.HostMemory = max(u.HostMemory, other.HostMemory)
	u.Refused = append(u.Refused, other.Refused...)
	u.Refused = u.Refused[:min(len(u.Refused), maxRefused)]
}

// Look looks at the workflows of the workspaces and of all nodes, and at the processes.
func (c *Crowd) Look(ctx context.Context, names []string) (Usage, error) {
	return c.look(ctx, names, true)
}

// look reads the histories of the workspaces, too, only when it is thorough: of hundreds that takes Temporal's one database from what
// is looked at.
func (c *Crowd) look(ctx context.Context, names []string, thorough bool) (Usage, error) {
	nodes := len(c.Nodes())
	var workflows []string
	for _, name := range c.Nodes() {
		workflows = append(workflows, workspace.NodeWorkflowID(name))
	}
	for _, name := range names {
		workflows = append(workflows, workspace.WorkflowID(name))
	}
	var mutex sync.Mutex
	var all Usage
	err := each(ctx, workflows, func(ctx context.Context, i int, id string) error {
		seen, err := c.lookAt(ctx, id, thorough || i < nodes)
		mutex.Lock()
		defer mutex.Unlock()
		all.add(seen)
		return err
	})
	if err != nil {
		return all, err
	}
	var processes Usage
	if processes.ControlMemory, err = resident(c.control.PID()); err != nil {
		return all, err
	}
	if processes.TemporalMemory, err = resident(c.temporal.PID()); err != nil {
		return all, err
	}
	for _, h := range c.hosts {
		if pid := h.child.PID(); pid != 0 {
			memory, err := resident(pid)
			if err != nil && h.child.Running() {
				return all, err
			}
			processes.HostMemory = max(processes.HostMemory, memory)
		}
	}
	processes.Refused = c.log.take()
	all.add(processes)
	return all, nil
}

// lookAt looks at the newest run of one workflow, and into its history when that is asked for.
func (c *Crowd) lookAt(ctx context.Context, id string, history bool) (Usage, error) {
	u := Usage{Looks: 1}
	described, err := c.client.DescribeWorkflowExecution(ctx, id, "")
	if err != nil {
		return u, fmt.Errorf("looking at %s: %w", id, err)
	}
	info := described.GetWorkflowExecutionInfo()
	u.Events.see(info.GetHistoryLength(), id)
	u.Bytes.see(info.GetHistorySizeBytes(), id)
	u.Activities.see(int64(len(described.GetPendingActivities())), id)
	if !history {
		return u, nil
	}
	var accepted, completed int64
	events := c.client.GetWorkflowHistory(ctx, id, info.GetExecution().GetRunId(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if err != nil {
			return u, fmt.Errorf("reading the history of %s: %w", id, err)
		}
		switch event.GetEventType() {
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
			accepted++
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
			completed++
		case enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED:
			failed := event.GetWorkflowTaskFailedEventAttributes()
			// One that new events came in the way of is asked for again: that is how it goes.
			if cause := failed.GetCause(); cause != enumspb.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND {
				u.Refused = append(u.Refused, fmt.Sprintf("%s: workflow task %d failed: %s: %s", id, event.GetEventId(), cause, failed.GetFailure().GetMessage()))
			}
		}
	}
	u.Updates.see(accepted, id)
	u.InFlight.see(accepted-completed, id)
	return u, nil
}

const (
	// watchEvery is between two looks of a watch, and watchMany at how many workspaces each looks beside all nodes.
	watchEvery = 2 * time.Second
	watchMany  = 50
)

// watch looks again and again until it is ended; its usage has what was seen.
func (c *Crowd) watch(ctx context.Context, names []string) (end func() (Usage, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var all Usage
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		for at := 0; ; at += watchMany {
			part := make([]string, 0, watchMany)
			for i := range min(watchMany, len(names)) {
				part = append(part, names[(at+i)%len(names)])
			}
			seen, err := c.look(ctx, part, false)
			if ctx.Err() != nil {
				return
			}
			if all.add(seen); err != nil {
				failed = err
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchEvery):
			}
		}
	}()
	return func() (Usage, error) {
		cancel()
		<-done
		return all, failed
	}
}

// resident is the most memory that a process has had resident; 0 where the system does not tell, and of one that has ended.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading how much memory process %d has: %w", pid, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), "VmHWM:"); found {
			kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading how much memory process %d has: %q: %w", pid, value, err)
			}
			return kilobytes << 10, nil
		}
	}
	return 0, nil // it has ended, and waits to be noticed
}

// limitLog keeps the lines of Temporal's log that speak of limits.
type limitLog struct {
	mutex sync.Mutex
	lines []string
}

// Write implements io.Writer; it is given whole lines.
func (l *limitLog) Write(p []byte) (int, error) {
	if bytes.Contains(bytes.ToLower(p), []byte("limit")) {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		if len(l.lines) < maxRefused {
			l.lines = append(l.lines, strings.TrimSpace(string(p)))
		}
	}
	return len(p), nil
}

// take gives what has come since it was last asked.
func (l *limitLog) take() []string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}
