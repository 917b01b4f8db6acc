package snapshot

import (
	"cmp"
	"slices"
)

// Excluded is what a backup left out because somebody said so, unlike omissions, which are against everybody's will. It
// is kept in the snapshot, so that who restores it can be told.
type Excluded struct {
	// Count is the number of paths that were left out; a directory counts as one, whatever is below it.
	Count int64 `json:"count"`
	// Paths are the first of them, in order.
	Paths []Exclusion `json:"paths,omitempty"`
	// Problems are ignore files that left nothing out, because they could not be read or are not valid.
	Problems []string `json:"problems,omitempty"`
}

// Exclusion is one path that was left out, and the rule that says so.
type Exclusion struct {
	Path    string `json:"path"` // as in Omission; a directory's ends with a slash
	Pattern string `json:"pattern"`
	File    string `json:"file,omitempty"` // the ignore file that it is from; empty for one of BackupOptions.Excludes
}

// maxStoredExclusions bounds the list within a snapshot file and in memory, where millions can be left out.
const maxStoredExclusions = 1000

// Total is Count, and 0 for nil.
func (e *Excluded) Total() int64 {
	if e == nil {
		return 0
	}
	return e.Count
}

func (e *Excluded) add(exclusion Exclusion) {
	e.Count++
	e.Paths = append(e.Paths, exclusion)
	if len(e.Paths) >= 2*maxStoredExclusions {
		e.cut()
	}
}

// cut keeps the first paths, whichever goroutine found them when.
func (e *Excluded) cut() {
	slices.SortFunc(e.Paths, func(x, y Exclusion) int { return cmp.Compare(x.Path, y.Path) })
	e.Paths = e.Paths[:min(len(e.Paths), maxStoredExclusions)]
	slices.Sort(e.Problems)
	e.Problems = e.Problems[:min(len(e.Problems), maxStoredExclusions)]
}

// orNil is what is told of it.
func (e *Excluded) orNil() *Excluded {
	if e.Count == 0 && len(e.Problems) == 0 {
		return nil
	}
	e.cut()
	return e
}

// patterns are those of a backup as restic's own field of a snapshot names them: what the call asked for, and what in
// ignore files has left something out.
func (e *Excluded) patterns(asked []string) []string {
	patterns := slices.Clone(asked)
	for _, exclusion := range e.Paths {
		if !slices.Contains(patterns, exclusion.Pattern) {
			patterns = append(patterns, exclusion.Pattern)
		}
	}
	return patterns
}

func (b *backup) excluded(path string, dir bool, pattern *ignorePattern, from *ignoreRules) {
	if dir {
		path += "/"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left.add(Exclusion{Path: omissionPath(path), Pattern: quoteUnlessUTF8(pattern.text), File: quoteUnlessUTF8(from.file)})
}

func (b *backup) voidRules(path string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.left.Problems) <= maxStoredExclusions {
		b.left.Problems = append(b.left.Problems, quotePath(path)+" leaves nothing out: "+err.Error())
	}
	b.r.log.Warn("an ignore file leaves nothing out", "file", path, "error", err)
}

// checkRules: the ignore file that a directory was read by is the one in the snapshot.
func (b *backup) checkRules(d *scanDir) {
	if d.ruleStat == nil {
		return
	}
	at, found := slices.BinarySearchFunc(d.entries, IgnoreFile, func(e scanEntry, name string) int { return cmp.Compare(e.name, name) })
	if !found || d.entries[at].gone || !d.ruleStat.sameContent(&d.entries[at].stat) {
		b.omit(d.join(IgnoreFile), OmissionChanged, "it changed after it was read for what it leaves out")
	}
}
