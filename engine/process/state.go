package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// The files of one instance in <root>/<name>.
const (
	specFile       = "spec.json"       // record, mode 0600: it holds the environment
	runFile        = "run.json"        // run, written by the supervisor before anything of the instance runs
	exitFile       = "exit.json"       // exit, written by the supervisor when nothing of the run is left
	pausedFile     = "paused"          // exists while the instance is paused
	lockFile       = "lock"            // held for one operation
	supervisorLock = "supervisor.lock" // held by the supervisor for its life
	controlSocket  = "control"         // the init's socket for execs
	outputFile     = "output.log"
	oldOutputFile  = "output.log.1"
	nextOutputFile = "output.log.new" // for a moment, while the log is rotated
	diagnosticFile = "supervisor.log" // what the supervisor has to say, e.g. a panic
	rootMount      = "rootfs"         // mount point of the private root; empty outside the instance's namespace
)

// record is what Create keeps.
type record struct {
	ID        string      `json:"id"`
	Spec      engine.Spec `json:"spec"`
	CreatedAt time.Time   `json:"created_at"`
	Options   runOptions  `json:"options"`
}

// runOptions are the engine's settings that the supervisor needs.
type runOptions struct {
	NoNamespaces bool     `json:"no_namespaces,omitempty"`
	NoCgroups    bool     `json:"no_cgroups,omitempty"`
	CgroupParent string   `json:"cgroup_parent,omitempty"`
	LogBytes     int64    `json:"log_bytes"`
	Hide         []string `json:"hide,omitempty"`
}

// identity names a process so that a later process with the same number is not taken for it.
type identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // field 22 of /proc/<pid>/stat, clock ticks since boot
	BootID    string `json:"boot_id"`
}

// run is one life of an instance.
type run struct {
	ID         string            `json:"id"`
	Supervisor identity          `json:"supervisor"`
	Init       identity          `json:"init"`
	Namespaced bool              `json:"namespaced"`
	Workspace  string            `json:"workspace"` // where the instance sees its content
	Cgroups    map[string]string `json:"cgroups,omitempty"`
	StartedAt  time.Time         `json:"started_at"`
	Notes      []string          `json:"notes,omitempty"`
}

// exit is how a run ended.
type exit struct {
	RunID      string    `json:"run_id"`
	Code       int       `json:"code"`
	OOMKilled  bool      `json:"oom_killed,omitempty"`
	FinishedAt time.Time `json:"finished_at"`
}

// instance is what is known about one instance at one moment.
type instance struct {
	dir    string
	record record
	run    *run
	exit   *exit
	status engine.Status
}

func randomID() (string, error) {
	var raw [12]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return hex.EncodeToString(raw[:]), nil
}

func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", filepath.Base(path), err)
	}
	if err := renameio.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// readJSON returns nil without error when the file is not there.
func readJSON[T any](path string) (*T, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	var value T
	if err := json.Unmarshal(data, &value); err != nil {
		// The decoder's error may quote the content, which holds secrets.
		return nil, fmt.Errorf("the instance file %s is damaged", path)
	}
	return &value, nil
}

// dirOf finds the directory of an id "<name>.<24 hex digits>" or of a bare name.
func (e *Engine) dirOf(id string) (string, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") {
		return "", fmt.Errorf("%w: %q", engine.ErrNotFound, id)
	}
	if dot := strings.LastIndexByte(id, '.'); dot > 0 && len(id)-dot == 25 {
		dir := filepath.Join(e.options.Root, id[:dot])
		if known, err := readJSON[record](filepath.Join(dir, specFile)); err == nil && known != nil && known.ID == id {
			return dir, nil
		}
	}
	dir := filepath.Join(e.options.Root, id)
	if _, err := os.Stat(filepath.Join(dir, specFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: %s", engine.ErrNotFound, id)
		}
		return "", fmt.Errorf("looking for instance %s: %w", id, err)
	}
	return dir, nil
}

// load reads an instance and decides its status.
func (e *Engine) load(id string) (*instance, error) {
	dir, err := e.dirOf(id)
	if err != nil {
		return nil, err
	}
	return loadDir(dir)
}

func loadDir(dir string) (*instance, error) {
	known, err := readJSON[record](filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	if known == nil {
		return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, filepath.Base(dir))
	}
	found := &instance{dir: dir, record: *known, status: engine.StatusCreated}
	if found.run, err = readJSON[run](filepath.Join(dir, runFile)); err != nil {
		return nil, err
	}
	if found.run == nil {
		return found, nil
	}
	// The supervisor writes the exit before it ends: ask whether it lives first, so that an end between the two
	// questions is seen as an exit and not as a lost supervisor.
	alive := found.run.Supervisor.alive()
	if found.exit, err = readJSON[exit](filepath.Join(dir, exitFile)); err != nil {
		return nil, err
	}
	if found.exit != nil && found.exit.RunID != found.run.ID {
		found.exit = nil
	}
	switch {
	case found.exit != nil || !alive:
		found.status = engine.StatusExited
	default:
		found.status = engine.StatusRunning
		if _, err := os.Stat(filepath.Join(dir, pausedFile)); err == nil {
			found.status = engine.StatusPaused
		} else if cgroupSet(found.run.Cgroups).stands() {
			found.status = engine.StatusPaused // by a guard that could not write it down
		}
	}
	return found, nil
}

func (i *instance) describe() engine.Instance {
	out := engine.Instance{
		ID: i.record.ID, Name: i.record.Spec.Name, Image: i.record.Spec.Image, Status: i.status, Labels: i.record.Spec.Labels,
	}
	if i.run != nil {
		out.StartedAt = i.run.StartedAt
	}
	if i.status == engine.StatusExited {
		// A run whose supervisor is gone without a word was killed, or the machine was restarted.
		out.ExitCode = 128 + int(unix.SIGKILL)
		if i.exit != nil {
			out.ExitCode, out.OOMKilled, out.FinishedAt = i.exit.Code, i.exit.OOMKilled, i.exit.FinishedAt
		}
	}
	return out
}

// lock serialises operations on one instance across engines and agents; the returned function releases it.
func lock(ctx context.Context, path string) (func(), error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, filepath.Base(filepath.Dir(path)))
		}
		return nil, fmt.Errorf("locking: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			file.Close()
			return nil, fmt.Errorf("waiting for another operation on the instance: %w", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
