package main

import (
	"fmt"
	"strings"

	"holdfast/snapshot"
	"holdfast/workspace"
)

// What rules leave out of a snapshot is nobody's failure: it is told on standard output, and the exit code is 0.

// byRules begins what is said of paths that the ignore files in the content leave out.
const byRules = "excluded by " + snapshot.IgnoreFile

// excludedWords says how many paths were left out, and names the first of them with the rule, one a line.
func excludedWords(words string, number int64, named []workspace.Exclusion) string {
	var out strings.Builder
	paths := "paths"
	if number == 1 {
		paths = "path"
	}
	fmt.Fprintf(&out, "%s: %s %s", words, count(number), paths)
	for _, exclusion := range named {
		from := exclusion.File
		if from == "" {
			from = "--exclude"
		}
		fmt.Fprintf(&out, "\n  %s (%s: %s)", exclusion.Path, from, exclusion.Pattern)
	}
	if more := number - int64(len(named)); more > 0 && len(named) > 0 {
		fmt.Fprintf(&out, "\n  and %s more", count(more))
	}
	return out.String()
}

// excludedFrom is what was left out of a snapshot, as far as the state names it: of the newest version.
func excludedFrom(state workspace.State, snapshotID string) workspace.Excluded {
	if state.Head == nil || state.Head.Snapshot != snapshotID || state.Head.Excluded == nil {
		return workspace.Excluded{}
	}
	return *state.Head.Excluded
}

// backupExclusions tell what rules in the content left out of an operation's backup, and which could not be followed.
func backupExclusions(operation workspace.Operation, state workspace.State, words string) []string {
	if operation.Backup == nil {
		return nil
	}
	var lines []string
	excluded := excludedFrom(state, operation.Backup.Snapshot)
	if number := operation.Backup.Excluded; number > 0 {
		lines = append(lines, excludedWords(words, number, excluded.Paths))
	}
	for _, problem := range excluded.Problems {
		lines = append(lines, "note: "+problem)
	}
	return lines
}

// sayExcluded tells what the engine left out, and which rules it could not follow.
func (p *program) sayExcluded(words string, excluded *snapshot.Excluded) {
	if excluded == nil {
		return
	}
	if excluded.Count > 0 {
		var named []workspace.Exclusion
		for _, exclusion := range excluded.Paths[:min(len(excluded.Paths), workspace.MaxExclusions)] {
			named = append(named, workspace.Exclusion(exclusion))
		}
		p.say("%s", excludedWords(words, excluded.Count, named))
	}
	for _, problem := range excluded.Problems {
		p.say("note: %s", problem)
	}
}
