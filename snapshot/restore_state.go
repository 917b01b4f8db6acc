package snapshot

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// newStateQueue is the queue of one worker; it takes nothing when no state file is wanted.
func (s *restorer) newStateQueue() leaseQueue {
	limit := mostLeases
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur/4 < uint64(limit) {
		limit = int(files.Cur / 4)
	}
	return leaseQueue{witness: s.witness, limit: limit / s.workers}
}

// noteState prepares the state file of what was restored: the content of each file that the witness knows to be whole,
// with the record that it has now. Of all else it says only that it is there. Trees are not noted: those of the snapshot
// hold ctimes and inode numbers that nothing has here.
func (s *restorer) noteState(ctx context.Context) error {
	if s.witness == nil {
		return nil
	}
	if err := s.witness.settleLate(ctx); err != nil {
		return err
	}
	err := s.eachDir(ctx, 0, int32(len(s.plan.dirs)), nil, s.noteStateOf)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// Such as a directory that has its mode by now, which lets this user not look into it. The restore is done.
	s.repository.log.Warn("what was restored cannot be looked at again; the next backup takes longer", "error", err)
	s.state.abandon()
	s.state = nil
	return nil
}

func (s *restorer) noteStateOf(number int32, dir *targetDir) error {
	planned := s.plan.dirs[number]
	made := 0
	for i := planned.first; i < planned.last; i++ {
		if s.plan.entries[i].made {
			made++
		}
	}
	record := appendRecordHead(make([]byte, 0, 64+len(dir.path)+140*made), dir.path, nil, nil, nil)
	record = binary.AppendUvarint(record, uint64(made))
	for i := planned.first; i < planned.last; i++ {
		entry := &s.plan.entries[i]
		if !entry.made {
			continue
		}
		first := i
		if entry.sameAs >= 0 {
			first = entry.sameAs
		}
		if stat, whole := s.whole(dir, entry.name, first); whole {
			record = appendFileContent(record, entry.name, &stat, s.plan.entries[first].content)
		} else {
			record = appendEntryName(record, entry.name, entry.kind.stMode())
		}
	}
	s.state.add(dir.path, record)
	return nil
}

// whole is the record of a file whose content is surely the planned one. An empty file's is, whoever wrote to it.
func (s *restorer) whole(dir *targetDir, name string, first int32) (stat statRecord, whole bool) {
	entry, seen := &s.plan.entries[first], s.witness.seen[first]
	if entry.kind != kindFile || (seen.inode == 0 && entry.size > 0) {
		return stat, false
	}
	var raw unix.Stat_t
	if fstatat(dir.fd, name, &raw) != nil {
		return stat, false
	}
	stat = recordOf(&raw)
	return stat, stat.kind() == unix.S_IFREG && stat.size == entry.size &&
		(entry.size == 0 || (stat.inode == seen.inode && stat.ctime == seen.ctime))
}

// writeState puts the state file in place, after what it describes. Without it the next backup takes longer.
func (s *restorer) writeState() {
	if s.state == nil {
		return
	}
	if err := s.state.finish(s.tree, &nameCache{}); err != nil {
		s.repository.log.Warn("the state file cannot be written; the next backup takes longer", "error", err)
	}
}

// abandonState lets go of what is not in a state file by now.
func (s *restorer) abandonState() {
	if s.state != nil {
		s.state.abandon()
	}
	s.witness.close()
}
