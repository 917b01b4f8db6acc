package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

// FuzzStateRecord: no bytes make the reader of records panic, and what it accepts lies within them.
func FuzzStateRecord(f *testing.F) {
	self := statRecord{mode: unix.S_IFDIR | 0o755, inode: 1}
	file := statRecord{mode: unix.S_IFREG | 0o644, size: 9, links: 2, device: 3, inode: 2}
	link := statRecord{mode: unix.S_IFLNK | 0o777, size: 2, links: 1}
	attributes := []extendedAttribute{{Name: "user.a", Value: []byte("b")}}
	full := appendRecordHead(nil, "d/e", &self, attributes, &blobID{1})
	full = append(full, 4)
	full = appendEntryName(full, "a", unix.S_IFDIR)
	full = appendEntry(full, &file, &node{Name: "b", Content: []blobID{{1}, {2}}, ExtendedAttributes: attributes})
	full = appendFileContent(full, "c", &file, []blobID{{3}})
	full = appendEntry(full, &link, &node{Name: "l", LinkTarget: "to"})
	f.Add(full, "d/e")
	f.Add(appendTooLarge(nil, ""), "")
	f.Add(append(appendRecordHead(nil, "", nil, nil, nil), 0), "")
	f.Fuzz(func(t *testing.T, data []byte, path string) {
		d, ok := parseRecord(data, path)
		if length, same := recordLength(data); ok && (!same || length != d.length || length > len(data)) {
			t.Fatal("a record's length depends on who asks")
		}
		if !ok {
			return
		}
		decodeAttributes(d.attributes)
		var rebuilt []byte
		for entry, more := d.entries.next(); more; entry, more = d.entries.next() {
			rebuilt = append(rebuilt, entry.raw...)
			decodeAttributes(entry.attributes)
			if len(entry.content)%len(blobID{}) != 0 || len(idsOf(entry.content)) != len(entry.content)/len(blobID{}) {
				t.Fatal("half an id")
			}
		}
		if !bytes.HasSuffix(data[:d.length], rebuilt) {
			t.Fatal("the entries are not those of the record")
		}
	})
}

// FuzzStateFooter: no bytes make the reader of footers panic, allocate more than they are, or point out of the file.
func FuzzStateFooter(f *testing.F) {
	footer := stateFooter{
		repository: "r", users: map[uint32]string{0: "root"}, groups: map[uint32]string{0: "root"},
		sections: []statePlace{{offset: 17, length: 100}}, dirs: []stateDir{{hash: 1}, {hash: 2, offset: 50}},
	}
	f.Add(footer.append(nil))
	f.Add((&stateFooter{}).append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		const end = 1000
		footer, ok := parseFooter(data, end)
		if !ok {
			return
		}
		for _, place := range footer.sections {
			if place.offset < 0 || place.offset+int64(place.length) > end {
				t.Fatal("a section outside of the file")
			}
		}
		for _, dir := range footer.dirs {
			_ = footer.sections[dir.section]
		}
		if again, ok := parseFooter(footer.append(nil), end); !ok || len(again.dirs) != len(footer.dirs) || len(again.users) != len(footer.users) {
			t.Fatal("a footer does not survive a round trip")
		}
	})
}

// stateScene is a directory with a state file that a backup has written.
func stateScene(t *testing.T, r *Repository) (dir, state string, first *BackupResult) {
	t.Helper()
	dir, state = t.TempDir(), filepath.Join(t.TempDir(), "state")
	writeFiles(t, dir, map[string][]byte{"a": []byte("a"), "d/b": randomBytes(1, 3<<20), "d/e/c": []byte("c"), "f/g": []byte("g")})
	first, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	return dir, state, first
}

// TestAStateFileThatIsNoneCostsOnlyTime: cut at any length, with any bit turned, of another repository or version, or
// something else altogether.
func TestAStateFileThatIsNoneCostsOnlyTime(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir, state, first := stateScene(t, r)
	whole, err := os.ReadFile(state)
	require.NoError(t, err)
	try := func(data []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(state, data, 0o600))
		again, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
		require.NoError(t, err)
		require.Equal(t, comparable(t, r, first), comparable(t, r, again))
		require.Equal(t, [3]uint64{0, 0, 4}, counts(t, r, again))
	}
	for length := 0; length < len(whole); length += max(1, len(whole)/40) {
		_, err := r.openState(state)
		require.NoError(t, err, "the backup before has not written it anew")
		try(whole[:length])
	}
	for at := 0; at < len(whole); at += max(1, len(whole)/60) {
		turned := bytes.Clone(whole)
		turned[at] ^= 1
		try(turned)
	}
	other := wholeMemoryRepository(t)
	_, foreign, _ := stateScene(t, other)
	theirs, err := os.ReadFile(foreign)
	require.NoError(t, err)
	try(theirs)
	try([]byte("something else"))
	require.NoError(t, os.Remove(state))
	require.NoError(t, os.Mkdir(state, 0o700)) // it cannot even be replaced
	again, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Equal(t, first.Tree, again.Tree)
}

// TestSectionsStandForThemselves: a section in the place of another, or of another file, is damage.
func TestSectionsStandForThemselves(t *testing.T) {
	r := wholeMemoryRepository(t)
	_, state, _ := stateScene(t, r)
	s, err := r.openState(state)
	require.NoError(t, err)
	defer s.close()
	require.NotNil(t, s.find("d/e"))
	require.Nil(t, s.find("d/x"))
	s.kept = nil
	s.footer.id[0] ^= 1
	require.Nil(t, s.find("d/e"))
	require.True(t, s.incomplete())
}

// TestStateThatTheRepositoryLost: what the state file names and no provider has any more is read and stored again, be it
// content or trees.
func TestStateThatTheRepositoryLost(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, p storage.Provider, kind blobType, r *Repository){
		"packs": func(t *testing.T, p storage.Provider, kind blobType, r *Repository) {
			for _, pack := range r.indexedPacks() {
				gone := false
				r.eachBlob(func(b packedBlob) bool {
					gone = gone || (b.location.pack == pack.id && b.location.kind == kind)
					return true
				})
				if gone {
					require.NoError(t, p.Delete(t.Context(), packKey(pack.id)))
				}
			}
		},
		"everything but the key": func(t *testing.T, p storage.Provider, _ blobType, _ *Repository) {
			for _, key := range allKeys(t, p) {
				if key != configKey && !bytes.HasPrefix([]byte(key), []byte(keyPrefix)) {
					require.NoError(t, p.Delete(t.Context(), key))
				}
			}
		},
	} {
		for _, kind := range []blobType{dataBlob, treeBlob} {
			for _, same := range []bool{true, false} {
				t.Run(name+" "+kind.String(), func(t *testing.T) {
					_, providers := memories(1)
					r := newTestRepository(t, storage.PolicyAll, providers...)
					dir, state, first := stateScene(t, r)
					lose(t, providers[0], kind, r)
					if !same {
						r = newTestRepository(t, storage.PolicyAll, providers...)
					}
					again, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
					require.NoError(t, err)
					require.Equal(t, first.Tree, again.Tree)
					require.NotZero(t, again.PacksUploaded)
					requireWhole(t, r, again.Snapshot)
				})
			}
		}
	}
}

// TestABackupThatFailsLeavesTheStateFile: it goes on saying what it said, and nothing is left beside it.
func TestABackupThatFailsLeavesTheStateFile(t *testing.T) {
	faults, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	dir, state, _ := stateScene(t, r)
	before, err := os.ReadFile(state)
	require.NoError(t, err)
	writeFiles(t, dir, map[string][]byte{"d/e/c": []byte("C")})
	faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return len(key) > 10 && key[:10] == snapshotPrefix[:10] }, Times: 1})
	_, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.ErrorIs(t, err, faulty.ErrInjected)
	after, err := os.ReadFile(state)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
	require.NoFileExists(t, state+stateTemporary)

	// What a killed process left is used again …
	require.NoError(t, os.WriteFile(state+stateTemporary, randomBytes(1, 1<<20), 0o600))
	read := readFiles(r)
	again, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Equal(t, []string{"d/e/c"}, read())
	require.NoFileExists(t, state+stateTemporary)
	opened, err := r.openState(state)
	require.NoError(t, err)
	require.Equal(t, again.Tree, opened.footer.tree.String())
	opened.close()

	// … and what a process is writing is left to it.
	writing, err := os.Create(state + stateTemporary)
	require.NoError(t, err)
	defer writing.Close()
	require.NoError(t, flock(int(writing.Fd()), unix.LOCK_EX))
	before, err = os.ReadFile(state)
	require.NoError(t, err)
	writeFiles(t, dir, map[string][]byte{"d/e/c": []byte("c")})
	_, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	after, err = os.ReadFile(state)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
	require.FileExists(t, state+stateTemporary)
}

// TestStateFileInTurn: processes that back one directory up in turn, with one state file or each with its own, make the
// snapshots of one that has none.
func TestStateFileInTurn(t *testing.T) {
	_, providers := memories(1)
	shared := t.TempDir()
	m := newMutator(t, 7)
	for range 30 {
		m.step()
	}
	for round := range 6 {
		r := newTestRepository(t, storage.PolicyAll, providers...)
		for _, state := range []string{"one", "one", []string{"two", "three"}[round%2]} {
			result, err := r.Backup(t.Context(), m.root, BackupOptions{Hostname: "h", StateFile: filepath.Join(shared, state)})
			require.NoError(t, err)
			fresh, err := r.Backup(t.Context(), m.root, BackupOptions{Hostname: result.Snapshot})
			require.NoError(t, err)
			require.Equal(t, comparable(t, r, fresh), comparable(t, r, result), m.did)
			m.step()
		}
	}
}

// TestOtherNamesMakeOtherTrees: trees hold the names of users and groups. When one has another name now, the trees of the
// state file are not today's.
func TestOtherNamesMakeOtherTrees(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir, state, first := stateScene(t, r)
	// A state file of the same directory, in which every directory has the tree of another one.
	write := func(name string) {
		names := &nameCache{}
		names.user(uint32(os.Getuid()))
		names.group(uint32(os.Getgid()))
		names.users[uint32(os.Getuid())] += name
		old, err := r.openState(state)
		require.NoError(t, err)
		defer old.close()
		w := r.newStateWriter(state, nil)
		for _, path := range []string{"", "d", "d/e", "f"} {
			known := old.find(path)
			require.NotNil(t, known)
			data, err := old.record(old.footer.dirs[known.index])
			require.NoError(t, err)
			record := bytes.Replace(bytes.Clone(data[:known.length]), known.tree, bytes.Clone(old.find("f").tree), 1)
			w.add(path, record)
		}
		require.NoError(t, w.finish(old.footer.tree, names))
	}
	write("ny")
	again, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Equal(t, first.Tree, again.Tree)
	require.Equal(t, [3]uint64{0, 0, 4}, counts(t, r, again))
	write("") // with the right names it is believed: that is what the test above tests
	again, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.NotEqual(t, first.Tree, again.Tree)
}
