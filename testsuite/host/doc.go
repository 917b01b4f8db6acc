// Package host makes several hosts of one machine, for tests of what happens when one of them fails: each has network, process and
// mount namespaces of its own, and its own Docker engine in them, on a bridge that is in a network namespace, too. Nothing of it is in
// the machine's own network. Faults are methods: loss of power, of the disk, of the network or parts of it.
//
// Namespaces are held by descriptors and everything that runs in them by the handles of its processes, which the kernel ends with this
// one: no name, no number, and nothing that stays after a panic or a Ctrl-C but the directory that was given and empty cgroups.
//
// What it cannot do: a power loss keeps what was written and not synced, since the page cache is the machine's (Wipe is the strongest
// loss there is); and no host has a clock of its own, because Linux has none for the time of day. Steps of clocks are tested where the
// code reads them.
package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// programs are what hosts are made with.
var programs = []string{"ip", "tc", "nft", "mount", "tini", "dockerd", "containerd", "iptables"}

// Available returns nil when this machine can have hosts, or why not.
func Available() error {
	if runtime.GOOS != "linux" {
		return errors.New("hosts are namespaces of Linux")
	}
	if os.Getuid() != 0 {
		return errors.New("only root can make namespaces and run an engine in them")
	}
	var missing []error
	for _, program := range programs {
		if _, err := find(program); err != nil {
			missing = append(missing, err)
		}
	}
	return errors.Join(missing...)
}

// find finds a program also where only root's PATH leads.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(dir + "/" + program)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed", program)
	}
	return path, nil
}
