package snapshot

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// record is a directory for the state file. What could not be read whole, or may have changed in a way that shows nowhere,
// is left out of it: the next backup looks again.
func (b *backup) record(d *scanDir, tree blobID) []byte {
	out := make([]byte, 0, 128+len(d.path)+len(d.entries)*160)
	if d.unreadable || b.state.doubted(d.path) {
		out = appendRecordHead(out, d.path, nil, nil, nil)
	} else {
		out = appendRecordHead(out, d.path, &d.stat, d.node.ExtendedAttributes, &tree)
	}
	count := 0
	for i := range d.entries {
		if !d.entries[i].gone {
			count++
		}
	}
	out = binary.AppendUvarint(out, uint64(count))
	entry := func(e *scanEntry, known *knownEntry) {
		switch {
		case e.gone:
		case e.recalled:
			out = append(out, known.raw...)
		case e.dir || e.doubtful || e.node == nil:
			out = appendEntryName(out, e.name, e.stat.kind())
		default:
			out = appendEntry(out, &e.stat, e.node)
		}
	}
	if d.recalled.known == nil {
		for i := range d.entries {
			entry(&d.entries[i], nil)
		}
		return out
	}
	for e, known := range d.knownEntries() {
		if e != nil {
			entry(e, known)
		}
	}
	return out
}

// kernelSince reports whether a kernel's release ("6.8.0-31-generic") is at least major.minor.
func kernelSince(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second, _, _ := strings.Cut(rest, ".")
	if end := strings.IndexFunc(second, func(c rune) bool { return c < '0' || c > '9' }); end >= 0 {
		second = second[:end]
	}
	a, err := strconv.Atoi(first)
	if err != nil {
		return false
	}
	b, err := strconv.Atoi(second)
	return err == nil && (a > major || (a == major && b >= minor))
}
