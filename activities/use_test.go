package activities

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/workspace"
)

// watched is an instance that runs and is looked at on a clock that the test moves.
type watched struct {
	*rig
	target workspace.Target
	now    time.Time
	name   string
}

func newWatched(t *testing.T) *watched {
	w := &watched{rig: newRig(t, storage.PolicyAny), now: time.Unix(1_700_000_000, 0)}
	w.node.use.clock = func() time.Time { return w.now }
	w.target = w.started(1)
	w.name = "holdfast-" + workspace.InstanceName(id, 1)
	w.node.lookAtAll(t.Context())
	return w
}

// pass lets time go by as the agent sees it: with a look each minute, while the instance uses this much of a processor and
// this many bytes a second.
func (w *watched) pass(minutes int, cpu float64, bytes int64) {
	for range minutes {
		w.now = w.now.Add(useEvery)
		w.engine.work.CPUSeconds += cpu * useEvery.Seconds()
		w.engine.work.IOBytes += bytes * int64(useEvery/time.Second)
		w.node.lookAtAll(w.t.Context())
	}
}

func (w *watched) ask() workspace.LookAtUseResult {
	w.t.Helper()
	answer, err := run(w.rig, w.node.LookAtUse, workspace.LookAtUseInput{Target: w.target})
	require.NoError(w.t, err)
	return answer
}

func (w *watched) quiet(want time.Duration, use string) {
	w.t.Helper()
	answer := w.ask()
	require.Equal(w.t, want, time.Duration(answer.QuietMillis)*time.Millisecond, answer.Use)
	require.Contains(w.t, answer.Use, use)
}

func TestWorkIsUse(t *testing.T) {
	for name, test := range map[string]struct {
		cpu   float64
		bytes int64
		use   string // empty: it is quiet
	}{
		"only its init":         {},
		"a daemon":              {cpu: 0.005, bytes: 5 << 10},
		"just below":            {cpu: 0.0099, bytes: 16<<10 - 1},
		"one percent":           {cpu: 0.0101, use: "1 % of a processor"},
		"a build":               {cpu: 1.97, use: "197 % of a processor"},
		"a copy":                {cpu: 0.001, bytes: 3 << 20, use: "3MiB a second"},
		"counts that fell: cpu": {cpu: -0.2, use: "20 % of a processor"},
		"counts that fell: io":  {bytes: -1 << 20, use: "1MiB a second"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t)
			w.engine.work = engine.Work{CPUSeconds: 1e6, IOBytes: 1 << 40}
			w.pass(1, 0, 0) // what it had done before anybody looked is no use now
			w.pass(30, 0, 0)
			w.pass(7, test.cpu, test.bytes)
			if test.use != "" {
				w.quiet(0, test.use)
				w.pass(9, 0, 0)
				w.quiet(9*time.Minute, test.use)
			} else {
				w.quiet(37*time.Minute, "")
			}
		})
	}
}

// A question is answered with what happened since the last of the regular looks.
func TestAQuestionLooksItself(t *testing.T) {
	w := newWatched(t)
	w.pass(30, 0, 0)
	w.now = w.now.Add(20 * time.Second)
	w.quiet(30*time.Minute+20*time.Second, unseen)
	w.engine.work.CPUSeconds++
	w.now = w.now.Add(3 * time.Second)
	w.quiet(30*time.Minute+23*time.Second, unseen) // over so short a time nothing can be said
	w.now = w.now.Add(3 * time.Second)
	w.quiet(0, "17 % of a processor")
}

// Whoever is connected uses it, whatever is done there.
func TestConnectionsAreUse(t *testing.T) {
	w := newWatched(t)
	w.pass(30, 0, 0)
	w.quiet(30*time.Minute, "")
	held, release := make(chan struct{}), make(chan struct{})
	w.engine.exec = func(context.Context, engine.ExecSpec) (int, error) {
		held <- struct{}{}
		<-release
		return 0, nil
	}
	claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1, Verb: dataport.VerbShell}
	ended := make(chan error)
	shell := func() {
		_, err := w.node.Exec(context.Background(), claims, dataport.ExecRequest{}, dataport.Streams{Stdout: io.Discard, Stderr: io.Discard})
		ended <- err
	}
	go shell()
	<-held
	w.pass(300, 0, 0)
	w.quiet(0, "a shell is open")
	go shell()
	<-held
	w.quiet(0, "a shell is open 2 times")
	w.pass(10, 0, 0)
	release <- struct{}{}
	require.NoError(t, <-ended)
	w.quiet(0, "a shell is open")
	w.pass(10, 0, 0)
	release <- struct{}{}
	require.NoError(t, <-ended)
	w.pass(4, 0, 0)
	w.quiet(4*time.Minute, "a shell ended")

	claims.Verb = dataport.VerbLogs
	require.NoError(t, w.node.Logs(t.Context(), claims, engine.LogOptions{}, io.Discard))
	w.pass(3, 0, 0)
	w.quiet(3*time.Minute, "logs` ended")
	claims.Verb = dataport.VerbDownload
	require.NoError(t, w.node.Download(t.Context(), claims, dataport.DownloadRequest{}, func(dataport.DownloadInfo) (io.Writer, error) {
		w.quiet(0, "a download is open")
		return io.Discard, nil
	}))
	w.pass(2, 0, 0)
	w.quiet(2*time.Minute, "a download ended")

	// Somebody else's.
	claims.Token = 2
	require.ErrorIs(t, w.node.Logs(t.Context(), claims, engine.LogOptions{}, io.Discard), dataport.ErrNotHere)
	w.quiet(2*time.Minute, "a download ended")
}

// What is not known is never taken for nothing.
func TestWhatIsNotSeenIsNotQuiet(t *testing.T) {
	t.Run("a new agent", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.node.use = uses{clock: w.node.use.clock}
		w.quiet(0, unseen)
		w.pass(5, 0, 0)
		w.quiet(5*time.Minute, unseen)
	})
	t.Run("a count that fails", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.engine.fail = func(call, _ string) error {
			if call == "work" {
				return errors.New("the engine is busy")
			}
			return nil
		}
		w.now = w.now.Add(10 * time.Second)
		w.quiet(0, "could not be counted")
		w.pass(2, 0, 0)
		w.quiet(0, "could not be counted")
		w.engine.fail = nil
		w.pass(2, 0, 0)
		w.quiet(2*time.Minute, "could not be counted")
	})
	t.Run("an engine that is away", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.engine.fail = func(string, string) error { return engine.ErrUnavailable }
		_, err := run(w.rig, w.node.LookAtUse, workspace.LookAtUseInput{Target: w.target})
		transient(t, err)
		w.pass(1, 0, 0)
		w.engine.fail = nil
		w.pass(1, 0, 0)
		w.quiet(102*time.Minute, unseen) // one look was missed, and the next one counted what was done in its time too
		w.engine.fail = func(string, string) error { return engine.ErrUnavailable }
		w.pass(2, 0, 0)
		w.engine.fail = nil
		w.pass(1, 0, 0)
		w.quiet(0, unseen)
	})
	t.Run("no instance", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		other := w.target
		other.Token = 7
		_, err := run(w.rig, w.node.LookAtUse, workspace.LookAtUseInput{Target: other})
		transient(t, err)
	})
	t.Run("one that ended while nobody looked", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.engine.fail = func(string, string) error { return engine.ErrUnavailable }
		w.pass(5, 0, 0)
		w.engine.fail = nil
		w.engine.instances[w.name].Status = engine.StatusExited
		w.quiet(0, unseen)
		w.pass(4, 0, 0)
		w.quiet(4*time.Minute, unseen)
	})
	t.Run("one that is between ended and running", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.engine.fail = func(call, _ string) error {
			if call == "work" {
				return engine.ErrNotRunning
			}
			return nil
		}
		w.pass(2, 0, 0)
		w.quiet(102*time.Minute, unseen)
		w.pass(1, 0, 0)
		w.quiet(0, unseen)
	})
	t.Run("a paused one", func(t *testing.T) {
		w := newWatched(t)
		w.pass(100, 0, 0)
		w.engine.instances[w.name].Status = engine.StatusPaused
		w.pass(1, 0, 0)
		w.quiet(0, "paused")
	})
}

// One that has ended by itself does nothing; what it does when it was started again is compared with nothing.
func TestEndedInstanceIsQuiet(t *testing.T) {
	w := newWatched(t)
	w.pass(10, 0.5, 0)
	w.engine.instances[w.name].Status = engine.StatusExited
	w.pass(30, 0, 0)
	w.quiet(30*time.Minute, "50 % of a processor")
	w.engine.work = engine.Work{CPUSeconds: 0.4}
	w.engine.instances[w.name].Status = engine.StatusRunning
	w.pass(5, 0, 0)
	w.quiet(35*time.Minute, "50 % of a processor")
}

// What a hook does is Holdfast's doing; what happens between hooks, and what a hook leaves behind, is not.
func TestHooksAreNoUse(t *testing.T) {
	w := newWatched(t)
	w.pass(10, 0, 0)
	hook := workspace.Hook{When: workspace.HookPreSnapshot, Command: "dump"}
	work := func() {
		result, err := w.node.runHook(t.Context(), w.target, hook)
		require.NoError(t, err)
		require.Equal(t, workspace.HookDone, result.Outcome, result.Problem)
	}
	w.engine.exec = func(context.Context, engine.ExecSpec) (int, error) {
		w.engine.work.CPUSeconds += 50
		w.engine.work.IOBytes += 1 << 30
		w.now = w.now.Add(2 * time.Second)
		w.node.lookAtAll(context.Background())
		w.now = w.now.Add(48 * time.Second)
		w.engine.work.CPUSeconds += 50
		return 0, nil
	}
	for range 6 {
		work()
		w.pass(1, 0, 0)
	}
	w.quiet(10*time.Minute+6*(time.Minute+50*time.Second), unseen)

	// Between two hooks.
	w.now = w.now.Add(20 * time.Second)
	w.engine.work.CPUSeconds++
	work()
	w.quiet(50*time.Second, "5 % of a processor")
	// Left behind by one.
	w.pass(1, 1, 0)
	w.quiet(0, "100 % of a processor")

	// A hook that never seems to end hides nothing for long.
	w.pass(10, 0, 0)
	w.engine.exec = func(context.Context, engine.ExecSpec) (int, error) {
		w.pass(2, 1, 0)
		w.quiet(12*time.Minute, "100 % of a processor")
		w.pass(1, 1, 0)
		w.quiet(0, unseen)
		return 0, nil
	}
	work()
}

// Nothing is kept of instances that are gone.
func TestGoneInstancesAreForgotten(t *testing.T) {
	w := newWatched(t)
	require.Len(t, w.node.use.seen, 1)
	done := w.node.use.connect(dataport.Claims{WorkspaceID: otherID, Token: 3, Verb: dataport.VerbDownload})
	w.pass(1, 0, 0)
	require.Len(t, w.node.use.seen, 2, "somebody is connected")
	done()
	delete(w.engine.instances, w.name)
	w.pass(1, 0, 0)
	require.Empty(t, w.node.use.seen)
}
