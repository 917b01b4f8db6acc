package guard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// End ends the guard of a directory when it holds nothing, else it is ErrHolds and stays. None is no error.
func End(ctx context.Context, dir string) error {
	l, err := dial(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.close()
	a, err := l.ask(ctx, answerWithin, request{Op: opStop})
	if err != nil {
		return err
	}
	return a.err()
}

// Hold has the guard of a directory hold an instance that does not say itself that it is exclusive.
func Hold(ctx context.Context, dir string, instance Instance) error {
	l, err := dial(dir)
	if err != nil {
		return err
	}
	defer l.close()
	a, err := l.ask(ctx, answerWithin, request{Op: opHold, Instance: instance})
	if err != nil {
		return err
	}
	return a.err()
}

// Stop ends the guard of a directory, whatever it holds, and returns when it is gone: for whoever ends the node with everything on
// it. None is no error. What it had paused stays so.
func Stop(ctx context.Context, dir string) error {
	l, err := dial(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.close()
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("looking who the guard is: %w", err)
	}
	var peer *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || asked != nil {
		return fmt.Errorf("looking who the guard is: %w", errors.Join(err, asked))
	}
	holder, err := identify(int(peer.Pid))
	if err != nil {
		return err
	}
	fd, ok, err := holder.open()
	if err != nil || !ok {
		return err
	}
	defer unix.Close(fd)
	_, asking := l.ask(ctx, answerWithin, request{Op: opStop, Force: true})
	if asking == nil {
		if ended, err := gone(fd, endWithin); err != nil || ended {
			return err
		}
	}
	if err := holder.kill(); err != nil {
		return err
	}
	if ended, err := gone(fd, endWithin); err != nil || !ended {
		return errors.Join(err, errors.New("the guard does not end"))
	}
	return nil
}
