package snapshot

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory with everything in it, directories that their owner may not enter included, without
// following a link or leaving it. What is already gone is no error.
func removeTree(parent int, name string) error {
	root, err := openForRemoval(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %q: %w", name, err)
	}
	defer unix.Close(root)
	// One directory is open at a time however deep the tree is; order lists them with parents before children.
	order := []string{""}
	var failures []error
	for next := 0; next < len(order); next++ {
		path := order[next]
		fd, err := openPathForRemoval(root, path)
		if err != nil {
			failures = append(failures, fmt.Errorf("opening %q: %w", path, err))
			continue
		}
		names, err := readNames(fd)
		if err != nil {
			failures = append(failures, fmt.Errorf("reading %q: %w", path, err))
		}
		for _, entry := range names {
			err := ignoringEINTR(func() error { return unix.Unlinkat(fd, entry, 0) })
			switch {
			case err == nil, errors.Is(err, unix.ENOENT):
			case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
				order = append(order, strings.TrimPrefix(path+"/"+entry, "/"))
			default:
				failures = append(failures, fmt.Errorf("removing %q: %w", path+"/"+entry, err))
			}
		}
		unix.Close(fd)
	}
	for i := len(order) - 1; i > 0; i-- {
		above, last := "", order[i]
		if cut := strings.LastIndexByte(order[i], '/'); cut >= 0 {
			above, last = order[i][:cut], order[i][cut+1:]
		}
		fd, err := openPathForRemoval(root, above)
		if err == nil {
			err = ignoringEINTR(func() error { return unix.Unlinkat(fd, last, unix.AT_REMOVEDIR) })
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			failures = append(failures, fmt.Errorf("removing %q: %w", order[i], err))
		}
	}
	err = ignoringEINTR(func() error { return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		failures = append(failures, fmt.Errorf("removing %q: %w", name, err))
	}
	return errors.Join(failures...)
}

// openPathForRemoval opens a directory below root that may lie deeper than one path can say.
func openPathForRemoval(root int, path string) (int, error) {
	current, err := openRetry(root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for err == nil && path != "" {
		var piece string
		piece, path = cutPath(path, true)
		previous := current
		current, err = openForRemoval(previous, piece)
		unix.Close(previous)
	}
	return current, err
}

// openForRemoval opens one directory, after making it accessible when its own mode forbids that.
func openForRemoval(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openRetry(dir, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		if err := makeAccessible(dir, name); err != nil {
			return -1, err
		}
		return openRetry(dir, name, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	// Readable is not enough to remove what is inside.
	var stat unix.Stat_t
	if err := fstat(fd, &stat); err == nil && stat.Mode&0o700 != 0o700 {
		_ = ignoringEINTR(func() error { return unix.Fchmod(fd, 0o700) }) // the removal itself will say what is wrong
	}
	return fd, nil
}

// makeAccessible gives the owner all rights on a directory that cannot even be opened.
func makeAccessible(dir int, name string) error {
	fd, err := openRetry(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return ignoringEINTR(func() error { return unix.Chmod(descriptorPath(fd), 0o700) })
}

// descriptorPath names what a descriptor refers to, for system calls that take no O_PATH descriptor.
func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
