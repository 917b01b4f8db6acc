// Package freezer stops and resumes all processes of a cgroup through the kernel alone: no container engine, no agent and no
// disk need to be there for it.
//
// A cgroup is found by what is in its name, among the cgroups of the processes that run now, and never built from parts: a
// path with a part missing is the parent's, and freezing that would freeze the machine.
package freezer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	// ErrNone: no process is in a cgroup that has the name.
	ErrNone = errors.New("no process runs in a cgroup of this name")
	// ErrRefused: the name could mean more than one instance, or the cgroup holds more than it.
	ErrRefused = errors.New("refusing to freeze")
)

// nameForm is what names one instance and no other: a container's full id, or the process engine's.
var nameForm = regexp.MustCompile(`^([0-9a-f]{64}|holdfast-[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}\.[0-9a-f]{24})$`)

// View is what is seen of the kernel. The zero value is this machine.
type View struct {
	// Proc is where /proc is, Mounts the mounts of cgroups; for tests.
	Proc   string
	Mounts func() ([]*mountinfo.Info, error)
}

func (v View) proc() string {
	if v.Proc != "" {
		return v.Proc
	}
	return "/proc"
}

func (v View) mounts() ([]*mountinfo.Info, error) {
	if v.Mounts != nil {
		return v.Mounts()
	}
	return mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
}

// State is what the kernel shows of an instance.
type State int

// The states. Absent is an instance of which nothing runs, or that the kernel does not show.
const (
	Absent State = iota
	Runs
	Stands
)

// States looks at the cgroups of these names. What no process runs in is left out.
func (v View) States(names ...string) (map[string]State, error) {
	found, err := v.Find(names...)
	if err != nil {
		return nil, err
	}
	states := map[string]State{}
	for name, group := range found {
		frozen, err := group.Frozen()
		switch {
		case errors.Is(err, os.ErrNotExist): // it has ended just now
		case err != nil:
			return nil, err
		case frozen:
			states[name] = Stands
		default:
			states[name] = Runs
		}
	}
	return states, nil
}

// Of finds the cgroup of a name in which a process is; ok is false when it is in none.
func (v View) Of(pid int, name string) (group Group, ok bool, err error) {
	if pid <= 1 || !nameForm.MatchString(name) {
		return Group{}, false, fmt.Errorf("%w: process %d of %q", ErrRefused, pid, name)
	}
	data, err := os.ReadFile(filepath.Join(v.proc(), strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, os.ErrNotExist) {
		return Group{}, false, nil
	}
	if err != nil {
		return Group{}, false, fmt.Errorf("reading the cgroup of process %d: %w", pid, err)
	}
	if !bytes.Contains(data, []byte(name)) {
		return Group{}, false, nil // one of another machine, or another process by now
	}
	mounts, err := v.mounts()
	if err != nil {
		return Group{}, false, fmt.Errorf("reading the mounts: %w", err)
	}
	group, ok = resolve(string(data), name, mounts)
	return group, ok, nil
}

// Group is a cgroup that can be frozen.
type Group struct {
	dir     string
	unified bool
}

// Dir is where it is mounted.
func (g Group) Dir() string { return g.dir }

// named says whether an element of a cgroup's path is the name: as it is, or as systemd writes a scope.
func named(element, name string) bool {
	if element == name {
		return true
	}
	scope, ok := strings.CutSuffix(element, ".scope")
	return ok && strings.HasSuffix(scope, "-"+name)
}

// Find finds the cgroups of these names among those of the processes that run. What no process runs in is left out.
func (v View) Find(names ...string) (map[string]Group, error) {
	for _, name := range names {
		if !nameForm.MatchString(name) {
			return nil, fmt.Errorf("%w: %q names no single instance", ErrRefused, name)
		}
	}
	entries, err := os.ReadDir(v.proc())
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	found := map[string]Group{}
	var mounts []*mountinfo.Info
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid <= 1 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(v.proc(), entry.Name(), "cgroup"))
		if err != nil {
			continue // it has ended
		}
		for _, name := range names {
			if _, known := found[name]; known || !bytes.Contains(data, []byte(name)) {
				continue
			}
			if mounts == nil {
				if mounts, err = v.mounts(); err != nil {
					return nil, fmt.Errorf("reading the mounts: %w", err)
				}
			}
			if group, ok := resolve(string(data), name, mounts); ok {
				found[name] = group
			}
		}
	}
	own, err := os.ReadFile(filepath.Join(v.proc(), "self", "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("reading the own cgroup: %w", err)
	}
	for _, name := range names {
		if bytes.Contains(own, []byte(name)) {
			return nil, fmt.Errorf("%w: this process itself is in %s", ErrRefused, name)
		}
	}
	return found, nil
}

// resolve finds where the cgroup of a name is mounted, from the /proc/<pid>/cgroup of a process in it: the v1 freezer first,
// since a machine that has it may mount v2 beside it without controllers.
func resolve(cgroups, name string, mounts []*mountinfo.Info) (Group, bool) {
	var v1, v2 string
	for line := range strings.Lines(cgroups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		// The process may be in a cgroup below that the instance made.
		path, element, ok := "", "", false
		for _, element = range strings.Split(strings.TrimPrefix(parts[2], "/"), "/") {
			path += "/" + element
			if ok = named(element, name); ok {
				break
			}
		}
		switch {
		case !ok:
		case parts[1] == "":
			v2 = path
		default:
			for controller := range strings.SplitSeq(parts[1], ",") {
				if controller == "freezer" {
					v1 = path
				}
			}
		}
	}
	for _, mount := range mounts {
		if v1 != "" && mount.FSType == "cgroup" && hasOption(mount.VFSOptions, "freezer") {
			if dir, ok := below(mount, v1); ok && has(dir, "freezer.state") {
				return Group{dir: dir}, true
			}
		}
	}
	for _, mount := range mounts {
		if v2 != "" && mount.FSType == "cgroup2" {
			if dir, ok := below(mount, v2); ok && has(dir, "cgroup.freeze") {
				return Group{dir: dir, unified: true}, true
			}
		}
	}
	return Group{}, false
}

func hasOption(options, wanted string) bool {
	for option := range strings.SplitSeq(options, ",") {
		if option == wanted {
			return true
		}
	}
	return false
}

// below is where a path of the hierarchy is seen, when the mount shows it.
func below(mount *mountinfo.Info, path string) (string, bool) {
	rest, err := filepath.Rel(mount.Root, path)
	if err != nil || rest == "." || rest == ".." || strings.HasPrefix(rest, "../") {
		return "", false
	}
	return filepath.Join(mount.Mountpoint, rest), true
}

func has(dir, file string) bool {
	_, err := os.Stat(filepath.Join(dir, file))
	return err == nil
}

// Frozen says whether everything in it stands still.
func (g Group) Frozen() (bool, error) {
	file, want := "freezer.state", "FROZEN"
	if g.unified {
		file, want = "cgroup.events", "frozen 1"
	}
	data, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return false, fmt.Errorf("reading the freezer: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(line) == want {
			return true, nil
		}
	}
	return false, nil
}

// Freeze stops everything in it, and returns when all of it stands still or the context ends. Without its end everything that
// asks the kernel for something stands already; what is in the kernel, waiting for a disk, stands as soon as it is back.
func (g Group) Freeze(ctx context.Context) error {
	if g.dir == "" {
		return fmt.Errorf("%w: no cgroup", ErrRefused)
	}
	for {
		if err := g.write("1", "FROZEN"); err != nil {
			return err
		}
		frozen, err := g.Frozen()
		if err != nil || frozen {
			return err
		}
		timer := time.NewTimer(5 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("something in %s does not stand still yet: %w", g.dir, ctx.Err())
		}
	}
}

// Thaw lets everything in it go on.
func (g Group) Thaw() error {
	if g.dir == "" {
		return fmt.Errorf("%w: no cgroup", ErrRefused)
	}
	return g.write("0", "THAWED")
}

// Kill sends SIGKILL to everything in it and in the cgroups below, while it stands still: nothing of it comes to another instruction
// when it is thawed. Of a group that does not stand still it is ErrRefused: its processes could have others' numbers by then.
func (g Group) Kill() error {
	if g.dir == "" {
		return fmt.Errorf("%w: no cgroup", ErrRefused)
	}
	frozen, err := g.Frozen()
	if err != nil {
		return err
	}
	if !frozen {
		return fmt.Errorf("%w: what is to be killed where it stands does not stand still", ErrRefused)
	}
	if g.unified && has(g.dir, "cgroup.kill") {
		err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrPermission) { // who is not root kills one by one what it may
			return fmt.Errorf("killing what is in a cgroup: %w", err)
		}
	}
	return filepath.WalkDir(g.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("listing what is in a cgroup: %w", err)
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 1 { // 0 is a process that this one cannot name
				return fmt.Errorf("%w: process %q in %s", ErrRefused, field, path)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
		return nil
	})
}

func (g Group) write(v2, v1 string) error {
	file, value := "freezer.state", v1
	if g.unified {
		file, value = "cgroup.freeze", v2
	}
	control, err := os.OpenFile(filepath.Join(g.dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("writing the freezer: %w", err)
	}
	_, err = control.WriteString(value)
	if err := errors.Join(err, control.Close()); err != nil {
		return fmt.Errorf("writing the freezer: %w", err)
	}
	return nil
}
