package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// stopIsComplete starts everything that likes to survive: after Stop nothing of it runs, whatever it did to get away.
func stopIsComplete(t *testing.T, b *bench) {
	ctx := b.context()
	mark := "888" + strings.TrimLeft(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return '0' + (r-'a')%10
	}, random()), "0")
	spec := b.spec("/bin/sh", "-c", "trap '' TERM; (setsid sh -c 'trap \"\" TERM; touch armed-stray; while :; do sleep "+mark+"; done' >/dev/null 2>&1 &) ; touch armed-main; while :; do sleep 0.1; done")
	id := b.start(spec)
	// From an exec: a double fork in a session of its own with its environment wiped, ignoring every signal it can.
	b.run(id, "(setsid env -i /bin/sh -c 'trap \"\" TERM HUP INT; touch armed-exec; while :; do sleep "+mark+"; done' </dev/null >/dev/null 2>&1 &)")
	b.eventually("the strays run and do not listen", func() bool {
		armed, err := filepath.Glob(filepath.Join(spec.ContentDir, "armed-*"))
		return err == nil && len(armed) == 3 && processesWith("sleep\x00"+mark) == 2
	})
	begun := time.Now()
	require.NoError(t, b.engine.Stop(ctx, id, time.Second))
	require.GreaterOrEqual(t, time.Since(begun), 900*time.Millisecond, "the grace was given")
	require.Zero(t, processesWith(mark), "nothing of the instance runs when Stop returns")
	found, err := b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusExited, found.Status)
	require.Equal(t, 137, found.ExitCode)

	// The main process ends by itself: what it left ends with it.
	ending := b.spec("/bin/sh", "-c", "(setsid sleep "+mark+" &) ; while [ ! -e go ]; do sleep 0.05; done; exit 6")
	again := b.start(ending)
	b.eventually("the stray runs", func() bool { return processesWith("sleep\x00"+mark) == 1 })
	require.NoError(t, os.WriteFile(filepath.Join(ending.ContentDir, "go"), nil, 0o644))
	b.eventually("it exits", func() bool { return b.status(again) == engine.StatusExited })
	require.Zero(t, processesWith(mark))
	found, err = b.engine.Inspect(ctx, again)
	require.NoError(t, err)
	require.Equal(t, 6, found.ExitCode)
}

// stopsWhereItStands is a program that is paused and would do something on a signal: it is ended without hearing one, and what
// runs beside it, and writes all the time, writes nothing any more.
func stopsWhereItStands(t *testing.T, b *bench) {
	spec := b.spec("/bin/sh", "-c", "trap 'echo heard > heard; exit 0' TERM; (exec 3>>beside; while :; do echo . >&3; done) & touch armed; while :; do sleep 0.05; done")
	written := func() int64 {
		info, err := os.Stat(filepath.Join(spec.ContentDir, "beside"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for _, paused := range []bool{true, false} {
		id := b.start(spec)
		b.eventually("it listens", func() bool {
			_, err := os.Stat(filepath.Join(spec.ContentDir, "armed"))
			return err == nil
		})
		before := written()
		b.eventually("it writes", func() bool { return written() > before })
		if paused {
			// Docker's gives up on a busy machine before all of it stands. Whoever pauses asks again, as the guard does.
			b.eventually("it is paused", func() bool { return b.engine.Pause(b.context(), id) == nil })
			before = written()
		}
		require.NoError(t, b.engine.Stop(b.context(), id, engine.WhereItStands))
		if paused {
			require.Equal(t, before, written(), "it went on")
		}
		require.Equal(t, engine.StatusExited, b.status(id))
		require.NoError(t, b.engine.Stop(b.context(), id, engine.WhereItStands), "twice is once")
		require.NoFileExists(t, filepath.Join(spec.ContentDir, "heard"))
		require.NoError(t, os.Remove(filepath.Join(spec.ContentDir, "armed")))
	}
}

// stopGivesGrace is a program that needs a moment after SIGTERM to save its work.
func stopGivesGrace(t *testing.T, b *bench) {
	spec := b.spec("/bin/sh", "-c", "trap 'sleep 0.3; echo saved > saved; exit 0' TERM; touch armed; while :; do sleep 0.05; done")
	id := b.start(spec)
	b.eventually("it listens", func() bool {
		_, err := os.Stat(filepath.Join(spec.ContentDir, "armed"))
		return err == nil
	})
	// A grace longer than the context's life: Stop waits no longer than needed.
	require.NoError(t, b.engine.Stop(b.context(), id, time.Hour))
	data, err := os.ReadFile(filepath.Join(spec.ContentDir, "saved"))
	require.NoError(t, err)
	require.Equal(t, "saved\n", string(data))

	deaf := b.spec("/bin/sh", "-c", "trap '' TERM; touch armed; while :; do sleep 0.05; done")
	stubborn := b.start(deaf)
	b.eventually("it does not listen", func() bool {
		_, err := os.Stat(filepath.Join(deaf.ContentDir, "armed"))
		return err == nil
	})
	ctx, cancel := context.WithTimeout(b.context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.engine.Stop(ctx, stubborn, time.Minute), context.DeadlineExceeded)
	require.NoError(t, b.engine.Stop(b.context(), stubborn, 0))
}

func pauseAndStop(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do echo x >> ticks; sleep 0.01; done")
	id := b.start(spec)
	size := func() int64 {
		info, err := os.Stat(filepath.Join(spec.ContentDir, "ticks"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	b.eventually("it works", func() bool { return size() > 0 })
	for range 2 {
		require.NoError(t, b.engine.Pause(ctx, id))
	}
	require.Equal(t, engine.StatusPaused, b.status(id))
	require.ErrorIs(t, b.engine.Start(ctx, id), engine.ErrPaused, "a start does not decide that a pause is over")
	stood := size()
	require.Never(t, func() bool { return size() != stood }, 300*time.Millisecond, 50*time.Millisecond, "a paused instance does not move")
	_, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"true"}})
	require.ErrorIs(t, err, engine.ErrPaused, "a command does not wait for a pause to end")
	_, err = b.engine.Stats(ctx, id)
	require.NoError(t, err)
	_, err = b.engine.Work(ctx, id)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, b.engine.Unpause(ctx, id))
	}
	require.Equal(t, engine.StatusRunning, b.status(id))
	b.eventually("it works again", func() bool { return size() > stood })

	require.NoError(t, b.engine.Pause(ctx, id))
	require.NoError(t, b.engine.Stop(ctx, id, time.Hour), "a paused instance hears SIGTERM")
	found, err := b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusExited, found.Status)
	require.Zero(t, found.ExitCode)
	require.ErrorIs(t, b.engine.Pause(ctx, id), engine.ErrNotRunning)
	require.ErrorIs(t, b.engine.Unpause(ctx, id), engine.ErrNotRunning)
}

// pauseIsKept is a pause as whoever looks at the engine sees it: found by an engine that is opened anew, ended by nothing but
// Unpause and Stop.
func pauseIsKept(t *testing.T, b *bench) {
	ctx := b.context()
	id := b.create(b.spec())
	require.ErrorIs(t, b.engine.Pause(ctx, id), engine.ErrNotRunning, "it was not started")
	require.NoError(t, b.engine.Start(ctx, id))
	require.NoError(t, b.engine.Ready(ctx, id))
	for range 2 {
		require.NoError(t, b.engine.Pause(ctx, id))
	}
	require.ErrorIs(t, b.engine.Start(ctx, id), engine.ErrPaused)
	_, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"true"}})
	require.ErrorIs(t, err, engine.ErrPaused)
	require.Error(t, b.engine.Remove(ctx, id), "a paused instance is not removed")

	again := b.factory.Open(t)
	defer again.Close()
	found, err := again.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusPaused, found.Status)
	for range 2 {
		require.NoError(t, again.Unpause(ctx, id))
	}
	require.Equal(t, engine.StatusRunning, b.status(id))
	require.NoError(t, b.engine.Pause(ctx, id))
	require.NoError(t, b.engine.Stop(ctx, id, time.Minute))
	require.Equal(t, engine.StatusExited, b.status(id))
	require.ErrorIs(t, b.engine.Unpause(ctx, id), engine.ErrNotRunning)
	require.NoError(t, b.engine.Remove(ctx, id))
}

// pauseFindsEverything pauses what likes to get away: processes of other sessions, of commands, and such as fork all the
// time. An engine that is opened anew finds the pause, and ends it.
func pauseFindsEverything(t *testing.T, b *bench) {
	ctx := b.context()
	forks := "while :; do (echo x >> %s); done"
	main := fmt.Sprintf(forks, "main")
	spec := b.spec("/bin/sh", "-c", "(setsid sh -c '"+fmt.Sprintf(forks, "stray")+"' >/dev/null 2>&1 &); "+main)
	id := b.start(spec)
	b.run(id, "(setsid env -i /bin/sh -c '"+fmt.Sprintf(forks, "exec")+"' </dev/null >/dev/null 2>&1 &)")
	sizes := func() (all [3]int64) {
		for i, name := range []string{"main", "stray", "exec"} {
			if info, err := os.Stat(filepath.Join(spec.ContentDir, name)); err == nil {
				all[i] = info.Size()
			}
		}
		return all
	}
	all := func(than [3]int64) bool {
		now := sizes()
		return now[0] > than[0] && now[1] > than[1] && now[2] > than[2]
	}
	b.eventually("all work", func() bool { return all([3]int64{}) })
	require.NoError(t, b.engine.Pause(ctx, id))
	stood := sizes()
	require.Never(t, func() bool { return sizes() != stood }, 300*time.Millisecond, 50*time.Millisecond, "nothing of a paused instance moves")

	again := b.factory.Open(t)
	defer again.Close()
	found, err := again.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusPaused, found.Status)
	require.Equal(t, stood, sizes())
	require.NoError(t, again.Unpause(ctx, id))
	b.eventually("all work again", func() bool { return all(stood) })
}

// pausedWhileStopped is a pause that comes while an instance is given its grace: it is stopped all the same, because frozen
// processes are not killed before they are let go.
func pausedWhileStopped(t *testing.T, b *bench) {
	ctx := b.context()
	deaf := b.spec("/bin/sh", "-c", "trap 'touch asked' TERM; touch armed; while :; do sleep 0.05; done")
	id := b.start(deaf)
	there := func(name string) func() bool {
		return func() bool {
			_, err := os.Stat(filepath.Join(deaf.ContentDir, name))
			return err == nil
		}
	}
	b.eventually("it listens", there("armed"))
	stopped := make(chan error, 1)
	go func() { stopped <- b.engine.Stop(ctx, id, time.Second) }()
	b.eventually("it was asked to end", there("asked"))
	if err := b.engine.Pause(ctx, id); err != nil {
		require.ErrorIs(t, err, engine.ErrNotRunning, "the pause came too late")
	}
	require.NoError(t, <-stopped)
	require.Equal(t, engine.StatusExited, b.status(id))
	require.NoError(t, b.engine.Remove(ctx, id))
}

func content(t *testing.T, b *bench) {
	spec := b.spec()
	require.NoError(t, os.WriteFile(filepath.Join(spec.ContentDir, "outside"), []byte("from outside"), 0o644))
	id := b.start(spec)
	require.Equal(t, "from outside", b.run(id, "cat outside"))
	b.run(id, `cd / && mkdir -p "$HOLDFAST_WORKSPACE/dir" && printf inside > "$HOLDFAST_WORKSPACE/dir/inside" && ln -s inside "$HOLDFAST_WORKSPACE/dir/link"`)
	data, err := os.ReadFile(filepath.Join(spec.ContentDir, "dir", "link"))
	require.NoError(t, err)
	require.Equal(t, "inside", string(data))
	require.NoError(t, os.WriteFile(filepath.Join(spec.ContentDir, "later"), []byte("later"), 0o644))
	require.Equal(t, "later", b.run(id, "cat later"))
	require.NoError(t, b.engine.Stop(b.context(), id, 5*time.Second))
	require.NoError(t, b.engine.Remove(b.context(), id))
	for _, name := range []string{"outside", "later", "dir/inside", "dir/link"} {
		_, err := os.Lstat(filepath.Join(spec.ContentDir, name))
		require.NoError(t, err)
	}
	if b.factory.Private {
		_, err = os.Lstat("/workspace/later")
		require.ErrorIs(t, err, os.ErrNotExist, "nothing of it is seen on the machine itself")
	}
}

// otherOwners makes files of other users inside (as root in a container does); an agent that is not root gets an instance
// that runs as the agent's user, so that all of the content can be read for the backup.
func otherOwners(t *testing.T, b *bench) {
	spec := b.spec()
	require.NoError(t, os.Chmod(spec.ContentDir, 0o700))
	id := b.start(spec)
	b.run(id, "echo private > private && chmod 600 private")
	if b.factory.OtherOwners {
		b.run(id, "echo other > other && chmod 640 other && chown 1234:2345 other && mkdir -m 700 locked && chown 1234 locked")
		var info syscall.Stat_t
		require.NoError(t, syscall.Stat(filepath.Join(spec.ContentDir, "other"), &info))
		require.EqualValues(t, 1234, info.Uid)
		require.EqualValues(t, 2345, info.Gid)
		b.run(id, "echo in > locked/in && cat other")
	}
	var info syscall.Stat_t
	require.NoError(t, syscall.Stat(filepath.Join(spec.ContentDir, "private"), &info))
	require.EqualValues(t, os.Geteuid(), info.Uid, "what the instance writes belongs to the agent's user")
	require.NoError(t, filepath.WalkDir(spec.ContentDir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			_, err = os.ReadFile(path)
		}
		return err
	}), "everything can be read for a backup")
}

// secretsStaySecret provokes errors of every kind and looks for a planted value (A18).
func secretsStaySecret(t *testing.T, b *bench) {
	ctx := b.context()
	secret := "planted-" + random() + random()
	var logged lineWriter
	previous := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(previous)
	var texts []string
	note := func(err error) {
		if err != nil {
			texts = append(texts, err.Error())
		}
	}
	spec := b.spec("/no/such/program")
	spec.Environment = map[string]string{"SECRET": secret}
	id := b.create(spec)
	note(b.engine.Start(ctx, id))
	note(b.engine.Ready(ctx, id))
	conflict := spec
	conflict.Labels = map[string]string{engine.LabelToken: "9"}
	_, err := b.engine.Create(ctx, conflict)
	note(err)
	invalid := b.spec()
	invalid.Environment = map[string]string{"SECRET": secret + "\x00"}
	_, err = b.engine.Create(ctx, invalid)
	require.ErrorIs(t, err, engine.ErrInvalid)
	note(err)
	invalid.Environment = map[string]string{"SECRET": secret}
	invalid.Image = "no-such-image-" + random() + ":x"
	_, err = b.engine.Create(ctx, invalid)
	note(err)
	running := b.spec()
	running.Environment = map[string]string{"SECRET": secret}
	runningID := b.start(running)
	var out bytes.Buffer
	_, err = b.engine.Exec(ctx, runningID, engine.ExecSpec{Command: []string{"no-such-program"}, Environment: map[string]string{"OTHER": secret}, Stderr: &out, Stdout: &out})
	note(err)
	_, err = b.engine.Exec(ctx, runningID, engine.ExecSpec{Command: []string{"true"}, Environment: map[string]string{"OTHER": secret + "\x00"}})
	require.ErrorIs(t, err, engine.ErrInvalid)
	note(err)
	note(b.engine.Stop(ctx, runningID, time.Second))
	note(b.engine.Ready(ctx, runningID))
	require.GreaterOrEqual(t, len(texts), 6, "the failures happened")
	for _, text := range append(texts, out.String(), logged.String()) {
		require.NotContains(t, text, secret)
	}
	// Arguments can be read by every user of the machine.
	require.Zero(t, processesWith(secret))
}
