package snapshot

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// GCPercent is what debug.SetGCPercent should be told in a process that does nothing else than this package's work. Most
// of what a backup holds are buffers that are used again, so that Go's default lets it take twice the memory it needs,
// and collecting more often costs next to nothing. The package itself changes nothing in the process that it is part of.
const GCPercent = 25

// leastIndexMemory is enough for 600,000 blobs.
const leastIndexMemory = 64 << 20

// availableMemory is how many bytes this process may have: the machine's memory, or less where its control groups (version 2, or
// the memory controller of version 1) or GOMEMLIMIT say so. What cannot be read limits nothing.
func availableMemory(proc, cgroups string) int64 {
	limit := debug.SetMemoryLimit(-1)
	if content, err := os.ReadFile(filepath.Join(proc, "meminfo")); err == nil {
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			if len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
				if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil && kib > 0 && kib < math.MaxInt64>>10 {
					limit = min(limit, kib<<10)
				}
			}
		}
	}
	membership, err := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	if err != nil {
		return limit
	}
	lines := bufio.NewScanner(bytes.NewReader(membership))
	for lines.Scan() {
		parts := strings.SplitN(lines.Text(), ":", 3) // number, controllers, group
		if len(parts) != 3 {
			continue
		}
		root, file := cgroups, "memory.max"
		if parts[1] != "" {
			root, file = filepath.Join(cgroups, "memory"), "memory.limit_in_bytes"
		}
		if parts[1] != "" && parts[1] != "memory" {
			continue
		}
		// The groups above it limit it too. In a container its own is often the root of what can be seen.
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			if content, err := os.ReadFile(filepath.Join(root, group, file)); err == nil {
				if most, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64); err == nil && most > 0 { // else "max"
					limit = min(limit, most)
				}
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}
