package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Options of Run.
type Options struct {
	// Dir is the guard's directory, made with mode 0700.
	Dir string
	// Version is the program's. An agent of another has its own guard take over.
	Version string
	// Replace takes over from a guard that is there; else it is waited for until that ends.
	Replace bool
	// Pausers are by the kind of engine.
	Pausers map[string]Pauser
	Logger  *slog.Logger
	// Idle is how long it stays when it holds nothing and no agent is there. Default 1 minute.
	Idle time.Duration

	now func() Moment // the machine's, when nil
}

func (o *Options) applyDefaults() {
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.now == nil {
		o.now = Now
	}
}

const (
	// handoverWithin bounds each question to the guard before; one that does not answer is killed.
	handoverWithin = 3 * time.Second
	// lockEvery is how often the lock is tried.
	lockEvery = 50 * time.Millisecond
	// endWithin is how long a guard may take to end that was told or killed.
	endWithin = 5 * time.Second
)

// server is this process as a guard.
type server struct {
	options Options
	keeper  *keeper
	lock    *os.File

	mutex   sync.Mutex
	agents  int
	alone   Moment // since when no agent is there
	leaving bool
	ended   chan struct{} // closed when it is to end
	end     sync.Once

	writing sync.Mutex // held while the record is written
	written Record
}

// Run is the guard, until it is told to end or the context ends. With the context's end it ends as it is: what stands stays so.
func Run(ctx context.Context, options Options) error {
	options.applyDefaults()
	if err := os.MkdirAll(options.Dir, 0o700); err != nil {
		return fmt.Errorf("making the guard's directory: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(options.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the guard's lock: %w", err)
	}
	defer lock.Close()
	p := &server{
		options: options, lock: lock, alone: options.now(), ended: make(chan struct{}),
		keeper: &keeper{pausers: options.Pausers, logger: options.Logger, now: options.now, boot: boot},
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := p.begin(ctx); err != nil {
		return err
	}
	listener, err := p.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	go p.serve(ctx, listener)
	options.Logger.Info("guard runs", "version", options.Version, "instances", len(p.keeper.record().Instances))
	select {
	case <-p.ended:
	case <-ctx.Done():
	}
	// The lock goes with the process, or with the file: the next guard has what it needs by then.
	return nil
}

// begin gets what is known and begins to guard, and then the lock: at no moment does nobody guard.
func (p *server) begin(ctx context.Context) error {
	held, err := tryLock(p.lock)
	if err != nil {
		return err
	}
	switch {
	case held:
		p.recall()
		go p.ticks(ctx)
	case !p.options.Replace:
		p.options.Logger.Info("another guard is there; it is waited for")
		if err := p.await(ctx, 0); err != nil {
			return err
		}
		p.recall()
		go p.ticks(ctx)
	default:
		if err := p.takeOver(ctx); err != nil {
			return err
		}
	}
	own, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	data, err := json.Marshal(own)
	if err != nil {
		return fmt.Errorf("saying who holds the guard's lock: %w", err)
	}
	if err := errors.Join(p.lock.Truncate(0), writeAt(p.lock, data)); err != nil {
		return fmt.Errorf("saying who holds the guard's lock: %w", err)
	}
	return p.write()
}

func writeAt(file *os.File, data []byte) error {
	_, err := file.WriteAt(data, 0)
	return err
}

// takeOver gets everything from the guard that is there, begins, and tells it to go. One that does not answer is killed; what
// it knew is on the disk.
func (p *server) takeOver(ctx context.Context) error {
	told, err := p.handover(ctx)
	if err != nil {
		p.options.Logger.Warn("the guard before does not hand over; it is killed", "error", err)
		p.recall()
		go p.ticks(ctx)
		if err := p.killHolder(); err != nil {
			return err
		}
	} else {
		defer told.close()
		go p.ticks(ctx)
		if _, err := told.ask(ctx, handoverWithin, request{Op: opGo}); err != nil {
			p.options.Logger.Warn("the guard before does not say that it goes", "error", err)
			if err := p.killHolder(); err != nil {
				return err
			}
		}
	}
	return p.await(ctx, endWithin)
}

// handover asks the guard before for what it knows.
func (p *server) handover(ctx context.Context) (*link, error) {
	before, err := dial(p.options.Dir)
	if err != nil {
		return nil, err
	}
	got, err := before.ask(ctx, handoverWithin, request{Op: opHandover, Version: p.options.Version})
	if err == nil {
		err = got.err()
	}
	if err == nil && (got.Record == nil || got.Protocol > protocol) {
		err = fmt.Errorf("%w: a guard of protocol %d", ErrInvalid, got.Protocol)
	}
	if err != nil {
		before.close()
		return nil, err
	}
	p.keeper.take(*got.Record)
	return before, nil
}

// killHolder kills the very process that holds the lock.
func (p *server) killHolder() error {
	data, err := os.ReadFile(p.lock.Name())
	if err != nil {
		return fmt.Errorf("looking who holds the guard's lock: %w", err)
	}
	var holder identity
	if err := json.Unmarshal(data, &holder); err != nil {
		return fmt.Errorf("looking who holds the guard's lock: %w", err)
	}
	return holder.kill()
}

// await waits for the lock; a limit of 0 is none.
func (p *server) await(ctx context.Context, limit time.Duration) error {
	began := time.Now()
	ticker := time.NewTicker(lockEvery)
	defer ticker.Stop()
	for {
		held, err := tryLock(p.lock)
		if err != nil || held {
			return err
		}
		if limit > 0 && time.Since(began) > limit {
			return errors.New("the guard before does not end")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func tryLock(file *os.File) (bool, error) {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking the guard's directory: %w", err)
	}
	return true, nil
}

// recall reads what an earlier guard wrote down. What cannot be read is said, and is nothing: the agent names what is exclusive
// before it believes in its guard.
func (p *server) recall() {
	record := Record{Boot: p.keeper.boot}
	data, err := os.ReadFile(filepath.Join(p.options.Dir, recordFile))
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.options.Logger.Error("what the guard before held cannot be read", "error", err)
		record = Record{Boot: p.keeper.boot}
	}
	p.keeper.take(record)
}

// write writes down what is known, when that is not there.
func (p *server) write() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	record := p.keeper.record()
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("writing down what is held: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(p.options.Dir, recordFile), data, 0o600); err != nil {
		return fmt.Errorf("writing down what is held: %w", err)
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.written = record
	return nil
}

// ticks guards until the context ends, and ends the process when there is nothing to guard for long.
func (p *server) ticks(ctx context.Context) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		p.keeper.tick(ctx)
		p.mutex.Lock()
		idle := p.agents == 0 && p.options.now().Since(p.alone) > p.options.Idle
		p.mutex.Unlock()
		if idle && p.keeper.empty() {
			p.options.Logger.Info("nothing to guard, and no agent: the guard ends")
			p.finish()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *server) finish() { p.end.Do(func() { close(p.ended) }) }
