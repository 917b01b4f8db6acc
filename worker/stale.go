package worker

import (
	"fmt"
	"sync"
	"time"

	"holdfast/storage/resolver"
)

// staleNames remembers that names are resolved from last good answers, so that people can be told.
type staleNames struct {
	mutex sync.Mutex
	last  time.Time
	host  string
}

func (s *staleNames) used(stale resolver.Stale) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.last, s.host = time.Now(), stale.Host
}

// note says so while it was the case a moment ago.
func (s *staleNames) note() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.last.IsZero() || time.Since(s.last) > 30*time.Second {
		return ""
	}
	return fmt.Sprintf("no DNS server answers; the last good address of %s is used", s.host)
}
