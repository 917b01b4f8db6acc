package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// enterPrivateRoot gives this process, alone in a new mount namespace, a root of its own: everything of the machine's
// root, a /proc of the new PID namespace, and the content at /workspace. Nothing is made on the machine itself: the
// mount point /workspace exists only in a memory file system of this namespace.
func enterPrivateRoot(config initConfig) error {
	// Without this the mounts below would appear on a machine whose root is a shared mount.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	root := config.RootMount
	if err := unix.Mount("holdfast", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mounting a private root: %w", err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == "proc" || entry.Name() == "workspace" {
			continue
		}
		if err := mirrorEntry(filepath.Join("/", entry.Name()), filepath.Join(root, entry.Name()), entry.Type()); err != nil {
			return err
		}
	}
	workspace, proc, old := filepath.Join(root, "workspace"), filepath.Join(root, "proc"), filepath.Join(root, ".holdfast-old-root")
	for _, dir := range []string{workspace, proc, old} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making a mount point: %w", err)
		}
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Mount(config.Content, workspace, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding the content at /workspace: %w", err)
	}
	// After the content, which may lie below one of these.
	for _, dir := range config.Hide {
		target := filepath.Join(root, dir)
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := unix.Mount("hidden", target, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=4k"); err != nil {
			return fmt.Errorf("hiding %s: %w", dir, err)
		}
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := unix.Unmount("/.holdfast-old-root", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the machine's root: %w", err)
	}
	if err := os.Remove("/.holdfast-old-root"); err != nil {
		return fmt.Errorf("removing the mount point of the machine's root: %w", err)
	}
	return nil
}

// mirrorEntry makes an entry of the machine's root appear in the private one.
func mirrorEntry(from, to string, kind os.FileMode) error {
	switch {
	case kind&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return fmt.Errorf("reading the link %s: %w", from, err)
		}
		if err := os.Symlink(target, to); err != nil {
			return fmt.Errorf("making the link %s: %w", from, err)
		}
		return nil
	case kind.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return fmt.Errorf("making a mount point for %s: %w", from, err)
		}
	case kind.IsRegular():
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return fmt.Errorf("making a mount point for %s: %w", from, err)
		}
	default:
		return nil // sockets and devices in the root itself are nothing that a program needs
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s: %w", from, err)
	}
	return nil
}
