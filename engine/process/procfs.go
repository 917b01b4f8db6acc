package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// marker is the environment variable by which a process of an instance is known when nothing better is there.
const marker = "HOLDFAST_INSTANCE"

// execMarker tells the processes of one exec.
const execMarker = "HOLDFAST_EXEC"

// stat is the part of /proc/<pid>/stat that is used here; times are clock ticks.
type stat struct {
	pid, parent, session int
	state                byte
	ticks                uint64 // user and system time, with that of children that were waited for
	startTime            uint64
	residentPages        int64
	threads              int64
}

// dead says whether the whole process runs no more. One whose first thread has ended looks like a zombie while its other
// threads still run, or are about to end: until then it writes, and holds its locks.
func (s stat) dead() bool {
	return (s.state == 'Z' || s.state == 'X') && s.threads <= 1
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// parseStat follows proc(5). The command name may hold spaces and parentheses, so fields are counted from the last ')'.
func parseStat(data []byte) (stat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 1 || end < open {
		return stat{}, errors.New("a /proc stat line without a command")
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data[:open])))
	if err != nil {
		return stat{}, fmt.Errorf("a /proc stat line without a pid: %w", err)
	}
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 22 {
		return stat{}, errors.New("a short /proc stat line")
	}
	number := func(field int) int64 { // numbered as in proc(5), the state is 3
		n, convErr := strconv.ParseInt(fields[field-3], 10, 64)
		if convErr != nil && err == nil {
			err = fmt.Errorf("field %d of a /proc stat line: %w", field, convErr)
		}
		return n
	}
	out := stat{
		pid: pid, state: fields[0][0], parent: int(number(4)), session: int(number(6)),
		ticks:   uint64(number(14) + number(15) + number(16) + number(17)),
		threads: number(20), residentPages: number(24),
	}
	if out.startTime, err = strconv.ParseUint(fields[22-3], 10, 64); err != nil {
		return stat{}, fmt.Errorf("the start time of a /proc stat line: %w", err)
	}
	return out, err
}

// readIO gives the bytes that a process, all its threads and the children that it waited for have read and written, also
// from and to the kernel's cache.
func readIO(pid int) (int64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		return 0, err
	}
	return parseIO(data)
}

// parseIO follows proc(5).
func parseIO(data []byte) (int64, error) {
	var total int64
	seen := 0
	for line := range bytes.Lines(data) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		if string(name) != "rchar" && string(name) != "wchar" {
			continue
		}
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("a /proc io line %q", line)
		}
		total += n
		seen++
	}
	if seen != 2 {
		return 0, errors.New("a /proc io file without both counts")
	}
	return total, nil
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// identify says who the process is now.
func identify(pid int) (identity, error) {
	if pid <= 1 {
		return identity{}, fmt.Errorf("pid %d is not a process of ours", pid)
	}
	current, err := readStat(pid)
	if err != nil {
		return identity{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	return identity{PID: pid, StartTime: current.startTime, BootID: bootID()}, nil
}

// alive says whether that very process runs; a zombie does not.
func (i identity) alive() bool {
	if i.PID <= 1 || i.BootID != bootID() {
		return false
	}
	current, err := readStat(i.PID)
	return err == nil && current.startTime == i.StartTime && !current.dead()
}

// signal signals that very process: the pidfd is taken before the start time is compared, so that the number cannot
// change hands in between. A process that is gone is no error.
func (i identity) signal(signal unix.Signal) error {
	if i.PID <= 1 {
		return fmt.Errorf("refusing to signal pid %d", i.PID)
	}
	fd, err := unix.PidfdOpen(i.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", i.PID, err)
	}
	defer unix.Close(fd)
	if !i.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signalling process %d: %w", i.PID, err)
	}
	return nil
}

func allProcesses() (map[int]stat, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	all := make(map[int]stat, len(entries))
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if current, err := readStat(pid); err == nil {
			all[pid] = current
		}
	}
	return all, nil
}

// descendants adds to found every process below root.
func descendants(all map[int]stat, root int, found map[int]stat) {
	children := make(map[int][]int)
	for pid, current := range all {
		children[current.parent] = append(children[current.parent], pid)
	}
	var walk func(int)
	walk = func(pid int) {
		for _, child := range children[pid] {
			if _, seen := found[child]; !seen {
				found[child] = all[child]
				walk(child)
			}
		}
	}
	walk(root)
}

// marked adds every process whose environment has the entry. The environment of a process of another user cannot be
// read without privileges; such a process is not ours then.
func marked(all map[int]stat, name, value string, found map[int]stat) {
	if value == "" {
		return
	}
	wanted := []byte(name + "=" + value)
	for pid, current := range all {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			continue
		}
		for _, entry := range bytes.Split(data, []byte{0}) {
			if bytes.Equal(entry, wanted) {
				found[pid] = current
				break
			}
		}
	}
}

func namespaceOf(pid int, kind string) string {
	link, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
	if err != nil {
		return ""
	}
	return link
}

// members finds every live process of a run: by cgroup, by PID namespace, by descent from the supervisor, and by the
// marker, so that a process can escape one of them and is still found. Zombies are left out: they run no more.
func (i *instance) members() (map[int]stat, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	found := make(map[int]stat)
	marked(all, marker, i.record.ID, found)
	if i.run != nil {
		if i.run.Supervisor.alive() {
			descendants(all, i.run.Supervisor.PID, found)
		}
		// The namespace is only known by its init: once that is gone, its number may belong to another.
		if i.run.Namespaced && i.run.Init.alive() {
			if wanted := namespaceOf(i.run.Init.PID, "pid"); wanted != "" {
				for pid, current := range all {
					if namespaceOf(pid, "pid") == wanted {
						found[pid] = current
					}
				}
			}
		}
		for _, pid := range cgroupSet(i.run.Cgroups).processes() {
			if current, ok := all[pid]; ok {
				found[pid] = current
			}
		}
		delete(found, i.run.Supervisor.PID)
	}
	delete(found, os.Getpid())
	for pid, current := range found {
		if pid <= 1 || current.dead() {
			delete(found, pid)
		}
	}
	return found, nil
}

// signalAll signals each of the processes, and only if it is still the one that was found.
func signalAll(found map[int]stat, signal unix.Signal) {
	boot := bootID()
	for pid, current := range found {
		// A process that cannot be signalled shows in the next look at the members, which is what counts.
		_ = identity{PID: pid, StartTime: current.startTime, BootID: boot}.signal(signal)
	}
}
