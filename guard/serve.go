package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxLinks bounds who may ask at once, and with it the guard's goroutines: an agent has one, and a person or two may look.
const maxLinks = 16

// listen makes the socket. The lock is held: what lies in its place is of a guard that is gone.
func (p *server) listen() (*net.UnixListener, error) {
	var listener *net.UnixListener
	err := viaDescriptor(p.options.Dir, socketFile, func(path string) error {
		if err := os.Remove(filepath.Join(p.options.Dir, socketFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the old socket: %w", err)
		}
		old := syscall.Umask(0o177) // from its first moment on
		defer syscall.Umask(old)
		var err error
		if listener, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path}); err != nil {
			return fmt.Errorf("listening: %w", err)
		}
		// Its path is another one once the directory is closed, and the next guard's by then.
		listener.SetUnlinkOnClose(false)
		return nil
	})
	return listener, err
}

func (p *server) serve(ctx context.Context, listener *net.UnixListener) {
	slots := make(chan struct{}, maxLinks)
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				p.options.Logger.Error("the guard's socket failed; its agent starts another", "error", err)
			}
			p.finish()
			return
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				p.talk(ctx, conn)
			}()
		default:
			conn.Close()
		}
	}
}

// talk answers one agent, or another guard, until it goes.
func (p *server) talk(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer func() { p.left() }()
	p.came()
	decoder, encoder := json.NewDecoder(conn), json.NewEncoder(conn)
	mine := false // the handover was asked for here
	defer func() {
		if mine {
			p.leave(false) // the other has gone without a word: this one stays
		}
	}()
	for {
		var r request
		if err := decoder.Decode(&r); err != nil {
			return
		}
		a := answer{Protocol: protocol, Version: p.options.Version}
		err := p.answer(r, &a, &mine)
		switch {
		case errors.Is(err, ErrHolds):
			a.Holds, a.Error = true, err.Error()
		case errors.Is(err, ErrLeaving):
			a.Leaving, a.Error = true, err.Error()
		case err != nil:
			a.Error = err.Error()
		}
		a.Due, a.Failing = p.keeper.state()
		_ = conn.SetWriteDeadline(time.Now().Add(handoverWithin))
		if err := encoder.Encode(a); err != nil {
			return
		}
		if err == nil && (r.Op == opGo || r.Op == opStop) {
			p.options.Logger.Info("the guard ends", "told", r.Op)
			p.finish()
			return
		}
	}
}

// answer does what is asked for.
func (p *server) answer(r request, a *answer, mine *bool) error {
	switch r.Op {
	case opHello:
		if r.PauseAfter > 0 {
			p.keeper.greet(r.PauseAfter)
		}
		return nil
	case opPing:
		return nil
	case opBeat:
		if err := p.keeper.beaten(r.Beat, r.PauseAfter); err != nil {
			return err
		}
		p.writeSoon()
		return nil
	case opHold, opRelease:
		p.mutex.Lock()
		leaving := p.leaving
		p.mutex.Unlock()
		if leaving {
			return ErrLeaving
		}
		if r.Op == opRelease {
			p.keeper.release(r.Instance)
		} else if err := p.keeper.hold(r.Instance); err != nil {
			return err
		}
		return p.write() // acknowledged is what the next guard knows too
	case opList:
		record := p.keeper.record()
		a.Record = &record
		return nil
	case opHandover:
		if !p.leave(true) {
			return ErrLeaving
		}
		*mine = true
		record := p.keeper.record()
		a.Record = &record
		return nil
	case opGo:
		if !*mine {
			return fmt.Errorf("%w: nothing was handed over here", ErrInvalid)
		}
		*mine = false
		return nil
	case opStop:
		if !r.Force && !p.keeper.empty() {
			return ErrHolds
		}
		return nil
	}
	return fmt.Errorf("%w: %q", ErrInvalid, r.Op)
}

// writeSoon writes the beat down now and then: a guard that is started again begins with one that is a little older.
func (p *server) writeSoon() {
	record := p.keeper.record()
	p.mutex.Lock()
	stale := record.PauseAfter != p.written.PauseAfter || record.Beat.Since(p.written.Beat) >= min(record.PauseAfter/4, 30*time.Second)
	if stale {
		p.written.Beat, p.written.PauseAfter = record.Beat, record.PauseAfter // one at a time
	}
	p.mutex.Unlock()
	if !stale {
		return
	}
	go func() { // a disk that hangs keeps no beat from being heard
		if err := p.write(); err != nil {
			p.options.Logger.Error("the newest beat is not on the disk: a guard that is started again may pause too early", "error", err)
		}
	}()
}

func (p *server) came() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.agents++
}

func (p *server) left() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.agents--; p.agents == 0 {
		p.alone = p.options.now()
	}
}

// leave says whether another guard is about to take over, and whether that is new.
func (p *server) leave(leaving bool) (changed bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	changed = p.leaving != leaving
	p.leaving = leaving
	return changed
}

// state is what agents are told with every answer.
func (k *keeper) state() (due, failing bool) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.overdue(), k.failing > 0
}
