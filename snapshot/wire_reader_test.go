package snapshot

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wireNodes are nodes as a backup makes them.
func wireNodes(n int) []node {
	at := time.Date(2026, 11, 30, 18, 0, 0, 123456789, time.UTC)
	id := blobID{7}
	nodes := []node{{Name: "a directory", Type: "dir", Mode: 1<<31 | 0o755, ModTime: at, AccessTime: at, ChangeTime: at, User: "root", Group: "root", Subtree: &id}}
	for i := range n {
		nodes = append(nodes, node{
			Name: fmt.Sprintf("file-%05d.go", i), Type: "file", Mode: 0o644, ModTime: at.Add(time.Duration(i)), AccessTime: at.Add(time.Duration(i)),
			ChangeTime: at.Add(time.Hour), UID: 1000, GID: 100, User: "somebody", Group: "users", Size: 1 << 30, Links: 1,
			Content: []blobID{{byte(i), 1}, {2}}[:i%3%2+1],
		})
	}
	return nodes
}

func wireIndex(packs, blobs int) indexFile {
	crc := uint32(math.MaxUint32)
	file := indexFile{Packs: []indexPack{}}
	for i := range packs {
		pack := indexPack{ID: blobID{byte(i), byte(i >> 8)}, Blobs: []indexBlob{}, CRC32C: &crc}
		for j := range blobs {
			pack.Blobs = append(pack.Blobs, indexBlob{ID: blobID{byte(i), byte(j), byte(j >> 8)}, Type: blobType(j % 2), Offset: uint32(j * 1000), Length: 1000, Plain: uint32(j%2) * 5000})
		}
		file.Packs = append(file.Packs, pack)
	}
	return file
}

// TestUsualFormIsReadByHand: what this package and restic write is read without encoding/json, and gives the same.
func TestUsualFormIsReadByHand(t *testing.T) {
	tree := wireNodes(20)
	tree[3].ExtendedAttributes = []extendedAttribute{{"security.selinux", []byte("system_u:object_r\x00")}, {"user.empty", []byte{}}}
	tree[4].Inode, tree[4].DeviceID, tree[4].Links = math.MaxUint64, 1, 2
	tree[5].Content = []blobID{}
	tree[7].AccessTime = tree[7].ModTime.Add(time.Second)
	tree[6].AccessTime = tree[6].AccessTime.Add(time.Second).In(time.FixedZone("", 3600))
	tree = append(tree, node{Name: "link", Type: "symlink", LinkTarget: "../<&> target"}, node{Name: "nul", Type: "chardev", Device: 259})
	encoded, err := encodeTree(tree)
	require.NoError(t, err)
	// Go's JSON escapes these three although nothing requires it.
	plain := []byte(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(encoded)))
	nodes, ok := treeOf(plain)
	require.True(t, ok)
	var want struct{ Nodes []node }
	require.NoError(t, json.Unmarshal(plain, &want))
	require.Equal(t, want.Nodes, nodes)
	_, ok = treeOf(encoded)
	require.False(t, ok, "an escape")

	for _, packs := range []int{0, 1, 40} {
		for _, blobs := range []int{0, 1, 500} {
			file := wireIndex(packs, blobs)
			plain, err := encodeJSON(file)
			require.NoError(t, err)
			read, ok := indexOf(plain)
			require.True(t, ok)
			require.Equal(t, file, read)
		}
	}
}

// TestUsualFormHasItsBudget: a document of the usual form costs no more than one of any other may.
func TestUsualFormHasItsBudget(t *testing.T) {
	tree, err := encodeTree(wireNodes(20))
	require.NoError(t, err)
	index, err := encodeJSON(wireIndex(1, 20))
	require.NoError(t, err)
	for _, enough := range []bool{true, false} {
		small := func(cost jsonCost, data []byte) jsonCost {
			cost.budget = cost.count(data)
			if !enough {
				cost.budget--
			}
			return cost
		}
		_, treeErr := decodeTreeWithin(small(treeCost(), tree), tree)
		_, indexErr := decodeIndexWithin(small(indexCost(), index), index)
		if enough {
			require.NoError(t, treeErr)
			require.NoError(t, indexErr)
			continue
		}
		require.ErrorIs(t, treeErr, ErrLimitExceeded)
		require.ErrorIs(t, indexErr, ErrLimitExceeded)
	}
}

// TestOtherFormsAreNotReadByHand: what encoding/json would refuse, or read as something else, is left to it.
func TestOtherFormsAreNotReadByHand(t *testing.T) {
	index, err := encodeJSON(wireIndex(1, 2))
	require.NoError(t, err)
	tree, err := encodeTree(wireNodes(2))
	require.NoError(t, err)
	for _, change := range [][2]string{
		{`"offset":1000`, `"offset":01000`}, {`"offset":1000`, `"offset":-1`}, {`"offset":1000`, `"offset":4294967296`}, {`"offset":1000`, `"offset":`},
		{`"offset":1000`, `"offset":1e3`}, {`"tree"`, `"true"`}, {`{"packs":[`, `{"packs": [`}, {`{"packs":[`, `{"packs":[,`}, {`5}]}`, `5}]}}`},
		{`"id":"00`, `"id":"0`}, {`"id":"00`, `"id":"0G`}, {`"id":"00`, `"id":"0A`}, {`4294967295`, `4294967296`}, {`"blobs":[`, `"blobs":null,"x":[`},
		{`},{`, `}{`}, {`"id"`, `"ID"`},
	} {
		changed := strings.Replace(string(index), change[0], change[1], 1)
		require.NotEqual(t, string(index), changed, change)
		_, ok := indexOf([]byte(changed))
		require.False(t, ok, change)
	}
	for _, change := range [][2]string{
		{`"name":"a`, `"name":"\u0061`}, {`"name":"a`, `"name":"é`}, {`"name":"a`, "\"name\":\"\n"}, {`2026-11-30T`, `2026-11-31T`}, {`2026-11-30T`, `2026-11-30t`},
		{`"mode":420`, `"mode":4294967296`}, {`"size":1073741824`, `"size":18446744073709551616`}, {`"content":null`, `"content":nul`}, {`"uid":1000`, `"uid":"1000"`},
		{`"content":["`, `"content":["0`}, {`","ctime"`, `","ctime":"","ctime"`}, {`"subtree"`, `"Subtree"`}, {`,"gid":0`, ``}, {`"links":1`, `"links":1,"more":1`},
		{"]}\n", "]}\n\n"}, {"]}\n", "]"},
	} {
		changed := strings.Replace(string(tree), change[0], change[1], 1)
		require.NotEqual(t, string(tree), changed, change)
		_, ok := treeOf([]byte(changed))
		require.False(t, ok, change)
	}
}

func BenchmarkDecodeIndex(b *testing.B) {
	plain, err := encodeJSON(wireIndex(50, 1000))
	require.NoError(b, err)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		_, err := decodeIndex(plain)
		require.NoError(b, err)
	}
}

func BenchmarkDecodeTree(b *testing.B) {
	plain, err := encodeTree(wireNodes(1000))
	require.NoError(b, err)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		_, err := decodeTree(plain)
		require.NoError(b, err)
	}
}
