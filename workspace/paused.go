package workspace

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// What a node has paused travels in the beats of its lease, every two seconds and through Temporal's database, so it is told in few bytes
// however much is paused: instances are grouped by why they are, and each is a few bytes of a digest of its name. Who asks knows the
// name of the instance that is asked about. For display only.

// PauseCause is why a node has paused an instance (docs/decisions/0016-fence-pauses.md).
type PauseCause string

// The causes.
const (
	PauseReplaced PauseCause = "replaced" // a newer instance is recorded
	PauseAlone    PauseCause = "alone"    // the node has no lease, and reached nothing
	PauseDoubt    PauseCause = "doubt"    // whether it was replaced could not be asked
	PauseEnding   PauseCause = "ending"   // it is about to go on
)

// PausedInstance is an instance that its node has paused.
type PausedInstance struct {
	WorkspaceID string     `json:"workspace_id"`
	Name        string     `json:"name,omitempty"` // the workspace's, when it is known
	Token       uint64     `json:"token"`
	Cause       PauseCause `json:"cause"`
	// Replaced is the token of the instance that has taken its place; 0 when none is known.
	Replaced uint64 `json:"replaced,omitempty"`
	// Doubt is why it could not be asked whether it was replaced; it may be cut short, or empty.
	Doubt string `json:"doubt,omitempty"`
	Why   string `json:"why"` // all of that in words
}

// Words says why it is paused.
func (p PausedInstance) Words() string {
	switch {
	case p.Replaced > 0:
		return "instance " + strconv.FormatUint(p.Replaced, 10) + " has taken its place"
	case p.Cause == PauseReplaced:
		return "a newer instance has taken its place"
	case p.Cause == PauseAlone:
		return "its node has no lease, and has reached neither Temporal nor a store for so long that another instance may have taken its place"
	case p.Cause == PauseDoubt && p.Doubt == "":
		return "whether another instance has taken its place cannot be asked"
	case p.Cause == PauseDoubt:
		return "whether another instance has taken its place cannot be asked: " + p.Doubt
	default:
		return "its node was cut off; it goes on in a moment"
	}
}

// Paused is what a node has paused, as its beats tell it.
type Paused struct {
	Count  int           `json:"count"`
	Size   int           `json:"size,omitempty"` // bytes of each mark
	Groups []PausedGroup `json:"groups,omitempty"`
}

// PausedGroup are instances that are paused for one cause.
type PausedGroup struct {
	Cause PauseCause `json:"cause"`
	// Ahead is by how much the token of the instance that has taken its place is the higher one; 0 when that is not told.
	Ahead uint64 `json:"ahead,omitempty"`
	Doubt string `json:"doubt,omitempty"`
	// Rest says that these are all instances of the node that no other group has: there are too many to have a mark each.
	Rest  bool   `json:"rest,omitempty"`
	Marks []byte `json:"marks,omitempty"` // of Size bytes each, one after the other
}

const (
	// maxPaused bounds a Paused in a beat, in bytes of JSON. With the rest of the beat and what its encryption adds a beat stays
	// below 1 KiB, which is what Temporal is meant to be given every two seconds.
	maxPaused = 700
	// maxMark and minMark are of a digest. With 6 bytes nobody is ever taken for another; with 3 an instance that is not paused is taken for
	// one that is with a probability of 1 in 100,000, when 160 are.
	maxMark, minMark = 6, 3
	// maxDoubt is of an error's text, in bytes, and maxDetailed the number of groups that say more than a cause: the largest ones.
	maxDoubt, maxDetailed = 160, 3
)

// SummarizePaused tells in at most 700 bytes of JSON what a node has paused of the instances that run or are paused there. Every one keeps its cause
// up to 100 of them, and for any number when all of the node are paused for the same cause; beyond that Count is higher than what is named.
func SummarizePaused(paused []PausedInstance, instances int) Paused {
	if len(paused) == 0 {
		return Paused{}
	}
	groups := groupPaused(paused)
	told := Paused{Count: len(paused), Size: maxMark}
	for _, group := range groups {
		told.Groups = append(told.Groups, group.PausedGroup)
	}
	room := (maxPaused - jsonSize(told) - len(`,"marks":""`)*len(groups)) / 4 * 3
	room -= 2 * len(groups) // what base64 fills each up with
	marked := len(paused)
	if room < marked*minMark && len(paused) == instances {
		told.Groups[0].Rest = true
		room -= len(`,"rest":true`)
		marked -= len(groups[0].names)
		groups[0].names = nil
	}
	if marked == 0 {
		return told
	}
	told.Size = min(maxMark, max(minMark, room/marked))
	for i, group := range groups {
		for _, name := range group.names {
			if room -= told.Size; room < 0 {
				return told
			}
			told.Groups[i].Marks = append(told.Groups[i].Marks, pauseMark(name, told.Size)...)
		}
	}
	return told
}

type namedGroup struct {
	PausedGroup
	names []string
}

// groupPaused has the largest group first, and what is not among the largest without more than its cause.
func groupPaused(paused []PausedInstance) []namedGroup {
	detailed := func(p PausedInstance) PausedGroup {
		group := PausedGroup{Cause: p.Cause, Doubt: shortDoubt(p)}
		if p.Replaced > p.Token {
			group.Ahead = p.Replaced - p.Token
		}
		return group
	}
	type key struct {
		cause PauseCause
		ahead uint64
		doubt string
	}
	keyOf := func(group PausedGroup) key { return key{group.Cause, group.Ahead, group.Doubt} }
	gather := func(groupOf func(PausedInstance) PausedGroup) (groups []namedGroup) {
		at := map[key]int{}
		for _, p := range paused {
			group := groupOf(p)
			i, known := at[keyOf(group)]
			if !known {
				i = len(groups)
				at[keyOf(group)], groups = i, append(groups, namedGroup{PausedGroup: group})
			}
			groups[i].names = append(groups[i].names, InstanceName(p.WorkspaceID, p.Token))
		}
		slices.SortStableFunc(groups, func(a, b namedGroup) int { return cmp.Compare(len(b.names), len(a.names)) })
		return groups
	}
	keeps, doubts := map[key]bool{}, 0
	for _, group := range gather(detailed) {
		if group.Doubt != "" {
			if doubts++; doubts > 1 { // one text is enough to know which store it is
				continue
			}
		}
		if len(keeps) < maxDetailed {
			keeps[keyOf(group.PausedGroup)] = true
		}
	}
	return gather(func(p PausedInstance) PausedGroup {
		if group := detailed(p); keeps[keyOf(group)] {
			return group
		}
		return PausedGroup{Cause: p.Cause}
	})
}

// shortDoubt is the end of a doubt, where its cause is, without the id of the one workspace.
func shortDoubt(p PausedInstance) string {
	text := strings.ToValidUTF8(strings.ReplaceAll(p.Doubt, p.WorkspaceID, "…"), "?")
	for jsonSize(text) > maxDoubt {
		over := max(jsonSize(text)-maxDoubt, 1) + len("…")
		from := min(over, len(text))
		for from < len(text) && !utf8.RuneStart(text[from]) {
			from++
		}
		text = "…" + text[from:]
	}
	return text
}

func jsonSize(value any) int {
	data, err := json.Marshal(value)
	if err != nil {
		return maxPaused // texts and numbers always can be
	}
	return len(data)
}

func pauseMark(instance string, size int) []byte {
	sum := sha256.Sum256([]byte(instance))
	return sum[:size]
}

// Of returns whether an instance of the node, by InstanceName, is paused, and why.
func (p Paused) Of(instance string) (PausedInstance, bool) {
	id, token, err := ParseInstanceName(instance)
	if err != nil || p.Size < 0 || p.Size > sha256.Size {
		return PausedInstance{}, false
	}
	var found *PausedGroup
	mark := pauseMark(instance, p.Size)
	for i, group := range p.Groups {
		if group.Rest && found == nil {
			found = &p.Groups[i]
		}
		for marks := group.Marks; p.Size > 0 && len(marks) >= p.Size; marks = marks[p.Size:] {
			if bytes.Equal(marks[:p.Size], mark) {
				found = &p.Groups[i]
			}
		}
	}
	if found == nil {
		return PausedInstance{}, false
	}
	instanceOf := PausedInstance{WorkspaceID: id, Token: token, Cause: found.Cause, Doubt: found.Doubt}
	if found.Ahead > 0 {
		instanceOf.Replaced = token + found.Ahead
	}
	instanceOf.Why = instanceOf.Words()
	return instanceOf, true
}

// Unnamed is how many paused instances of the node Of does not find: there are more than a beat has room for.
func (p Paused) Unnamed() int {
	left := p.Count
	for _, group := range p.Groups {
		if group.Rest {
			return 0
		}
		if p.Size > 0 {
			left -= len(group.Marks) / p.Size
		}
	}
	return max(left, 0)
}
