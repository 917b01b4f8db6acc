package nodes_test

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// machine is a node that a campaign makes faults of: of the process engine behind links, or a host of its own with Docker.
type machine interface {
	name() string
	kill(t *testing.T)      // the agent, with SIGKILL
	freeze(t *testing.T)    // the agent, with SIGSTOP
	thaw(t *testing.T)      // the agent, with SIGCONT
	begin(t *testing.T)     // the agent, after a kill; it returns when the agent runs
	powerLoss(t *testing.T) // everything on the machine
	powerOn(t *testing.T)
	wipe(t *testing.T) // after a loss of power: the disk
	cut(t *testing.T)  // from everything; what runs goes on
	names(t *testing.T)
	poor(t *testing.T) // the worst network that this kind of machine can have
	mend(t *testing.T) // cut, names and poor
	statuses(t *testing.T, id string) map[string]engine.Status
	remains(t *testing.T) []string // what is left of workspaces on it: directories, trash, instances
}

// cluster is a stack with two machines; the faults are the first one's.
type cluster struct {
	*stack.Stack
	one, two machine
}

// fault is what happens to a machine or to the control plane, and how it ends.
type fault struct {
	name string
	make func(t *testing.T, c *cluster)
	undo func(t *testing.T, c *cluster)
	// loses says that the machine is lost: the campaign waits until what ran there runs elsewhere before it undoes the fault.
	loses bool
	// pauses says that the machine itself pauses what was replaced while the fault lasts.
	pauses bool
	// lasts says that everything has to come to its end while the fault lasts.
	lasts bool
	// wiped says that what was on the machine and in no snapshot is gone.
	wiped bool
}

func faults() []fault {
	one := func(do func(machine, *testing.T)) func(*testing.T, *cluster) {
		return func(t *testing.T, c *cluster) { do(c.one, t) }
	}
	temporalAgain := func(t *testing.T, c *cluster) { require.NoError(t, c.Temporal().Restart(t.Context())) }
	return []fault{
		{name: "agent killed and started again", make: one(machine.kill), undo: one(machine.begin)},
		{name: "agent killed", make: one(machine.kill), undo: one(machine.begin), loses: true},
		{name: "agent frozen", make: one(machine.freeze), undo: one(machine.thaw), loses: true},
		{name: "power off and on", make: one(machine.powerLoss), undo: one(machine.powerOn)},
		{name: "power loss", make: one(machine.powerLoss), undo: one(machine.powerOn), loses: true},
		{name: "disk wiped", make: func(t *testing.T, c *cluster) {
			c.one.powerLoss(t)
			c.one.wipe(t)
		}, undo: one(machine.powerOn), loses: true, wiped: true},
		{name: "partition", make: one(machine.cut), undo: one(machine.mend), loses: true, pauses: true},
		{name: "names lost", make: one(machine.names), undo: one(machine.mend), lasts: true},
		{name: "poor network", make: one(machine.poor), undo: one(machine.mend), lasts: true},
		{name: "Temporal killed", make: func(t *testing.T, c *cluster) { require.NoError(t, c.Temporal().Kill()) }, undo: temporalAgain},
		{name: "Temporal frozen", make: func(t *testing.T, c *cluster) {
			require.NoError(t, c.Temporal().Pause())
			time.Sleep(20 * time.Second) // longer than a lease: the pause is what is tested
		}, undo: func(t *testing.T, c *cluster) { require.NoError(t, c.Temporal().Resume()) }},
	}
}

// The phases in which workspaces are when a fault happens: one workspace each, by its name.
const (
	running    = "running"
	starting   = "starting"
	stopping   = "stopping"
	backingUp  = "backing-up"
	restoring  = "restoring"
	writtenNow = "now" // what a workspace's newest content has in this file
)

func phases() []string { return []string{running, starting, stopping, backingUp, restoring} }

// subject is a workspace of a campaign, with what must never be lost of it.
type subject struct {
	name, id string
	// versions are those that were acknowledged, by snapshot: a copy of what each has.
	versions map[string]string
	// token is of the instance when the fault happened; 0 while there was none.
	token uint64
	// counted is the file that its instance on the first machine counts in, and how large it was at the fault.
	counted string
}

// cells makes one fault while a workspace is in each of the phases, and holds all of them to the invariants.
func cells(t *testing.T, c *cluster, f fault, random *rand.Rand) {
	subjects := map[string]*subject{}
	for i, name := range phases() {
		stack.Must(t, c.Stack, 0, nil, "start", name, "--node", c.one.name(), "--from-dir", stack.RandomTree(t, random.Int63(), 4, 128<<10))
		subjects[name] = &subject{name: name, id: stack.Show(t, c.Stack, name).ID, versions: map[string]string{}}
		subjects[name].acknowledge(t, c, "backup", i)
	}
	for _, name := range []string{starting, restoring} {
		subjects[name].acknowledge(t, c, "stop", 10)
	}
	for _, name := range []string{running, stopping, backingUp} {
		s := subjects[name]
		s.write(t, c, 20)
		_, content := stack.ContentDir(t, c.Stack, name)
		s.counted, s.token = filepath.Join(content, "count"), stack.Show(t, c.Stack, name).Instance.Token
		counts(t, c.Stack, name, content)
	}

	// Everything that reads or writes content is held at the store, and with it each workspace in its phase.
	hold(t, c.Stack, "/data/", 0)
	operations := map[string]string{
		starting:  stack.Detached(t, c.Stack, "start", starting, "--node", c.one.name()),
		stopping:  stack.Detached(t, c.Stack, "stop", stopping),
		backingUp: stack.Detached(t, c.Stack, "backup", backingUp),
		restoring: stack.Detached(t, c.Stack, "restore", restoring, "--snapshot", subjects[restoring].oldest(t, c), "--node", c.one.name()),
	}
	stack.WaitFor(t, "each workspace is in its phase", stack.Patience, func() bool { return held(t, c.Stack) >= int64(len(operations)) })
	for _, name := range phases() {
		state := stack.Show(t, c.Stack, name)
		require.Equal(t, name != running, state.Operation != nil, "%s: %+v", name, state.Operation)
	}

	// Whether what was held goes on before the fault is noticed, or after, is for the seed.
	early := random.Intn(2) == 0
	t.Logf("what is held goes on early: %v", early)
	f.make(t, c)
	if early || f.lasts {
		hold(t, c.Stack, "", 0)
	}
	if f.loses {
		stack.WaitFor(t, "the node is lost", stack.Patience, func() bool { return nodeShow(t, c.Stack, c.one.name()).Loss != nil })
		hold(t, c.Stack, "", 0)
		c.elsewhere(t, subjects[running], f)
	}
	if f.lasts {
		c.settled(t, f)
	}
	f.undo(t, c)
	hold(t, c.Stack, "", 0)
	c.settled(t, f)
	c.check(t, subjects)
}

// write puts something new into a running workspace, so that its next backup has something to store.
func (s *subject) write(t *testing.T, c *cluster, round int) {
	t.Helper()
	_, content := stack.ContentDir(t, c.Stack, s.name)
	data := make([]byte, 256<<10)
	rand.New(rand.NewSource(int64(round) + time.Now().UnixNano())).Read(data)
	require.NoError(t, os.WriteFile(filepath.Join(content, fmt.Sprintf("new-%d", round)), data, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(content, writtenNow), fmt.Appendf(nil, "%s %d", s.name, round), 0o644))
}

// acknowledge has a version stored, by a command that succeeds, and remembers what it has.
func (s *subject) acknowledge(t *testing.T, c *cluster, verb string, round int) {
	t.Helper()
	s.write(t, c, round)
	_, content := stack.ContentDir(t, c.Stack, s.name)
	copied := stack.Manifest(t, content)
	stack.Must(t, c.Stack, 0, nil, verb, s.name)
	s.versions[stack.Show(t, c.Stack, s.name).Head.Snapshot] = copied
}

// oldest is the first version that was acknowledged.
func (s *subject) oldest(t *testing.T, c *cluster) string {
	t.Helper()
	head := stack.Show(t, c.Stack, s.name).Head.Snapshot
	for snapshot := range s.versions {
		if snapshot != head || len(s.versions) == 1 {
			return snapshot
		}
	}
	t.Fatal("nothing was acknowledged")
	return ""
}

// elsewhere waits until the workspace that ran goes on without the machine, and, when that is for the machine to see, until what it
// still runs of it stands still (nothing runs twice after the fence).
func (c *cluster) elsewhere(t *testing.T, s *subject, f fault) {
	t.Helper()
	began := time.Now()
	state := stack.WaitState(t, c.Stack, s.name, "it runs elsewhere", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Node == c.two.name()
	})
	require.Greater(t, state.Instance.Token, s.token)
	t.Logf("it runs elsewhere %s after the fault", time.Since(began).Round(time.Second))
	// RPO: what it goes on with is the newest version that was acknowledged, and all of it.
	_, content := stack.ContentDir(t, c.Stack, s.name)
	require.Contains(t, s.versions, state.Head.Snapshot)
	stack.RequireSame(t, s.versions[state.Head.Snapshot], content)
	if f.pauses {
		token := fmt.Sprint(s.token)
		stack.WaitFor(t, "what was replaced is paused", stack.Patience, func() bool { return c.one.statuses(t, s.id)[token] == engine.StatusPaused })
		stands(t, func() int64 { return sizeOf(s.counted) })
	}
}

func sizeOf(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

// settled waits until nothing is under way, owed or left, and each workspace is where its command was to lead, or where it says that
// it cannot go on.
func (c *cluster) settled(t *testing.T, f fault) {
	t.Helper()
	for _, name := range phases() {
		state := stack.WaitState(t, c.Stack, name, "nothing is under way or left of it", stack.Patience, func(state workspace.State) bool {
			return state.Operation == nil && len(state.Waiting) == 0 && state.Look == nil && (f.wiped || len(state.Left) == 0 && state.Kept == nil) &&
				(state.Phase == workspace.Running || state.Phase == workspace.Stopped || state.Phase == workspace.Blocked)
		})
		last := ""
		for _, operation := range state.Recent {
			last += fmt.Sprintf("; %s", operation.Kind)
			if operation.Failed {
				last += fmt.Sprintf(" failed (%s)", operation.ErrorType)
			}
		}
		node := "nowhere"
		if state.Instance != nil {
			node = "on " + state.Instance.Node
		}
		t.Logf("CELL | %s | %s | %s %s, token %d, %d saved%s", f.name, name, state.Phase, node, state.Token, len(state.Salvaged), last)
		if f.wiped && name == stopping {
			// What was in no snapshot is nowhere, and a stop is a backup: it has to say so, and never that it is stopped.
			require.Equal(t, workspace.Blocked, state.Phase)
			require.Equal(t, workspace.ErrorContentMissing, state.Block.Type)
			continue
		}
		require.NotEqual(t, workspace.Blocked, state.Phase, "%s: %+v", name, state.Block)
		if name == running || name == backingUp {
			require.Equal(t, workspace.Running, state.Phase, name)
		}
		if name == stopping {
			require.Equal(t, workspace.Stopped, state.Phase)
		}
	}
}

// check holds every workspace to the invariants, whatever has happened to it.
func (c *cluster) check(t *testing.T, subjects map[string]*subject) {
	t.Helper()
	for _, name := range phases() {
		s, state := subjects[name], stack.Show(t, c.Stack, name)
		c.headIsTheNewest(t, state)
		// invariant 1: every version that was acknowledged is there, byte for byte.
		for snapshot, copied := range s.versions {
			stack.RequireSame(t, copied, restored(t, c.Stack, name, snapshot))
		}
		// Nothing runs but the instance that the workspace has, and that one does.
		for _, m := range []machine{c.one, c.two} {
			want := map[string]engine.Status{}
			if state.Phase == workspace.Running && state.Instance.Node == m.name() {
				want[fmt.Sprint(state.Instance.Token)] = engine.StatusRunning
			}
			require.Equal(t, want, m.statuses(t, s.id), "%s on %s", name, m.name())
		}
		if state.Phase == workspace.Running {
			s.write(t, c, 30)
			_, content := stack.ContentDir(t, c.Stack, name)
			before := stack.Manifest(t, withoutCount(t, content))
			stack.Must(t, c.Stack, 0, nil, "stop", name)
			state = stack.Show(t, c.Stack, name)
			c.headIsTheNewest(t, state)
			stack.RequireSame(t, before, withoutCount(t, restored(t, c.Stack, name, state.Head.Snapshot)))
		}
	}
	for _, m := range []machine{c.one, c.two} {
		stack.WaitFor(t, "nothing is left on "+m.name(), stack.Patience, func() bool { return len(m.remains(t)) == 0 })
	}
}

// withoutCount is a copy of a tree without the file that grows.
func withoutCount(t *testing.T, dir string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	copyTree(t, dir, copied, "/count")
	return copied
}

// headIsTheNewest compares a workspace's head with the records on the store: of the newest token the newest commit, else that token's base.
func (c *cluster) headIsTheNewest(t *testing.T, state workspace.State) {
	t.Helper()
	store := c.Store(t, 0)
	prefix := "catalog/workspaces/" + state.ID + "/"
	keys := func(below string) (names []string) {
		for _, one := range stack.Objects(t, store, prefix+below) {
			names = append(names, one.Key)
		}
		slices.Sort(names) // numbers of one length
		return names
	}
	instances := keys("instances/")
	require.NotEmpty(t, instances)
	newest := instances[len(instances)-1]
	var record workspace.InstanceRecord
	require.NoError(t, json.Unmarshal(stack.Object(t, store, newest), &record))
	want := record.Base
	if commits := keys(fmt.Sprintf("commits/%020d/", record.Token)); len(commits) > 0 {
		var commit workspace.Commit
		require.NoError(t, json.Unmarshal(stack.Object(t, store, commits[len(commits)-1]), &commit))
		want = commit.Snapshot
	}
	require.NotNil(t, state.Head, state.Name)
	require.Equal(t, want, state.Head.Snapshot, "%s: the head is not that of the newest token, %d", state.Name, record.Token)
}
