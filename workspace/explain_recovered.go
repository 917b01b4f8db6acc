package workspace

import (
	"fmt"
	"strings"
	"time"
)

// What a person is told of what an instance that was replaced still had: where it is kept, why, and until when.

// Stays says where content that was left is, why, and how long it stays there.
func (k *Kept) Stays(now time.Time) string {
	why := strings.TrimSuffix(k.Why, ".")
	if k.Handed {
		return fmt.Sprintf("Node %s had instance %d of it: %s. What is left of that there is stopped and removed when the node is there; the files are not.", k.Node, k.Token, why)
	}
	if !k.Replaced {
		return fmt.Sprintf("Other content stays on node %s (instance %d), not removed by itself: %s.", k.Node, k.Token, why)
	}
	text := fmt.Sprintf("Other content is on node %s (instance %d): %s. ", k.Node, k.Token, why)
	switch {
	case !k.Back && k.Unsaved():
		text += "When the node returns, or its agent is started again, it is saved as a recovered snapshot; it stays there until every store holds that."
	case !k.Back:
		text += "It is removed there when the node returns and every store is seen to hold that."
	case k.Omitted > 0:
		text += "It is saved again, and then removed there, when the node's agent is started again and they can be read."
	case k.Next.After(now):
		text += fmt.Sprintf("It is gone on with in %s.", duration(k.Next.Sub(now)))
	case k.Unsaved():
		text += "It is being saved as a recovered snapshot, and stays there until every store holds that."
	default:
		text += "It is removed there as soon as every store is seen to hold that."
	}
	return text
}

// Kept says what a recovered snapshot is, and how long it is kept.
func (s *Salvaged) Kept() string {
	when := fmt.Sprintf("when node %s returned", s.Node)
	if s.Chosen != "" {
		when = fmt.Sprintf("on node %s (%s)", s.Node, s.Chosen)
	}
	return fmt.Sprintf("What instance %d still had %s is in the recovered snapshot %s (%d files, %s), saved at %s. It is on no node any more, is never the newest version, and stays in the stores until a person removes it.",
		s.Token, when, Short(s.Snapshot), s.Files, size(s.Bytes), s.Saved.UTC().Format("2006-01-02 15:04:05 MST"))
}

// RecoveredSnapshot is the newest recovered snapshot that is known of; empty when there is none.
func (s *State) RecoveredSnapshot() string {
	newest, at := "", time.Time{}
	for i := range s.Left {
		if left := &s.Left[i]; left.Replaced && left.Snapshot != "" && !left.Saved.Before(at) {
			newest, at = left.Snapshot, left.Saved
		}
	}
	for i := range s.Salvaged {
		if saved := &s.Salvaged[i]; !saved.Saved.Before(at) {
			newest, at = saved.Snapshot, saved.Saved
		}
	}
	return newest
}
