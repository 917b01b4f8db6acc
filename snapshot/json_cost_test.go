package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSmallJSONThatBecomesLarge: a document whose elements are as short as JSON allows is refused before anything is made
// of it, whatever the elements are; 4 MB that a repository holds in a few hundred bytes took gigabytes.
func TestSmallJSONThatBecomesLarge(t *testing.T) {
	decoders := []struct {
		name       string
		head, tail string
		cost       jsonCost
		depth      int
		decode     func([]byte) error
	}{
		{"the entries of a tree", `{"nodes":[`, `]}`, treeCost(), 2, func(b []byte) error { _, err := decodeTree(b); return err }},
		{"the content of a file", `{"nodes":[{"name":"a","type":"file","content":[`, `]}]}`, treeCost(), 4, func(b []byte) error { _, err := decodeTree(b); return err }},
		{"the packs of an index", `{"packs":[`, `]}`, indexCost(), 2, func(b []byte) error { _, err := decodeIndex(b); return err }},
		{"the blobs of a pack", `{"packs":[{"blobs":[`, `]}]}`, indexCost(), 4, func(b []byte) error { _, err := decodeIndex(b); return err }},
		{"the tags of a snapshot", `{"tags":[`, `]}`, snapshotCost(), 2, func(b []byte) error { _, err := decodeSnapshot(b); return err }},
		{"the omissions of a snapshot", `{"holdfast":{"omissions":[`, `]}}`, snapshotCost(), 3, func(b []byte) error { _, err := decodeSnapshot(b); return err }},
	}
	for i, d := range decoders {
		elements := []string{`{}`, `1`}
		if i == 0 {
			elements = append(elements, `[]`, `""`, `null`, ` { } `, `{"a":[]}`, `"\\\","`)
		}
		for _, element := range elements {
			t.Run(d.name+" "+element, func(t *testing.T) {
				count := int(d.cost.budget/int64(d.cost.elements[d.depth])) + 1
				document := []byte(d.head + strings.Repeat(element+",", count) + element + d.tail)
				require.True(t, json.Valid(document))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := d.decode(document)
				runtime.ReadMemStats(&after)
				require.ErrorIs(t, err, ErrLimitExceeded)
				require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), "made before it was refused")
			})
		}
	}
	_, err := decodeLock(append([]byte(`{"hostname":"`), make([]byte, maxLockSize)...))
	require.ErrorIs(t, err, ErrLimitExceeded)
}

// TestLargeDocumentsAreRead: what a writer writes is far below the budget in the largest document that its size allows.
func TestLargeDocumentsAreRead(t *testing.T) {
	for name, example := range map[string]struct {
		cost    jsonCost
		head    string
		element string
		size    int
	}{
		"a tree":      {treeCost(), `{"nodes":[`, `{"name":"abcdefg","type":"file","mtime":"2001-02-03T04:05:06Z","atime":"2001-02-03T04:05:06Z","ctime":"2001-02-03T04:05:06Z","uid":0,"gid":0,"size":1,"content":["0000000000000000000000000000000000000000000000000000000000000000"]},`, maxTreeSize},
		"attributes":  {treeCost(), `{"nodes":[{"extended_attributes":[`, `{"name":"user.aaaa","value":"YQ=="},`, maxTreeSize},
		"content":     {treeCost(), `{"nodes":[{"content":[`, `"0000000000000000000000000000000000000000000000000000000000000000",`, maxTreeSize},
		"an index":    {indexCost(), `{"packs":[{"blobs":[`, `{"id":"0000000000000000000000000000000000000000000000000000000000000000","type":"data","offset":0,"length":40},`, maxUnpackedSize},
		"small packs": {indexCost(), `{"packs":[`, `{"id":"0000000000000000000000000000000000000000000000000000000000000000","blobs":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","type":"data","offset":0,"length":40}]},`, maxUnpackedSize},
	} {
		t.Run(name, func(t *testing.T) {
			one := example.cost.count([]byte(example.head+example.element)) - example.cost.count([]byte(example.head))
			require.Positive(t, one)
			require.Less(t, one*int64(example.size/len(example.element)), example.cost.budget)
		})
	}
	all := maxStoredOmissions*48 + 2*maxStoredExclusions*48
	require.Less(t, int64(all), snapshotCost().budget)
}

// FuzzJSONCost compares the count with one made of the tokens that encoding/json reads.
func FuzzJSONCost(f *testing.F) {
	f.Add([]byte(`{"nodes":[{},[],[[1,"a\"]",null]],{"a":[true,-1.5e3]}],"b":{"c":[{}]}}`))
	f.Add([]byte(`[ "\\", "\u005d", {"]":"["} ]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cost := jsonCost{"a document", []uintptr{1, 10, 100, 1000}, 1 << 50}
		counted := cost.count(data)
		if !json.Valid(data) {
			return
		}
		want := int64(0)
		decoder := json.NewDecoder(bytes.NewReader(data))
		var arrays []bool
		value := func() {
			if len(arrays) > 0 && arrays[len(arrays)-1] {
				want += int64(cost.elements[min(len(arrays), len(cost.elements)-1)])
			}
		}
		for {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // deeper than it goes
			}
			switch token {
			case json.Delim('{'), json.Delim('['):
				value()
				arrays = append(arrays, token == json.Delim('['))
			case json.Delim('}'), json.Delim(']'):
				arrays = arrays[:len(arrays)-1]
			default:
				value()
			}
		}
		if counted != want {
			t.Fatalf("counted %d instead of %d", counted, want)
		}
	})
}
