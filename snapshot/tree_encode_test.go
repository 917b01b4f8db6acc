package snapshot

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// referenceTree encodes a tree with encoding/json, as restic does.
func referenceTree(nodes []node) ([]byte, error) {
	type wireTree struct {
		Nodes []node `json:"nodes"`
	}
	tree := wireTree{Nodes: make([]node, len(nodes))}
	for i, n := range nodes {
		wire := n
		quoted := strconv.Quote(n.Name)
		wire.Name = quoted[1 : len(quoted)-1]
		wire.ModTime, wire.AccessTime, wire.ChangeTime = jsonTime(n.ModTime), jsonTime(n.AccessTime), jsonTime(n.ChangeTime)
		wire.LinkTargetRaw = nil
		if !utf8.ValidString(n.LinkTarget) {
			wire.LinkTargetRaw = []byte(n.LinkTarget)
		}
		tree.Nodes[i] = wire
	}
	encoded, err := json.Marshal(tree)
	return append(encoded, '\n'), err
}

func requireSameBytes(t *testing.T, nodes []node) {
	t.Helper()
	want, wantErr := referenceTree(nodes)
	got, err := encodeTree(nodes)
	if wantErr != nil {
		require.Error(t, err, "%v", wantErr)
		return
	}
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// FuzzTreesAreThoseOfEncodingJSON compares the encoder with encoding/json, byte for byte.
func FuzzTreesAreThoseOfEncodingJSON(f *testing.F) {
	f.Add("name", "target", "user", "attribute", []byte("value"), int64(0), int64(0), uint64(7), uint8(0xff), 0)
	f.Add("<&>\u2028\u2029\x00\x1f\x7f\b\f\n\r\t\"\\/é世", "t\xff\xc0\u2028\b\f", "a\xed\xa0\x80", "\x80", []byte{}, int64(1<<40), int64(999_999_999), uint64(1)<<63, uint8(0), -3600)
	f.Add("\xff", "\ufffd", "", "", []byte(nil), int64(-1<<40), int64(1), uint64(0), uint8(0x55), 86399)
	f.Fuzz(func(t *testing.T, name, target, user, attribute string, value []byte, seconds, nanoseconds int64, number uint64, which uint8, zone int) {
		has := func(bit int) bool { return which>>bit&1 == 1 }
		at := time.Unix(seconds%(1<<38), nanoseconds)
		if has(0) {
			at = at.UTC()
		} else {
			at = at.In(time.FixedZone("", zone%100_000))
		}
		n := node{
			Name: name, Type: user, Mode: os.FileMode(uint32(number)), ModTime: at, AccessTime: at.Add(time.Duration(nanoseconds)), ChangeTime: at.Truncate(time.Second),
			UID: uint32(number), GID: uint32(number >> 32), User: user, Group: attribute, LinkTarget: target, Error: target,
		}
		id := blobID{byte(number), byte(number >> 8), 3}
		if has(1) {
			n.Inode, n.DeviceID, n.Size, n.Links, n.Device = number, number>>1, number>>2, number>>3, number>>4
		}
		if has(2) {
			n.Content = []blobID{}
		}
		if has(3) {
			n.Content = []blobID{id, {1}, id}
		}
		if has(4) {
			n.Subtree = &id
		}
		if has(5) {
			n.ExtendedAttributes = []extendedAttribute{{attribute, value}, {name, nil}, {user, []byte{}}}
		}
		if has(6) {
			n.ExtendedAttributes = []extendedAttribute{}
		}
		requireSameBytes(t, []node{n})
		requireSameBytes(t, []node{{Name: ""}, {Name: name + "a"}, {Name: name + "b", LinkTarget: name}})
	})
}

// TestTreesAreThoseOfEncodingJSON does the same with every character at every place of a name and a target.
func TestTreesAreThoseOfEncodingJSON(t *testing.T) {
	requireSameBytes(t, []node{})
	random := rand.New(rand.NewPCG(1, 1))
	for c := range rune(0x3100) {
		text := "a" + string(c) + string(c) + "b"
		requireSameBytes(t, []node{{Name: text, LinkTarget: text, User: text}})
	}
	for b := range 256 {
		text := string([]byte{byte(b)}) + "x" + string([]byte{byte(b)})
		requireSameBytes(t, []node{{Name: text, LinkTarget: text, User: text}})
	}
	for range 2000 {
		text := make([]byte, random.IntN(12))
		for i := range text {
			text[i] = byte(random.Uint32())
		}
		requireSameBytes(t, []node{{Name: string(text), LinkTarget: string(text)}})
	}
	for _, year := range []int{-1, 0, 1, 1969, 2038, 9999, 10000, 123456} {
		requireSameBytes(t, []node{{ModTime: time.Date(year, 2, 29, 1, 2, 3, 120_000_000, time.UTC)}})
	}
	var names []node
	for i := range 300 {
		names = append(names, node{Name: strconv.Itoa(1000 + i), Type: "file", Content: make([]blobID, i%4)})
	}
	requireSameBytes(t, names)
}

// TestIndexesAreThoseOfEncodingJSON compares what is written by hand with encoding/json.
func TestIndexesAreThoseOfEncodingJSON(t *testing.T) {
	crc, zero := uint32(1<<31), uint32(0)
	file := indexFile{Packs: []indexPack{
		{ID: blobID{1}, CRC32C: &crc, Blobs: []indexBlob{
			{ID: blobID{2}, Type: dataBlob, Offset: 0, Length: 50}, {ID: blobID{3}, Type: treeBlob, Offset: 50, Length: 1 << 20, Plain: 7},
		}},
		{ID: blobID{4}, Blobs: []indexBlob{{ID: blobID{5}, Offset: 1<<32 - 100, Length: 99}}, CRC32C: &zero},
		{ID: blobID{6}, Blobs: []indexBlob{}},
	}}
	for packs := range file.Packs {
		part := indexFile{Packs: file.Packs[:packs+1]}
		want, err := json.Marshal(part)
		require.NoError(t, err)
		got, err := encodeJSON(part)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
		decoded, err := decodeIndex(got)
		require.NoError(t, err)
		require.Equal(t, part, decoded)
	}
}
