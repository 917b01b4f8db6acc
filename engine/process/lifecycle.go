package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// Create describes the instance on disk: the whole directory appears at once or not at all.
func (e *Engine) Create(ctx context.Context, spec engine.Spec) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := spec.Validate(); err != nil {
		return "", err
	}
	if spec.Image != "" && spec.Image != hostImage {
		return "", fmt.Errorf("%w: %q: the process engine runs this machine's own programs; use --engine docker for images", engine.ErrImageNotFound, spec.Image)
	}
	spec.Image = hostImage
	dir := filepath.Join(e.options.Root, spec.Name)
	content, err := filepath.EvalSymlinks(spec.ContentDir)
	if err != nil {
		return "", fmt.Errorf("%w: the content directory: %w", engine.ErrInvalid, err)
	}
	// Remove deletes our files, never content: neither may hold the other.
	if within(dir, content) || within(content, dir) {
		return "", fmt.Errorf("%w: the content directory %s and the engine's %s lie in one another", engine.ErrInvalid, content, dir)
	}
	spec.ContentDir = content
	mark, err := randomID()
	if err != nil {
		return "", err
	}
	known := record{ID: spec.Name + "." + mark, Spec: spec, CreatedAt: time.Now().UTC(), Options: runOptions{
		NoNamespaces: e.options.NoNamespaces, NoCgroups: e.options.NoCgroups, CgroupParent: e.options.CgroupParent,
		LogBytes: e.options.LogBytes, Hide: append([]string{e.options.Root}, e.options.Hide...),
	}}
	made, err := os.MkdirTemp(e.options.Root, ".new-")
	if err != nil {
		return "", fmt.Errorf("making the instance's directory: %w", err)
	}
	defer func() { _ = removeInstanceDir(made) }() // gone already when it was given its name
	if err := os.Mkdir(filepath.Join(made, rootMount), 0o700); err != nil {
		return "", fmt.Errorf("making the instance's directory: %w", err)
	}
	if err := writeJSON(filepath.Join(made, specFile), known); err != nil {
		return "", err
	}
	err = unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	if err == nil {
		return known.ID, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("making the instance: %w", err)
	}
	existing, err := loadDir(dir)
	if err != nil {
		return "", fmt.Errorf("looking at the instance that has this name: %w", err)
	}
	if !engine.SameLabels(existing.record.Spec.Labels, spec.Labels) {
		return "", fmt.Errorf("%w: %s", engine.ErrConflict, spec.Name)
	}
	return existing.record.ID, nil
}

// within says whether path is dir or below it.
func within(path, dir string) bool {
	below, err := filepath.Rel(dir, path)
	return err == nil && below != ".." && !strings.HasPrefix(below, "../")
}

// Start starts the supervisor and returns when the main process runs.
func (e *Engine) Start(ctx context.Context, id string) error {
	dir, err := e.dirOf(id)
	if err != nil {
		return err
	}
	release, err := lock(ctx, filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer release()
	found, err := loadDir(dir)
	if err != nil {
		return err
	}
	switch found.status {
	case engine.StatusRunning:
		return nil
	case engine.StatusPaused:
		return fmt.Errorf("starting %s: %w", found.record.Spec.Name, engine.ErrPaused)
	}
	if err := found.sweep(ctx); err != nil {
		return err
	}
	if err := removeFiles(dir, exitFile, runFile, pausedFile); err != nil {
		return err
	}
	return e.supervise(ctx, dir)
}

// supervise starts the supervisor in a session of its own, so that neither our end nor a terminal's Ctrl-C reaches it.
func (e *Engine) supervise(ctx context.Context, dir string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer read.Close()
	diagnostics, err := os.OpenFile(filepath.Join(dir, diagnosticFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		write.Close()
		return fmt.Errorf("opening the supervisor's log: %w", err)
	}
	arguments := append(append([]string{}, e.options.Supervisor[1:]...), "run", dir)
	supervisor := exec.Command(e.options.Supervisor[0], arguments...)
	if own, err := os.Executable(); err == nil && own == e.options.Supervisor[0] {
		supervisor.Path = "/proc/self/exe" // also when the file was replaced or removed since
	}
	supervisor.Dir = "/"
	supervisor.Env = baseEnvironment()
	supervisor.Stdout, supervisor.Stderr = diagnostics, diagnostics
	supervisor.ExtraFiles = []*os.File{write}
	supervisor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = supervisor.Start()
	write.Close()
	diagnostics.Close()
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	go func() {
		// How the supervisor ended is in its own record; here it is only reaped.
		_ = supervisor.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { _ = read.SetReadDeadline(time.Now()) })
	defer stop()
	var report startReport
	if err := json.NewDecoder(read).Decode(&report); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the instance to start: %w", ctx.Err())
		}
		return fmt.Errorf("the supervisor ended early: %s", lastDiagnostic(dir))
	}
	if report.Error != "" {
		return fmt.Errorf("starting the instance: %s", report.Error)
	}
	return nil
}

func lastDiagnostic(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, diagnosticFile))
	if err != nil || len(data) == 0 {
		return "it left no word"
	}
	return strings.TrimSpace(string(lastLines(data, 5)))
}

// Stop ends the instance and everything that belongs to it. Every process gets SIGTERM and the grace to end in order.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) error {
	dir, err := e.dirOf(id)
	if err != nil {
		return err
	}
	release, err := lock(ctx, filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer release()
	found, err := loadDir(dir)
	if err != nil {
		return err
	}
	if found.run == nil {
		return nil
	}
	if grace < 0 {
		if err := found.killWhereItStands(ctx); err != nil {
			return err
		}
	} else if found.status == engine.StatusRunning || found.status == engine.StatusPaused {
		if err := found.resume(); err != nil {
			return err
		}
		if err := found.run.Supervisor.signal(unix.SIGTERM); err != nil {
			return err
		}
		if err := found.ended(ctx, grace); err != nil && ctx.Err() != nil {
			return fmt.Errorf("waiting for the instance to end: %w", ctx.Err())
		} else if err != nil {
			// The supervisor sees its init gone, kills the rest and records the exit.
			if err := found.run.Init.signal(unix.SIGKILL); err != nil {
				return err
			}
			cgroupSet(found.run.Cgroups).kill()
			if err := found.ended(ctx, 10*time.Second); err != nil {
				e.options.Logger.Warn("the supervisor does not end its instance; ending both", "instance", found.record.Spec.Name)
				if err := found.run.Supervisor.signal(unix.SIGKILL); err != nil {
					return err
				}
			}
		}
	}
	if err := found.sweep(ctx); err != nil {
		return err
	}
	if err := removeFiles(dir, pausedFile); err != nil {
		return err
	}
	recorded, err := readJSON[exit](filepath.Join(dir, exitFile))
	if err != nil {
		return err
	}
	if recorded == nil || recorded.RunID != found.run.ID {
		err := writeJSON(filepath.Join(dir, exitFile), exit{RunID: found.run.ID, Code: 128 + int(unix.SIGKILL), FinishedAt: time.Now().UTC()})
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			// Nothing of it runs, which the state without the record says too; only the exit code is not known. A
			// workspace that filled its disk must be able to stop, or it could never be backed up and give the room back.
			e.options.Logger.Warn("the disk is full: how the instance ended is not recorded", "instance", found.record.Spec.Name, "error", err)
			return nil
		}
		return err
	}
	return nil
}

var errStillRunning = errors.New("still running")

// ended waits until the supervisor is gone, which it is only after it recorded the exit.
func (i *instance) ended(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for i.run.Supervisor.alive() {
		if !time.Now().Before(deadline) {
			return errStillRunning
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// sweep makes sure that nothing of an ended run is left, whatever became of its supervisor.
func (i *instance) sweep(ctx context.Context) error {
	if i.run != nil && i.run.Supervisor.alive() {
		// It has recorded the exit and is about to end: until then it holds the lock that a new one needs.
		if err := i.ended(ctx, 10*time.Second); err != nil {
			return fmt.Errorf("waiting for the supervisor of the last run: %w", err)
		}
	}
	for attempt := 0; ; attempt++ {
		if i.run != nil {
			cgroupSet(i.run.Cgroups).kill()
		}
		left, err := i.members()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if attempt == 1000 {
			return fmt.Errorf("%d processes of %s cannot be killed", len(left), i.record.Spec.Name)
		}
		signalAll(left, unix.SIGKILL)
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("killing what is left of the instance: %w", err)
		}
	}
	if i.run != nil {
		cgroupSet(i.run.Cgroups).remove()
	}
	return nil
}

// killWhereItStands ends everything of an instance that is paused without letting any of it run on: what is killed while it is frozen, or
// stopped, does not come to its next instruction.
func (i *instance) killWhereItStands(ctx context.Context) error {
	cgroupSet(i.run.Cgroups).kill()
	members, err := i.members()
	if err != nil {
		return err
	}
	signalAll(members, unix.SIGKILL)
	if err := i.run.Init.signal(unix.SIGKILL); err != nil {
		return err
	}
	// The supervisor sees its init gone and records the exit.
	if err := i.ended(ctx, 10*time.Second); err != nil && ctx.Err() == nil {
		return i.run.Supervisor.signal(unix.SIGKILL)
	}
	return ctx.Err()
}

// Pause stops all processes where they are: with the freezer where there is one, else with SIGSTOP.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.changePause(ctx, id, func(found *instance) error {
		// Written first: an agent that dies in between leaves an instance that says it is paused and can be unpaused,
		// never one that stands still and says it runs.
		if err := os.WriteFile(filepath.Join(found.dir, pausedFile), nil, 0o600); err != nil {
			return fmt.Errorf("recording the pause: %w", err)
		}
		if cgroupSet(found.run.Cgroups).freeze(true) {
			return nil
		}
		cgroupSet(found.run.Cgroups).freeze(false)
		return found.stopAll(ctx)
	})
}

// stopAll stops every process, again until all stand: they may fork meanwhile.
func (i *instance) stopAll(ctx context.Context) error {
	for attempt := 0; attempt < 200; attempt++ {
		found, err := i.members()
		if err != nil {
			return err
		}
		moving := false
		for _, current := range found {
			// The parent of a vfork waits in the kernel (D) for its stopped child: it cannot move either, and never stops.
			// Any other D is short. Of one whose first thread has ended, the others' state is not seen here.
			stands := current.state == 'T' || current.state == 't' || (current.state == 'D' && attempt > 50) || (current.state == 'Z' && attempt > 0)
			moving = moving || !stands
		}
		if !moving {
			return nil
		}
		signalAll(found, unix.SIGSTOP)
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("pausing: %w", err)
		}
	}
	return fmt.Errorf("pausing %s: its processes do not stop", i.record.Spec.Name)
}

// resume lets everything run on.
func (i *instance) resume() error {
	if i.run == nil {
		return nil
	}
	cgroupSet(i.run.Cgroups).freeze(false)
	if _, err := os.Stat(filepath.Join(i.dir, pausedFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	found, err := i.members()
	if err != nil {
		return err
	}
	signalAll(found, unix.SIGCONT)
	return removeFiles(i.dir, pausedFile)
}

// Unpause lets a paused instance run on.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.changePause(ctx, id, func(found *instance) error { return found.resume() })
}

func (e *Engine) changePause(ctx context.Context, id string, change func(*instance) error) error {
	dir, err := e.dirOf(id)
	if err != nil {
		return err
	}
	release, err := lock(ctx, filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer release()
	found, err := loadDir(dir)
	if err != nil {
		return err
	}
	if found.status != engine.StatusRunning && found.status != engine.StatusPaused {
		return fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, found.record.Spec.Name, found.status)
	}
	return change(found)
}

// Remove deletes the instance's own files, one by one, so that it can never delete content.
func (e *Engine) Remove(ctx context.Context, id string) error {
	dir, err := e.dirOf(id)
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	release, err := lock(ctx, filepath.Join(dir, lockFile))
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	found, err := loadDir(dir)
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if found.status == engine.StatusRunning || found.status == engine.StatusPaused {
		return fmt.Errorf("removing %s: it is %s: stop it first", found.record.Spec.Name, found.status)
	}
	if err := found.sweep(ctx); err != nil {
		return err
	}
	return removeInstanceDir(dir)
}

// goneInstance begins the name of what is left of an instance whose removal was cut at its end.
const goneInstance = ".gone-"

// removeInstanceDir removes what an instance's directory holds, its description last: until then it is found again by who has
// to remove it, and after that by New, under another name. Whatever lies in the directory itself is the engine's, also what a process left that was killed while it wrote;
// content never does. A directory in it that is not the engine's is left, and is an error.
func removeInstanceDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the instance's directory: %w", err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name == specFile {
			continue
		} else if entry.IsDir() && name != rootMount {
			return fmt.Errorf("removing the instance's directory: the directory %s in it is not the engine's", name)
		}
		// Not RemoveAll: a root that is not empty is still mounted.
		if err := removeFiles(dir, entry.Name()); err != nil {
			return err
		}
	}
	mark, err := randomID()
	if err != nil {
		return err
	}
	gone := filepath.Join(filepath.Dir(dir), goneInstance+mark)
	if err := os.Rename(dir, gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing the instance's directory: %w", err)
	}
	return removeGone(gone)
}

func removeGone(gone string) error {
	if err := removeFiles(gone, specFile); err != nil {
		return err
	}
	if err := os.Remove(gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the instance's directory: %w", err)
	}
	return nil
}

// removeRemains removes what a Remove that was killed at its end has left.
func removeRemains(root string) error {
	entries, err := os.ReadDir(root)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), goneInstance) {
			err = errors.Join(err, removeGone(filepath.Join(root, entry.Name())))
		}
	}
	return err
}

func removeFiles(dir string, names ...string) error {
	for _, name := range names {
		// Not RemoveAll: a directory that is not empty is not one of ours.
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an instance file: %w", err)
		}
	}
	return nil
}
