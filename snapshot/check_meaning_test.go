package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

var (
	damagedKinds = map[string]struct {
		kind DamageKind
		path string // what of the first snapshot needs it
	}{
		"config": {DamageConfig, ""}, "key": {DamageKey, ""}, "index": {DamageIndex, "all"}, "snapshot": {DamageSnapshot, "/"},
		"tree pack": {DamagePack, "/dir/"}, "data pack": {DamagePack, "/a"},
	}
	damageWays = []string{"missing", "truncated", "flipped", "empty"}
)

// TestDamageInOneStore: every kind of object, damaged in every way in one of two stores: the object, the store, and the paths
// of the snapshot that needs it are named, that snapshot is exposed in just that store, and the other one is sound.
func TestDamageInOneStore(t *testing.T) {
	for name, kind := range damagedKinds {
		for _, way := range damageWays {
			t.Run(name+" "+way, func(t *testing.T) {
				s := newDamagedScene(t)
				s.damage(t, s.keys[name], s.memories[1], way)
				r, err := openMirror(t, s.memories[0], s.memories[1])
				require.NoError(t, err)
				defer r.Close()
				report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
				require.NoError(t, err)
				require.NotEmpty(t, report.Errors)
				require.Len(t, report.Damage, 1, "%+v", report)
				damage := report.Damage[0]
				require.Equal(t, kind.kind, damage.Kind)
				require.Equal(t, s.keys[name], damage.Key)
				require.False(t, damage.Lost)
				require.Equal(t, []string{s.memories[0].URL()}, damage.WholeOn)
				require.Len(t, damage.Stores, 1)
				require.Equal(t, s.memories[1].URL(), damage.Stores[0].Store)
				want := ProblemDamaged
				if way == "missing" {
					want = ProblemMissing
				}
				require.Equal(t, want, damage.Stores[0].Problem)
				// A listing of this store has checksums, and a config is read by every repair.
				require.False(t, damage.Stores[0].Hidden)
				require.Equal(t, []StoreVerdict{{Store: s.memories[0].URL()},
					{Store: s.memories[1].URL(), Damaged: map[Problem]int64{ProblemDamaged: 1}[want], Missing: map[Problem]int64{ProblemMissing: 1}[want]}}, report.Stores)

				first, second := verdictOf(t, report, s.first), verdictOf(t, report, s.second)
				require.Equal(t, StateSound, second.State)
				require.Empty(t, second.Lacking)
				if kind.path == "" {
					require.Equal(t, StateSound, first.State)
					require.Empty(t, damage.NeededBy)
					return
				}
				require.Equal(t, StateExposed, first.State)
				require.Equal(t, []string{s.memories[1].URL()}, first.Lacking)
				require.EqualValues(t, 1, damage.Snapshots)
				paths := []string{kind.path}
				if kind.path == "all" { // files, directories, and the top one
					paths = []string{"/", "/a", "/b", "/dir/"}
					for i := range 6 {
						paths = append(paths, fmt.Sprintf("/dir/in %d", i))
					}
					require.EqualValues(t, 14, damage.Paths)
					require.EqualValues(t, 14, first.ExposedPaths)
				} else {
					require.EqualValues(t, 1, damage.Paths)
				}
				require.Equal(t, map[string][]string{s.first: paths}, needed(damage))
				require.Equal(t, map[State]int64{StateSound: 1, StateExposed: 1}, report.States)
			})
		}
	}
}

// TestDamageInEveryStore: the same where no store has a good copy: it is lost, with the path, and the other snapshot is sound.
// Without config or key nothing can be opened, and the error names it.
func TestDamageInEveryStore(t *testing.T) {
	for name, kind := range damagedKinds {
		for _, way := range damageWays {
			for _, stores := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s %s in %d", name, way, stores), func(t *testing.T) {
					s := newDamagedScene(t)
					providers := []storage.Provider{s.memories[0], s.memories[1]}[:stores]
					for _, memory := range s.memories[:stores] {
						s.damage(t, s.keys[name], memory, way)
					}
					r, err := openMirror(t, providers...)
					if kind.path == "" {
						require.ErrorIs(t, err, ErrDamaged)
						require.ErrorContains(t, err, map[bool]string{true: "no key", false: s.keys[name]}[way == "missing" && name == "key"])
						return
					}
					require.NoError(t, err)
					defer r.Close()
					report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
					require.NoError(t, err)
					require.Equal(t, StateSound, verdictOf(t, report, s.second).State)
					if name == "snapshot" && way == "missing" {
						require.Empty(t, report.Errors, "nothing knows of a snapshot that is nowhere")
						require.Len(t, report.Verdicts, 1)
						return
					}
					require.NotEmpty(t, report.Errors)
					first := verdictOf(t, report, s.first)
					require.Equal(t, StateDamaged, first.State)
					require.EqualValues(t, 1, first.LostPaths)
					require.Len(t, first.Lacking, stores)

					damage, path := report.Damage[0], kind.path
					switch {
					case name == "index" && way == "missing": // what it named, nobody knows any more
						require.Len(t, report.Damage, 1)
						path = "/"
						require.Equal(t, DamageBlob, damage.Kind)
					case name == "index":
						require.Len(t, report.Damage, 2)
						require.Equal(t, s.keys[name], damage.Key)
						require.True(t, damage.Lost)
						damage, path = report.Damage[1], "/"
						require.Equal(t, DamageBlob, damage.Kind)
					default:
						require.Len(t, report.Damage, 1, "%+v", report.Damage)
						require.Equal(t, s.keys[name], damage.Key)
						require.Len(t, damage.Stores, stores)
					}
					require.True(t, damage.Lost)
					require.Empty(t, damage.WholeOn)
					require.EqualValues(t, 1, damage.Snapshots)
					require.EqualValues(t, 1, damage.Paths)
					require.Equal(t, map[string][]string{s.first: {path + " lost"}}, needed(damage))
				})
			}
		}
	}
}

// TestDamageOfWhatOpensTheRepository: who opened it before config or key went away in every store is told, also when something
// else begins with that name.
func TestDamageOfWhatOpensTheRepository(t *testing.T) {
	for _, name := range []string{"config", "key"} {
		s := newDamagedScene(t)
		r, err := openMirror(t, s.memories[0], s.memories[1])
		require.NoError(t, err)
		key := s.keys[name]
		for _, memory := range s.memories {
			other := key + ".old"
			if name == "key" {
				other = keyPrefix + (blobID{1}).String()
			}
			overwrite(t, memory, other, read(t, memory, key))
			must(t, memory.Delete(t.Context(), key))
		}
		report, err := r.Check(t.Context(), CheckOptions{})
		require.NoError(t, err)
		require.Contains(t, report.Errors, key+": missing on every provider")
		at := slices.IndexFunc(report.Damage, func(d Damage) bool { return d.Key == key })
		require.GreaterOrEqual(t, at, 0, "%+v", report.Damage)
		damage := report.Damage[at]
		require.Equal(t, damagedKinds[name].kind, damage.Kind)
		require.True(t, damage.Lost)
		require.Empty(t, damage.WholeOn)
		require.Len(t, damage.Stores, 2)
		for _, copy := range damage.Stores {
			require.Equal(t, ProblemMissing, copy.Problem)
		}
		must(t, r.Close())
	}
}

// TestDamageThatAListingShows is named with its paths without reading the other packs, and then no snapshot is called sound.
func TestDamageThatAListingShows(t *testing.T) {
	for _, name := range []string{"data pack", "tree pack"} {
		for _, way := range damageWays {
			s := newDamagedScene(t)
			s.damage(t, s.keys[name], s.memories[0], way)
			r, err := openMirror(t, s.memories[0], s.memories[1])
			require.NoError(t, err)
			report, err := r.Check(t.Context(), CheckOptions{})
			require.NoError(t, err)
			require.Equal(t, StateUnproven, verdictOf(t, report, s.second).State)
			require.Equal(t, ReadNone, report.Read.Data)
			require.Equal(t, report.Packs, report.Read.UnreadPacks)
			if way == "flipped" && name == "data pack" {
				require.Empty(t, report.Damage, "only reading it shows that")
				continue
			}
			require.Len(t, report.Damage, 1, "%s %s", name, way) // a tree that had to be read elsewhere is looked for
			if way == "flipped" {
				want := int64(len(read(t, s.memories[1], s.keys[name]))) // whether the other copy is whole
				for _, key := range treePacks(r) {
					want += int64(len(read(t, s.memories[0], key)))
				}
				require.Equal(t, want, report.Bytes, "looked for where it could not be read, and nowhere else")
			}
			require.Equal(t, map[string][]string{s.first: {damagedKinds[name].path}}, needed(report.Damage[0]))
			require.Equal(t, StateExposed, verdictOf(t, report, s.first).State)
			must(t, r.Close())
		}
	}
	for stores := 1; stores <= 2; stores++ { // a directory that no store can give is found in its pack
		s := newDamagedScene(t)
		var providers []storage.Provider
		for _, memory := range s.memories[:stores] {
			s.damage(t, s.keys["tree pack"], memory, "flipped")
			providers = append(providers, memory)
		}
		r, err := openMirror(t, providers...)
		require.NoError(t, err)
		report, err := r.Check(t.Context(), CheckOptions{})
		require.NoError(t, err)
		require.Len(t, report.Damage, 1)
		require.Equal(t, s.keys["tree pack"], report.Damage[0].Key)
		require.Len(t, report.Damage[0].Stores, stores)
		require.True(t, report.Damage[0].Lost)
		require.Equal(t, map[string][]string{s.first: {"/dir/ lost"}}, needed(report.Damage[0]))
		must(t, r.Close())
	}
}

// treePacks are the keys of the packs with trees in them.
func treePacks(r *Repository) []string {
	keys := map[string]bool{}
	r.eachBlob(func(b packedBlob) bool {
		if b.location.kind == treeBlob {
			keys[packKey(b.location.pack)] = true
		}
		return true
	})
	return slices.Sorted(maps.Keys(keys))
}

// TestOneBlobOfManyPaths: a path counts once for what is damaged however many of its blobs lie there, every path that needs
// a blob counts, and a directory for each place that it is in. What a file needs of packs that are lost and of packs that
// are whole somewhere is named with each, and is lost in whichever order it needs them.
func TestOneBlobOfManyPaths(t *testing.T) {
	memories := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memories[0], memories[1], memories[2]))
	x, y := c.fileNode("x", noise("x", 1000)), c.fileNode("y", noise("y", 1000))
	lost := c.endPack(dataBlob)
	z := c.fileNode("z", noise("z", 1000))
	exposed := c.endPack(dataBlob)
	of := func(name string, parts ...node) node {
		n := c.fileNode(name, "")
		for _, part := range parts {
			n.Content, n.Size = append(n.Content, part.Content...), n.Size+part.Size
		}
		return n
	}
	dir := c.tree(of("h", y), of("i", z))
	top := c.tree(of("a", x, y, x, z), of("b", z, x), of("c", x), dirNode("d", dir), dirNode("e", dir), of("f", z))
	id, again := c.snapshot(top), c.snapshot(top)
	for _, memory := range memories {
		must(t, memory.Delete(t.Context(), packKey(lost)))
	}
	must(t, memories[1].Delete(t.Context(), packKey(exposed)))
	report, err := c.repository.Check(t.Context(), CheckOptions{ReadData: true})
	require.NoError(t, err)
	require.Len(t, report.Damage, 2)
	require.Equal(t, packKey(lost), report.Damage[0].Key)
	require.EqualValues(t, 2, report.Damage[0].Blobs)
	require.EqualValues(t, 2*5, report.Damage[0].Paths)
	require.EqualValues(t, 2, report.Damage[0].Snapshots)
	named := []string{"/a lost", "/b lost", "/c lost", "/d/h lost"}
	require.Equal(t, map[string][]string{id: named, again: named}, needed(report.Damage[0]))
	require.Equal(t, packKey(exposed), report.Damage[1].Key)
	require.Equal(t, []string{memories[0].URL(), memories[2].URL()}, report.Damage[1].WholeOn)
	require.EqualValues(t, 2*5, report.Damage[1].Paths)
	named = []string{"/a lost", "/b lost", "/d/i", "/f"}
	require.Equal(t, map[string][]string{id: named, again: named}, needed(report.Damage[1]))
	verdict := verdictOf(t, report, id)
	require.EqualValues(t, 5, verdict.LostPaths)
	require.EqualValues(t, 3, verdict.ExposedPaths)
}

// TestDamageOfCopiesThatCompleteEachOther: the listings show that one copy of a pack is cut off, and the other one, which they
// do not show, is damaged elsewhere. No store has it whole, whatever was asked to be read; no path is lost, since each store
// has what the other lacks, and nobody is told that one of the two can be removed.
func TestDamageOfCopiesThatCompleteEachOther(t *testing.T) {
	memories := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	stores := []string{memories[0].URL(), memories[1].URL()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memories[0], memories[1]))
	files := []node{c.fileNode("a", noise("a", 2000)), c.fileNode("b", noise("b", 2000))}
	pack := c.endPack(dataBlob)
	away := c.fileNode("c", noise("c", 2000))
	awayPack := c.endPack(dataBlob)
	id := c.snapshot(c.tree(append(files, away)...))
	before := contentOf(t, memories[0], memories[1])
	memories[0].Corrupt(packKey(pack), func(data []byte) []byte { return data[:3000] }) // no b
	whole := read(t, memories[1], packKey(pack))
	memories[1].Corrupt(packKey(pack), func(data []byte) []byte { return flip(data, 1000) }) // no a
	must(t, memories[0].Delete(t.Context(), packKey(awayPack)))

	other, err := ParseSubset(fmt.Sprintf("%d/256", int(pack[0]^1)+1))
	require.NoError(t, err)
	for _, options := range []CheckOptions{{}, {Subset: other}, {ReadData: true}} {
		report, err := c.repository.Check(t.Context(), options)
		require.NoError(t, err)
		require.Len(t, report.Damage, 2)
		damage, missing := report.Damage[0], report.Damage[1]
		require.Equal(t, packKey(pack), damage.Key)
		require.True(t, damage.Lost, "%+v", damage)
		require.Empty(t, damage.WholeOn)
		require.Len(t, damage.Stores, 2)
		require.EqualValues(t, 2, damage.Blobs)
		require.Equal(t, map[string][]string{id: {"/a", "/b"}}, needed(damage), "each can be restored")
		require.Equal(t, packKey(awayPack), missing.Key)
		require.Equal(t, stores[1:], missing.WholeOn)
		verdict := verdictOf(t, report, id)
		require.Equal(t, StateExposed, verdict.State)
		require.Equal(t, stores, verdict.Lacking)
		if options.Subset.isZero() && !options.ReadData {
			require.EqualValues(t, 3000+len(whole), report.Bytes, "for what is only missing nothing is read")
		}
	}
	require.Equal(t, before, contentOf(t, memories[0], memories[1]))

	// A second copy that is whole is said to be only once it was read, and is read once.
	memories[1].Corrupt(packKey(pack), func([]byte) []byte { return whole })
	for _, options := range []CheckOptions{{}, {ReadData: true}} {
		report, err := c.repository.Check(t.Context(), options)
		require.NoError(t, err)
		at := slices.IndexFunc(report.Damage, func(d Damage) bool { return d.Key == packKey(pack) })
		require.Equal(t, stores[1:], report.Damage[at].WholeOn)
		want := int64(3000 + len(whole))
		if options.ReadData {
			want = 0
			for _, memory := range memories {
				for _, key := range memory.Keys() {
					if isPack(key) {
						want += int64(len(read(t, memory, key)))
					}
				}
			}
		}
		require.Equal(t, want, report.Bytes)
	}
}

// TestOnlyWhatIsNeededIsSaidToBeLost: blobs of a damaged pack that can still be read, that lie in another pack too, or that
// nothing needs, take nothing from any snapshot.
func TestOnlyWhatIsNeededIsSaidToBeLost(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	files := []node{c.fileNode("first", noise("first", 1000)), c.fileNode("second", noise("second", 1000)), c.fileNode("twice", noise("twice", 1000))}
	c.blob(dataBlob, []byte(noise("of a removed snapshot", 1000)))
	pack := c.endPack(dataBlob)
	c.known = map[blobKey]bool{}
	c.fileNode("twice", noise("twice", 1000))
	newer := c.endPack(dataBlob)
	first := c.snapshot(c.tree(files...))
	second := c.snapshot(c.tree(files[1], files[2]))
	third := c.snapshot(c.tree(dirNode("x", c.tree(files...)), dirNode("y", c.tree(files[2]))))

	check := func(change func([]byte) []byte) (*CheckReport, Damage) {
		t.Helper()
		memory.Corrupt(packKey(pack), change)
		report, err := c.repository.Check(t.Context(), CheckOptions{ReadData: true})
		require.NoError(t, err)
		require.Len(t, report.Damage, 1)
		return report, report.Damage[0]
	}
	var whole []byte
	report, damage := check(func(data []byte) []byte { whole = data; return flip(data, 500) })
	require.EqualValues(t, 1, damage.Blobs)
	require.EqualValues(t, 2, damage.Snapshots)
	require.EqualValues(t, 2, damage.Paths)
	require.Equal(t, map[string][]string{first: {"/first lost"}, third: {"/x/first lost"}}, needed(damage))
	require.Equal(t, StateSound, verdictOf(t, report, second).State)

	report, damage = check(func([]byte) []byte { return flip(whole, len(whole)-1) })
	require.Zero(t, damage.Blobs, "only its header is damaged")
	require.Empty(t, damage.NeededBy)
	require.Equal(t, map[State]int64{StateSound: 3}, report.States)

	_, damage = check(func([]byte) []byte { return flip(whole, 3500) })
	require.EqualValues(t, 1, damage.Blobs)
	require.Zero(t, damage.Paths, "no snapshot needs it")

	memory.Corrupt(packKey(pack), func([]byte) []byte { return whole })
	older := pack
	pack = newer
	report, damage = check(func(data []byte) []byte { whole = data; return nil })
	require.EqualValues(t, 1, damage.Blobs)
	require.Equal(t, map[State]int64{StateSound: 3}, report.States, "the older pack has it")
	memory.Corrupt(packKey(pack), func([]byte) []byte { return whole })

	pack = older
	report, damage = check(func([]byte) []byte { return nil })
	require.EqualValues(t, 4, damage.Blobs)
	require.EqualValues(t, 3, damage.Snapshots)
	require.EqualValues(t, 5, damage.Paths, "what lies in another pack too is not lost")
	require.Equal(t, []string{"/x/first lost", "/x/second lost"}, needed(damage)[third])
	require.Equal(t, map[State]int64{StateDamaged: 3}, report.States)
}

// TestDamageNamesAreBounded: of very much only some is named, the newest first, and all is counted; directories that lie in
// each other more often than could be gone through too.
func TestDamageNamesAreBounded(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	file := c.fileNode("file", noise("file", 1000))
	pack := c.endPack(dataBlob)
	tree := c.tree(file)
	const depth = 40
	for range depth {
		tree = c.tree(dirNode("l", tree), dirNode("r", tree))
	}
	var newest string
	for i := range 2 * maxNeedSnapshots {
		newest = c.snapshot(c.tree(dirNode(fmt.Sprint("top", i), tree)))
	}
	must(t, memory.Delete(t.Context(), packKey(pack)))
	report, err := c.repository.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	damage := report.Damage[0]
	require.EqualValues(t, 2*maxNeedSnapshots, damage.Snapshots)
	require.EqualValues(t, 2*maxNeedSnapshots<<depth, damage.Paths)
	require.Len(t, damage.NeededBy, maxNeedSnapshots)
	require.Equal(t, newest, damage.NeededBy[0].Snapshot)
	require.EqualValues(t, 1<<depth, report.Verdicts[0].LostPaths)

	many := newCrafter(t, newTestRepository(t, storage.PolicyAll, storagetest.NewMemory()))
	var nodes []node
	for i := range 5000 {
		n := file
		n.Name = fmt.Sprintf("%04d", i)
		nodes = append(nodes, n)
	}
	many.snapshot(many.tree(nodes...))
	report, err = many.repository.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	require.EqualValues(t, 5000, report.Damage[0].Paths)
	require.Len(t, report.Damage[0].NeededBy[0].Paths, maxNeedPaths)
	require.EqualValues(t, 1, report.Damage[0].Blobs)
}

// TestLostContentIsStoredAgain: the mend that a check names for what no store has. The old snapshot is whole again.
func TestLostContentIsStoredAgain(t *testing.T) {
	memory := storagetest.NewMemory()
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": []byte(noise("a", 10_000)), "b": []byte(noise("b", 10_000))})
	r := newTestRepository(t, storage.PolicyAll, memory)
	old, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	for _, key := range memory.Keys() {
		if strings.HasPrefix(key, packPrefix) {
			memory.Corrupt(key, func(data []byte) []byte { return flip(data, 100) })
		}
	}
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	require.NoError(t, err)
	require.Equal(t, map[State]int64{StateDamaged: 1}, report.States)
	for _, damage := range report.Damage {
		require.True(t, damage.Lost)
		must(t, memory.Delete(t.Context(), damage.Key))
	}
	_, err = r.RebuildIndex(t.Context(), RebuildIndexOptions{})
	require.NoError(t, err)
	r, err = openMirror(t, memory)
	require.NoError(t, err)
	defer r.Close()
	_, err = r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	report, err = r.Check(t.Context(), CheckOptions{ReadData: true})
	require.NoError(t, err)
	require.Empty(t, report.Errors)
	require.Equal(t, StateSound, verdictOf(t, report, old.Snapshot).State)
	requireWhole(t, r, old.Snapshot)
}
