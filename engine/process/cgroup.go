package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unified is the key of the cgroup v2 directory in a cgroupSet; the others are v1 controllers.
const unified = "unified"

// cgroupSet maps a controller to the directory of one run. It may be empty: then the run has no cgroup.
type cgroupSet map[string]string

// cgroupParents finds the directories below which this process may make cgroups: its own, in every hierarchy. Paths are
// taken from mountinfo and /proc/self/cgroup, never built: a machine may mount only part of a hierarchy.
func cgroupParents() (map[string]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("reading the mounts: %w", err)
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the own cgroup: %w", err)
	}
	own := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			own[unified] = parts[2]
			continue
		}
		for name := range strings.SplitSeq(parts[1], ",") {
			own[name] = parts[2]
		}
	}
	parents := make(map[string]string)
	for _, mount := range mounts {
		names := []string{unified}
		if mount.FSType == "cgroup" {
			names = strings.Split(mount.VFSOptions, ",")
		}
		for _, name := range names {
			path, ok := own[name]
			if !ok {
				continue
			}
			below, err := filepath.Rel(mount.Root, path)
			if err != nil || strings.HasPrefix(below, "..") {
				below = "."
			}
			if _, known := parents[name]; !known {
				parents[name] = filepath.Join(mount.Mountpoint, below)
			}
		}
	}
	return parents, nil
}

// limits of a run; 0 is none.
type limits struct {
	memory int64
	cpus   float64
	pids   int64
}

// makeCgroups makes the run's cgroups where this machine allows it and says in notes what could not be had.
func makeCgroups(name, parent string, want limits) (cgroupSet, []string) {
	set := cgroupSet{}
	parents, err := cgroupParents()
	if err != nil {
		return set, []string{"no cgroups: " + err.Error()}
	}
	if parent != "" {
		parents = map[string]string{unified: parent}
	}
	var notes []string
	if base, ok := parents[unified]; ok {
		// Fails with EBUSY where the agent itself sits in base (v2 wants processes in leaves only); then there are no limits.
		for _, controller := range []string{"+memory", "+cpu", "+pids"} {
			_ = writeControl(base, "cgroup.subtree_control", controller)
		}
		if err := makeGroup(filepath.Join(base, name)); err == nil {
			set[unified] = filepath.Join(base, name)
		}
	}
	wanted := map[string]bool{"freezer": set[unified] == "", "cpuacct": set[unified] == "", "memory": want.memory > 0, "cpu": want.cpus > 0, "pids": want.pids > 0}
	for _, controller := range []string{"freezer", "cpuacct", "memory", "cpu", "pids"} {
		if base, ok := parents[controller]; ok && wanted[controller] {
			if err := makeGroup(filepath.Join(base, name)); err == nil {
				set[controller] = filepath.Join(base, name)
			}
		}
	}
	if want.memory > 0 && !set.limitMemory(want.memory) {
		notes = append(notes, "the memory limit is not enforced: no memory cgroup may be made here")
	}
	if want.cpus > 0 && !set.limitCPU(want.cpus) {
		notes = append(notes, "the CPU limit is not enforced: no CPU cgroup may be made here")
	}
	if want.pids > 0 && !set.write("pids", "pids.max", "pids.max", strconv.FormatInt(want.pids, 10)) {
		notes = append(notes, "the limit on processes is not enforced: no pids cgroup may be made here")
	}
	return set, notes
}

func makeGroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func writeControl(dir, file, value string) error {
	control, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = control.WriteString(value)
	return errors.Join(err, control.Close())
}

// write sets a control file of the v1 controller or, where there is none, of v2.
func (s cgroupSet) write(controller, v1, v2, value string) bool {
	if dir := s[controller]; dir != "" {
		return writeControl(dir, v1, value) == nil
	}
	if dir := s[unified]; dir != "" {
		return writeControl(dir, v2, value) == nil
	}
	return false
}

func (s cgroupSet) limitMemory(bytes int64) bool {
	value := strconv.FormatInt(bytes, 10)
	if !s.write("memory", "memory.limit_in_bytes", "memory.max", value) {
		return false
	}
	if s["memory"] != "" { // without this, swap would be without limit
		_ = writeControl(s["memory"], "memory.memsw.limit_in_bytes", value)
	} else {
		_ = writeControl(s[unified], "memory.swap.max", "0")
	}
	return true
}

func (s cgroupSet) limitCPU(cpus float64) bool {
	const period = 100_000 // microseconds, the kernel's default
	quota := max(int64(cpus*period), 1000)
	if s["cpu"] != "" {
		return writeControl(s["cpu"], "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)) == nil
	}
	return s[unified] != "" && writeControl(s[unified], "cpu.max", fmt.Sprintf("%d %d", quota, period)) == nil
}

// add moves a process, with all its threads, into every cgroup of the set.
func (s cgroupSet) add(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("refusing to move pid %d", pid)
	}
	for _, dir := range s {
		if err := writeControl(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("moving process %d to its cgroup: %w", pid, err)
		}
	}
	return nil
}

// walk visits dir and the cgroups that the instance made below it, deepest first.
func (s cgroupSet) walk(visit func(dir string)) {
	for _, top := range s {
		if top == "" {
			continue
		}
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			visit(dirs[i])
		}
	}
}

func (s cgroupSet) processes() []int {
	var pids []int
	s.walk(func(dir string) {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(data)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
	})
	return pids
}

// freeze stops or resumes all processes at once. ok is false where no cgroup can do it.
func (s cgroupSet) freeze(frozen bool) (ok bool) {
	if dir := s[unified]; dir != "" {
		value := map[bool]string{true: "1", false: "0"}[frozen]
		if writeControl(dir, "cgroup.freeze", value) == nil {
			return !frozen || waitFor(dir, "cgroup.events", "frozen 1")
		}
	}
	if dir := s["freezer"]; dir != "" {
		value := map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
		if writeControl(dir, "freezer.state", value) == nil {
			return waitFor(dir, "freezer.state", value)
		}
	}
	return false
}

func waitFor(dir, file, want string) bool {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return false
		}
		if bytes.Contains(data, []byte(want)) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// kill kills what is in the cgroups: at once with v2, else frozen first so that nothing forks away meanwhile.
func (s cgroupSet) kill() {
	if dir := s[unified]; dir != "" && writeControl(dir, "cgroup.kill", "1") == nil {
		_ = writeControl(dir, "cgroup.freeze", "0")
		return
	}
	s.freeze(true)
	all, err := allProcesses()
	if err == nil {
		found := make(map[int]stat)
		for _, pid := range s.processes() {
			if current, ok := all[pid]; ok {
				found[pid] = current
			}
		}
		signalAll(found, unix.SIGKILL)
	}
	s.freeze(false)
}

// remove removes the empty cgroups.
func (s cgroupSet) remove() {
	s.walk(func(dir string) { _ = os.Remove(dir) })
}

// cpu gives CPU seconds where a cgroup counts them.
func (s cgroupSet) cpu() (float64, bool) {
	if usec, ok := s.field(unified, "cpu.stat", "usage_usec"); ok {
		return float64(usec) / 1e6, true
	}
	nsec, ok := s.number("cpuacct", "cpuacct.usage")
	return float64(nsec) / 1e9, ok
}

// memory gives bytes where a cgroup counts them.
func (s cgroupSet) memory() (int64, bool) {
	if bytes, ok := s.number("memory", "memory.usage_in_bytes"); ok {
		return bytes, true
	}
	return s.number(unified, "memory.current")
}

// oomKilled says whether the kernel killed a process of the run for want of memory.
func (s cgroupSet) oomKilled() bool {
	if count, ok := s.field("memory", "memory.oom_control", "oom_kill"); ok {
		return count > 0
	}
	count, ok := s.field(unified, "memory.events", "oom_kill")
	return ok && count > 0
}

func (s cgroupSet) number(controller, file string) (int64, bool) {
	if s[controller] == "" {
		return 0, false
	}
	data, err := os.ReadFile(filepath.Join(s[controller], file))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil
}

func (s cgroupSet) field(controller, file, key string) (int64, bool) {
	if s[controller] == "" {
		return 0, false
	}
	data, err := os.ReadFile(filepath.Join(s[controller], file))
	if err != nil {
		return 0, false
	}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		if name, value, ok := strings.Cut(scanner.Text(), " "); ok && name == key {
			n, err := strconv.ParseInt(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
