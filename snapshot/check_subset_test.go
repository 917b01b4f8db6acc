package snapshot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

func TestParseSubset(t *testing.T) {
	for text, want := range map[string]Subset{
		"1/1": {bucket: 1, buckets: 1}, "3/7": {bucket: 3, buckets: 7}, "256/256": {bucket: 256, buckets: 256},
		"100%": {percent: 100}, "2.5%": {percent: 2.5}, "500M": {bytes: 500 << 20}, "500MiB": {bytes: 500 << 20}, "1k": {bytes: 1024},
		"12": {bytes: 12}, "2T": {bytes: 2 << 40},
	} {
		want.text = text
		got, err := ParseSubset(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		require.Equal(t, text, got.String())
	}
	for _, text := range []string{"", "/", "0/1", "2/1", "1/0", "1/257", "-1/3", "1/3/5", "a/b", "0%", "100.1%", "-1%", "NaN%", "%", "0", "0M", "-5M",
		"lots", "iB", "5iB", "5MB", "1.5G"} {
		_, err := ParseSubset(text)
		require.ErrorIs(t, err, storage.ErrInvalid, text)
	}
}

// TestSubsetsAtRandom: as many packs as restic 0.14 to 0.19 would read, at least one, those that chance names.
func TestSubsetsAtRandom(t *testing.T) {
	var packs []blobID
	sizes := map[blobID]int64{}
	for i := range 10 {
		packs = append(packs, blobID{byte(i)})
		sizes[packs[i]] = 100
	}
	backwards := func(n int) (order []int) {
		for i := range n {
			order = append(order, n-1-i)
		}
		return order
	}
	for text, want := range map[string]int{"1%": 1, "25%": 2, "29.9%": 2, "30%": 3, "100%": 10, "1": 1, "250": 2, "300": 3, "999": 9, "1000": 10, "5G": 10} {
		s, err := ParseSubset(text)
		require.NoError(t, err)
		require.Equal(t, packs[10-want:], s.choose(packs, sizes, backwards), text)
		require.Empty(t, s.choose(nil, nil, backwards), text)
		require.Len(t, (&CheckOptions{Subset: s}).toRead(packs, sizes), want)
	}
}

// manyPacks crafts a snapshot of files in so many packs of their own.
func manyPacks(c *crafter, n int) (packs []blobID) {
	var nodes []node
	for i := range n {
		nodes = append(nodes, c.fileNode(fmt.Sprintf("file %03d", i), noise(fmt.Sprint(i), 500)))
		packs = append(packs, c.endPack(dataBlob))
	}
	c.snapshot(c.tree(nodes...))
	return packs
}

// TestSubsetsSayWhatTheyRead: of a damaged pack exactly the group that it is in tells, and the others say that they did not
// read it, and call nothing sound.
func TestSubsetsSayWhatTheyRead(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	damaged := manyPacks(c, 20)[7]
	memory.Corrupt(packKey(damaged), func(data []byte) []byte { return flip(data, 100) })
	for _, groups := range []int{1, 3, 8} {
		var read, unread, found int64
		for n := 1; n <= groups; n++ {
			subset, err := ParseSubset(fmt.Sprintf("%d/%d", n, groups))
			require.NoError(t, err)
			report, err := c.repository.Check(t.Context(), CheckOptions{Subset: subset})
			require.NoError(t, err)
			require.Equal(t, ReadSubset, report.Read.Data)
			require.Equal(t, subset.String(), report.Read.Subset)
			require.Equal(t, report.Packs, report.Read.Packs+report.Read.UnreadPacks)
			require.Equal(t, report.Read.UnreadPacks > 0, report.Read.UnreadBytes > 0)
			require.Zero(t, report.States[StateSound])
			read, unread = read+report.Read.Packs, unread+report.Read.UnreadPacks
			if len(report.Errors) > 0 {
				found++
				require.Equal(t, n-1, int(damaged[0])%groups)
				require.Equal(t, damaged.String(), report.Damage[0].ID)
				require.Equal(t, []string{"/file 007 lost"}, slices.Concat(valuesOf(needed(report.Damage[0]))...))
			} else {
				require.Equal(t, map[State]int64{StateUnproven: 1}, report.States)
			}
		}
		require.EqualValues(t, 1, found)
		require.EqualValues(t, 21, read)
		require.EqualValues(t, 21*(groups-1), unread)
	}
	_, err := c.repository.Check(t.Context(), CheckOptions{ReadData: true, Subset: Subset{text: "1/2", bucket: 1, buckets: 2}})
	require.ErrorIs(t, err, storage.ErrInvalid)
}

func valuesOf(m map[string][]string) (values [][]string) {
	for _, v := range m {
		values = append(values, v)
	}
	return values
}

// TestSubsetsAreStockRestics: which packs n/t reads is asked of restic itself, which complains of those that it reads.
func TestSubsetsAreStockRestics(t *testing.T) { eachRestic(t, testSubsetsAreStockRestics) }

func testSubsetsAreStockRestics(t *testing.T, version resticVersion) {
	restic := version.path
	repository, provider := directoryRepository(t)
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, provider))
	packs := manyPacks(c, 30)
	for _, id := range packs {
		path := filepath.Join(repository, filepath.FromSlash(packKey(id)))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, flip(data, 100), 0o600))
	}
	subsets := []string{"1/1", "1/2", "2/2", "1/5", "2/5", "3/5", "4/5", "5/5", fmt.Sprintf("%d/256", int(packs[0][0])+1), fmt.Sprintf("%d/100", int(packs[1][0])%100+1)}
	named := regexp.MustCompile(`[0-9a-f]{64}`)
	for _, text := range subsets {
		command := exec.Command(restic, "--no-cache", "-r", repository, "check", "--read-data-subset", text)
		command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword))
		out, err := command.CombinedOutput()
		want := map[string]bool{}
		for _, id := range named.FindAllString(string(out), -1) {
			if slices.ContainsFunc(packs, func(p blobID) bool { return p.String() == id }) {
				want[id] = true
			}
		}
		require.Equal(t, len(want) > 0, err != nil, string(out))
		subset, err := ParseSubset(text)
		require.NoError(t, err)
		report, err := c.repository.Check(t.Context(), CheckOptions{Subset: subset})
		require.NoError(t, err)
		got := map[string]bool{}
		for _, damage := range report.Damage {
			got[damage.ID] = true
		}
		require.Equal(t, want, got, "%s: %s", text, out)
		// And all others that either reads, of trees: restic says their number.
		if counted := regexp.MustCompile(`read group #\d+ of (\d+) data packs \(out of total (\d+) packs`).FindStringSubmatch(string(out)); counted != nil {
			require.Equal(t, counted[1:], []string{fmt.Sprint(report.Read.Packs), fmt.Sprint(report.Packs)})
		} else {
			require.True(t, strings.Contains(string(out), "read all data"), string(out))
			require.Equal(t, report.Packs, report.Read.Packs)
		}
	}
}
