package gcsemulator

import (
	"strings"
	"sync"
)

// holding keeps requests waiting, so that something else can happen while they are on their way.
type holding struct {
	mu      sync.Mutex
	text    string
	pass    int64
	over    chan struct{} // nil while nothing is held
	waiting int64
}

// Hold lets every request wait, before anything is done, that is about an object with text in its name, or lists names with
// text in their prefix; the first pass of them go through. It lasts until the next Hold; one with an empty text holds nothing. A
// request whose client has gone meanwhile is served all the same, with as much as it had sent.
func (e *Emulator) Hold(text string, pass int64) {
	h := &e.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		close(h.over)
		h.over = nil
	}
	if text != "" {
		h.text, h.pass, h.over = text, pass, make(chan struct{})
	}
}

// wait returns when the request may go on; false when the server was closed meanwhile.
func (h *holding) wait(q *request) bool {
	h.mu.Lock()
	over := h.over
	matches := over != nil && (strings.Contains(q.op.Object, h.text) || q.op.Kind == OpList && strings.Contains(q.query.Get("prefix"), h.text))
	if matches && h.pass > 0 {
		h.pass--
		matches = false
	}
	if matches {
		h.waiting++
	}
	h.mu.Unlock()
	if !matches {
		return true
	}
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting--
	}()
	select {
	case <-over:
		return true
	case <-q.Context().Done():
		return false
	}
}

func (h *holding) count() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting
}
