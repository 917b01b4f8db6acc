package workspace

import (
	"fmt"
	"time"
)

// Words is a drain in one sentence.
func (d *NodeDrain) Words(now time.Time) string {
	switch {
	case d == nil:
		return ""
	case d.End == DrainNodeLost && !d.Drained.IsZero():
		return "it was drained, and is gone since"
	case !d.Ended.IsZero():
		return fmt.Sprintf("its drain ended: %s; %s", d.Why, d.counts())
	case d.Looked.IsZero():
		return "being drained by " + d.By
	case !d.Drained.IsZero() && d.LeftCount == 0:
		return "drained: nothing is on it that anybody needs"
	case !d.Drained.IsZero():
		return fmt.Sprintf("drained: nothing runs on it; what is left on its disk: %d", d.LeftCount)
	}
	words := "being drained by " + d.By
	if d.Late(now) {
		words += ", later than its deadline"
	}
	return words + ": " + d.counts()
}

func (d *NodeDrain) counts() string {
	words := fmt.Sprintf("%d moved", d.Moved)
	if d.Stopped > 0 {
		words += fmt.Sprintf(", %d gone and not running", d.Stopped)
	}
	if len(d.Moving) > 0 {
		words += fmt.Sprintf(", %d being moved", len(d.Moving))
	}
	return words + fmt.Sprintf(", %d still there", len(d.On))
}

// Of says what a drain does about one workspace, empty when it has nothing to do with it.
func (d *NodeDrain) Of(name string) string {
	if !d.Active() {
		return ""
	}
	by := "its node is being drained by " + d.By + ": "
	for _, item := range d.Moving {
		if item.Name == name {
			return by + "it is being moved (" + item.Why + ")"
		}
	}
	for _, item := range d.Waiting {
		if item.Name == name {
			return by + item.Words()
		}
	}
	return by + "it is moved elsewhere when its turn comes"
}

// Words is an item without its name.
func (i DrainItem) Words() string {
	words := i.Why
	if !i.Again.IsZero() {
		words += "; tried again at " + i.Again.UTC().Format("15:04:05 MST")
	}
	if i.Mend != "" {
		words += "; mend: " + i.Mend
	}
	return words
}
