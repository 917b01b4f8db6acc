package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// statRecord is what lstat says of one entry, as far as it tells whether the entry is still what it was.
type statRecord struct {
	mode, uid, gid uint32 // mode is st_mode, with the kind
	size           int64
	mtime, ctime   unix.Timespec
	inode          uint64
	device, rdev   uint64
	links          uint64
}

func recordOf(s *unix.Stat_t) statRecord {
	return statRecord{
		mode: s.Mode, uid: s.Uid, gid: s.Gid, size: s.Size, mtime: s.Mtim, ctime: s.Ctim, inode: s.Ino,
		device: uint64(s.Dev), rdev: uint64(s.Rdev), links: uint64(s.Nlink),
	}
}

func (s *statRecord) kind() uint32 { return s.mode & unix.S_IFMT }

// sameContent reports whether a file that had the record s before it was read, and has the record after it, was left
// alone meanwhile.
func (s *statRecord) sameContent(after *statRecord) bool {
	return s.inode == after.inode && s.device == after.device && s.kind() == after.kind() &&
		s.size == after.size && s.mtime == after.mtime && s.ctime == after.ctime
}

// appendRecord appends an entry to the bytes that a directory's digest is made of. Sizes of directories are left out:
// they mean nothing, and some file systems let them depend on history. The device is left out because it is numbered
// anew when a volume is mounted again.
func (s *statRecord) appendRecord(dst []byte, name string) []byte {
	number := binary.LittleEndian.AppendUint64
	dst = number(dst, uint64(len(name)))
	dst = append(dst, name...)
	dst = number(dst, uint64(s.mode))
	dst = number(dst, uint64(s.uid))
	dst = number(dst, uint64(s.gid))
	if s.kind() != unix.S_IFDIR {
		dst = number(dst, uint64(s.size))
	}
	if kind := s.kind(); kind == unix.S_IFBLK || kind == unix.S_IFCHR {
		dst = number(dst, s.rdev)
	}
	for _, t := range []unix.Timespec{s.mtime, s.ctime} {
		dst = number(dst, uint64(t.Sec))
		dst = number(dst, uint64(t.Nsec))
	}
	return number(dst, s.inode)
}

// The digest of a directory is the SHA-256 of the records of its entries in ascending order of names, each directory's
// record followed by that directory's digest; statDigestVersion is hashed in front of the root's.
const statDigestVersion = "holdfast stat digest 1\n"

func (d *scanDir) computeDigest() [sha256.Size]byte {
	h := sha256.New()
	var buffer []byte
	for i := range d.entries {
		e := &d.entries[i]
		if e.gone {
			continue
		}
		buffer = e.stat.appendRecord(buffer[:0], e.name)
		if e.stat.kind() == unix.S_IFDIR {
			buffer = append(buffer, e.digest[:]...)
		}
		h.Write(buffer)
	}
	if d.unreadable {
		h.Write([]byte("unreadable"))
	}
	var digest [sha256.Size]byte
	h.Sum(digest[:0])
	return digest
}

// clockGranularity is longer than the coarse clock that file systems take their timestamps from stands still (4 to 10
// ms): within it two writes can leave the same times.
const clockGranularity = 20 * time.Millisecond

// unsettled is how long to wait until whatever changes the entry from then on changes its ctime too.
func (s *statRecord) unsettled(now time.Time) time.Duration {
	age := now.Sub(time.Unix(s.ctime.Unix()))
	// A ctime in the future was set by another clock, and will not come again.
	if age < -clockGranularity || age >= clockGranularity {
		return 0
	}
	return clockGranularity - age
}

// settled reports whether whatever changes the entry from now on changes its ctime too.
func (s *statRecord) settled() bool { return s.unsettled(time.Now()) == 0 }

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
