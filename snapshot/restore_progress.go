package snapshot

import (
	"sync"
	"time"
)

// meter counts what is finished and calls back at most ten times a second, never from two goroutines at once.
type meter struct {
	mutex sync.Mutex
	state Progress
	last  time.Time
	call  func(Progress)
}

// newMeter returns a meter that only counts when call is nil.
func newMeter(call func(Progress)) *meter { return &meter{call: call} }

// total sets what there is to do.
func (m *meter) total(files, bytes int64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.state.TotalFiles, m.state.TotalBytes = files, bytes
	m.report(false)
}

// add counts finished files and bytes; current, unless empty, is what is being worked on.
func (m *meter) add(files, bytes int64, current string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.state.Files += files
	m.state.Bytes += bytes
	if current != "" {
		m.state.Current = current
	}
	m.report(false)
}

// done reports the last state.
func (m *meter) done() {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.report(true)
}

func (m *meter) report(always bool) {
	if m.call == nil {
		return
	}
	if now := time.Now(); always || now.Sub(m.last) >= 100*time.Millisecond {
		m.last = now
		m.call(m.state)
	}
}
