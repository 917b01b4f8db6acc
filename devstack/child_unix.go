//go:build unix && !linux

package devstack

import "syscall"

// childAttributes puts the child into a process group of its own. Only Linux can also tie its life to this process's:
// elsewhere the children of a killed `dev` have to be stopped by hand.
func childAttributes(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// standsStill cannot be told here: the signal has been sent, and works soon.
func standsStill(int) bool { return true }
