package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/storage"
)

// IgnoreFile is the name of the files in which the content itself says what of it is not backed up. They have
// gitignore's syntax and meaning: rules of a file in a sub-directory are about what is below that, and weigh more than
// those above; a directory that is left out is not looked into.
const IgnoreFile = ".holdfastignore"

// maxIgnoreFile bounds an ignore file, and maxIgnorePatterns the rules in it, because every entry is compared with
// each of them. One that has more leaves nothing out.
const (
	maxIgnoreFile     = 1 << 20
	maxIgnorePatterns = 10_000
)

// ignoreRules are those of one ignore file, or of a call, with what they add to.
type ignoreRules struct {
	above    *ignoreRules
	file     string // the ignore file's path, "" for the rules of a call
	dir      string // the directory whose content they are about, "" for the root
	patterns []ignorePattern
}

// ValidateExcludes accepts what BackupOptions.Excludes may hold: patterns, without comments and empty lines. The error is
// storage.ErrInvalid.
func ValidateExcludes(excludes []string) error {
	_, err := callRules(excludes)
	return err
}

// callRules are those of BackupOptions.Excludes; nil when there are none.
func callRules(lines []string) (*ignoreRules, error) {
	rules := &ignoreRules{}
	for _, line := range lines {
		pattern, err := parseIgnorePattern(line)
		if err == nil && (pattern == nil || strings.ContainsAny(line, "\x00\n")) {
			err = fmt.Errorf("%q is %w", line, errPattern)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", storage.ErrInvalid, err)
		}
		rules.patterns = append(rules.patterns, *pattern)
	}
	if len(rules.patterns) == 0 {
		return nil, nil
	}
	return rules, nil
}

// decide finds the rule that matches an entry and weighs most, and what it is from; nil when none matches. Of one file
// the last one counts, and a file's before those of the directories above it.
func (r *ignoreRules) decide(path, name string, dir bool) (*ignorePattern, *ignoreRules) {
	for ; r != nil; r = r.above {
		below := path
		if r.dir != "" {
			below = path[len(r.dir)+1:]
		}
		for i := len(r.patterns) - 1; i >= 0; i-- {
			if r.patterns[i].match(name, below, dir) {
				return &r.patterns[i], r
			}
		}
	}
	return nil, nil
}

// leavesOut finds the rule by which an entry of d is left out, and what it is from; nil when it is not. The rules of the
// call weigh more than those in the content. An ignore file that has a say is never left out, so that every snapshot
// says by what rules it was made.
func (s *scan) leavesOut(d *scanDir, name string, dir bool) (*ignorePattern, *ignoreRules) {
	if name == IgnoreFile || (s.excludes == nil && d.rules == nil) {
		return nil, nil
	}
	path := d.join(name)
	pattern, from := s.excludes.decide(path, name, dir)
	if pattern == nil {
		pattern, from = d.rules.decide(path, name, dir)
	}
	if pattern == nil || pattern.includes {
		return nil, nil
	}
	return pattern, from
}

// findRules sets the rules for the entries of a directory. An ignore file that cannot be had as a whole, or has a line
// that is no pattern, leaves nothing out, and that is noted: what is backed up needlessly is no loss.
func (s *scan) findRules(ctx context.Context, d *scanDir, fd int, names []string) error {
	if d.parent != nil {
		d.rules = d.parent.rules
	}
	if _, found := slices.BinarySearch(names, IgnoreFile); !found {
		return nil
	}
	data, stat, err := readIgnoreFile(ctx, fd)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var patterns []ignorePattern
	if err == nil {
		patterns, err = parseIgnoreFile(data)
	}
	if err == nil && len(patterns) > maxIgnorePatterns {
		err = fmt.Errorf("it has more than %d rules", maxIgnorePatterns)
	}
	switch {
	case err == nil:
		d.rules = &ignoreRules{above: d.rules, file: d.join(IgnoreFile), dir: d.path, patterns: patterns}
		d.ruleStat = &stat
	case exhausted(err):
		return fmt.Errorf("reading %s: %w", quotePath(d.join(IgnoreFile)), err)
	case !errors.Is(err, unix.ENOENT): // gone again
		s.handler.voidRules(d.join(IgnoreFile), err)
	}
	return nil
}

// readIgnoreFile reads a directory's ignore file in one state, and gives the record of that.
func readIgnoreFile(ctx context.Context, dir int) (data string, stat statRecord, err error) {
	descriptors, err := openDescriptors()
	if err != nil {
		return "", stat, err
	}
	defer unix.Close(descriptors)
	fd, stat, err := openRegular(descriptors, dir, IgnoreFile)
	if errors.Is(err, errChangedKind) {
		return "", stat, errors.New("it is not a regular file")
	}
	if err != nil {
		return "", stat, err
	}
	defer unix.Close(fd)
	for range 2 * readAttempts {
		var raw unix.Stat_t
		if err := fstat(fd, &raw); err != nil {
			return "", stat, err
		}
		stat = recordOf(&raw)
		if wait := stat.unsettled(time.Now()); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return "", stat, err
			}
			continue
		}
		if stat.size > maxIgnoreFile {
			return "", stat, fmt.Errorf("it has more than %d bytes", maxIgnoreFile)
		}
		buffer := make([]byte, stat.size)
		n, err := preadFull(fd, buffer, 0)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return "", stat, err
		}
		if err := fstat(fd, &raw); err != nil {
			return "", stat, err
		}
		if after := recordOf(&raw); int64(n) == stat.size && stat.sameContent(&after) {
			return string(buffer), stat, nil
		}
	}
	return "", stat, errors.New("it changes while it is read")
}
