package workspace

import (
	"fmt"
	"strings"
	"time"
)

// HeadDecision says which version a start uses.
type HeadDecision struct {
	// Head is the newest version that is known; nil when there is none.
	Head *Commit
	// Notes say what a person should know even when nothing is refused.
	Notes []string
	// Refusal is why the start must not go on without the person's word (invariant 4); AcceptVersion is the snapshot
	// that the person then names.
	Refusal       string
	AcceptVersion string
}

// DecideHead compares what the workflow knows with what every provider's catalog answers (invariant 4). known is the
// workflow's head, nil when it has none; accept is the snapshot that the person said to start with although something
// newer may exist.
func DecideHead(known *Commit, answers ReadHeadResult, accept string, now time.Time) HeadDecision {
	decision := HeadDecision{Head: known}
	for _, answer := range answers.Providers {
		if answer.Error != "" {
			continue
		}
		found := answer.Head
		if found == nil && answer.Base != "" {
			found = &Commit{Token: answer.Token, Snapshot: answer.Base}
		}
		if found.Newer(decision.Head) && found.Snapshot != snapshotOf(decision.Head) {
			decision.Head = found
			decision.Notes = append(decision.Notes, fmt.Sprintf("%s has a newer version than was known: snapshot %s", answer.Provider, short(found.Snapshot)))
		}
	}
	var doubts []string
	for _, answer := range answers.Providers {
		switch held := answer.snapshot(); {
		case answer.Error != "":
			doubts = append(doubts, fmt.Sprintf("%s cannot be listed (%s) and may hold a newer one", answer.Provider, answer.Error))
		case held == "" && decision.Head != nil:
			doubts = append(doubts, fmt.Sprintf("%s has no version at all", answer.Provider))
		case held != snapshotOf(decision.Head):
			doubts = append(doubts, fmt.Sprintf("%s has the older version %s", answer.Provider, short(held)))
		}
	}
	if len(doubts) == 0 {
		return decision
	}
	decision.AcceptVersion = snapshotOf(decision.Head)
	if accept != "" && accept == decision.AcceptVersion {
		decision.Notes = append(decision.Notes, doubts...)
		return decision
	}
	if decision.Head == nil {
		decision.Refusal = "whether a version exists is not known: " + strings.Join(doubts, "; ")
		return decision
	}
	decision.Refusal = fmt.Sprintf("the newest verified version known is snapshot %s%s; %s", short(decision.AcceptVersion),
		age(decision.Head.Time, now), strings.Join(doubts, "; "))
	return decision
}

// snapshot is the head that a provider's catalog names: a commit, or the base of an instance without one (invariant 3).
func (p ProviderHead) snapshot() string {
	if p.Head != nil {
		return p.Head.Snapshot
	}
	return p.Base
}

func snapshotOf(commit *Commit) string {
	if commit == nil {
		return ""
	}
	return commit.Snapshot
}

func short(snapshot string) string {
	if len(snapshot) > 8 {
		return snapshot[:8]
	}
	return snapshot
}

func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf(" of %s (%s ago)", t.UTC().Format("2006-01-02 15:04 MST"), now.Sub(t).Round(time.Second))
}
