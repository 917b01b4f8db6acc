package devstack

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// childAttributes puts the child into a process group of its own and ties its life to this process's.
func childAttributes(onParentDeath syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: onParentDeath}
}

// standsStill reports whether every thread of a child of ours is stopped; a signal reaches them one by one.
func standsStill(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return true // no /proc to ask
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has ended
		}
		// "pid (name) state …", where the name may hold anything.
		_, rest, found := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
		if found && len(rest) > 0 && !bytes.ContainsRune([]byte("TtZX"), rune(rest[0])) {
			return false
		}
	}
	return true
}
