package storage

import "time"

// lag is how long the writers of a mirror have waited for nothing but providers that the policy does not need: the time
// during which every write under way did.
type lag struct {
	writes, late int           // under way; those of them that only wait for such a provider
	began        time.Time     // of the first write
	since        time.Time     // when the present wait began, zero when there is none
	spent        time.Duration // by the waits before
}

// lagging changes the counts, and keeps the time.
func (m *Mirror) lagging(change func(*lag)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &m.lag
	now := time.Now()
	if l.began.IsZero() {
		l.began = now
	}
	change(l)
	switch waits := l.writes > 0 && l.late == l.writes; {
	case waits && l.since.IsZero():
		l.since = now
	case !waits && !l.since.IsZero():
		l.spent += now.Sub(l.since)
		l.since = time.Time{}
	}
}

// patience is how long a write may go on to wait for providers that the policy does not need: LagTimeout, less once the
// waits have added up. A write whose policy cannot be met any more has LagTimeout.
func (m *Mirror) patience(met bool) time.Duration {
	if !met {
		return m.options.LagTimeout
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now, spent := time.Now(), m.lag.spent
	if !m.lag.since.IsZero() {
		spent += now.Sub(m.lag.since)
	}
	// While it waits, what it may have waited grows too: spent+t = LagTimeout + share*(elapsed+t).
	allowed := float64(m.options.LagTimeout) + m.options.LagShare*float64(now.Sub(m.lag.began))
	return min(m.options.LagTimeout, max(time.Duration((allowed-float64(spent))/(1-m.options.LagShare)), 0))
}
