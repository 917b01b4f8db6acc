package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// status is what is going on, as one line.
type status struct {
	key    string // the same while nothing of note changed
	text   string
	detail string // said once per key
	done   int64  // bytes
	total  int64  // bytes; 0 when not known
	waits  bool   // nothing moves until something outside changes
	quiet  bool   // not worth a line unless it takes long
}

// progress shows how an operation goes. Its methods may be called from several goroutines.
type progress interface {
	Update(status)
	Close()
}

// newProgress draws bars on a terminal and writes lines elsewhere.
func newProgress(w io.Writer, terminal bool, now func() time.Time) progress {
	if terminal {
		return &bars{w: w}
	}
	return &lines{w: w, now: now}
}

const (
	// newsEvery is the shortest time between two lines about different things; steps that pass faster are not told.
	newsEvery = time.Second
	// sameEvery is the shortest time between two lines about the same thing. It doubles up to sameMost, so that an
	// outage of hours is told without filling a log.
	sameEvery = 5 * time.Second
	sameMost  = 5 * time.Minute
)

// lines writes plain lines, on change only.
type lines struct {
	mu     sync.Mutex
	w      io.Writer
	now    func() time.Time
	last   status
	told   time.Time
	pause  time.Duration
	anyYet bool
}

func (l *lines) Update(s status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	news := !l.anyYet || s.key != l.last.key
	switch {
	case news && s.quiet:
		l.last, l.told, l.pause, l.anyYet = s, now, sameEvery, true
		return
	case !l.anyYet:
	case news && now.Sub(l.told) >= newsEvery:
	case !news && s.text != l.last.text && now.Sub(l.told) >= l.pause:
		l.pause = min(2*l.pause, sameMost)
	default:
		return
	}
	if news {
		l.pause = sameEvery
	}
	fmt.Fprintln(l.w, wrapText(s.text, 2))
	if news && s.detail != "" {
		fmt.Fprintln(l.w, wrapText("  "+strings.ReplaceAll(s.detail, "\n", "\n  "), 4))
	}
	l.last, l.told, l.anyYet = s, now, true
}

func (l *lines) Close() {}

// bars draws one bar, which moves with the bytes when the total is known and spins when it is not.
type bars struct {
	mu    sync.Mutex
	w     io.Writer
	bar   *progressbar.ProgressBar
	key   string
	total int64
}

func (b *bars) Update(s status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	total := s.total
	if total <= 0 {
		total = -1
	}
	if b.bar == nil || s.key != b.key || (total > 0) != (b.total > 0) {
		b.clear()
		if s.detail != "" {
			fmt.Fprintln(b.w, wrapText(s.text+"\n  "+strings.ReplaceAll(s.detail, "\n", "\n  "), 4))
		}
		b.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetWidth(12),
			progressbar.OptionShowBytes(total > 0),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetDescription(shorten(s.text, barText(total > 0))),
			progressbar.OptionSpinnerType(14),
			progressbar.OptionSetSpinnerChangeInterval(0), // its own ticker goes on drawing after Exit
			progressbar.OptionClearOnFinish(),
			progressbar.OptionUseANSICodes(true), // else a shorter line leaves the end of the one before
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetRenderBlankState(true),
		)
	}
	b.key, b.total = s.key, total
	if total > 0 && total != b.bar.GetMax64() {
		b.bar.ChangeMax64(total)
	}
	b.bar.Describe(shorten(s.text, barText(total > 0)))
	if total > 0 {
		// A full bar would finish; the step is over only when the workspace says so.
		_ = b.bar.Set64(min(s.done, total-1))
	} else {
		_ = b.bar.Add(1)
	}
}

// barText is how many columns are left for words beside the bar.
func barText(withBytes bool) int {
	if withBytes {
		return 34
	}
	return 68
}

func (b *bars) clear() {
	if b.bar != nil {
		_ = b.bar.Clear()
		_ = b.bar.Exit()
		b.bar = nil
	}
}

func (b *bars) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
}

// shorten keeps the first columns of a line.
func shorten(text string, columns int) string {
	runes := []rune(strings.ReplaceAll(text, "\n", " "))
	if len(runes) <= columns {
		return string(runes)
	}
	return string(runes[:columns-1]) + "…"
}
