package dataport

import (
	"fmt"
	"sync"
	"time"
)

// maxNonces bounds the memory for used tokens; with MaxLifetime it allows 18 uses a second for an hour.
const maxNonces = 1 << 16

// nonces remembers which tokens have been used, until they have expired anyway. It does not outlive the process: what it
// guards against is a token that is sent twice, by mistake or by someone who saw it, within its minutes.
type nonces struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// use marks a token as used; the error wraps ErrReplayed when it was before.
func (n *nonces) use(nonce string, expires, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.until == nil {
		n.until = make(map[string]time.Time)
	}
	if _, used := n.until[nonce]; used {
		return ErrReplayed
	}
	if len(n.until) >= maxNonces {
		for old, end := range n.until {
			if now.After(end) {
				delete(n.until, old)
			}
		}
		if len(n.until) >= maxNonces {
			return fmt.Errorf("%w: too many tokens were used within the last hour", ErrBusy)
		}
	}
	n.until[nonce] = expires.Add(ClockSkew)
	return nil
}
