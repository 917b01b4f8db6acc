package snapshot

import (
	"encoding/json"
	"fmt"
	"slices"
	"unsafe"
)

// A decoder of JSON makes a slot of each element of an array, however few bytes that has and whatever is wrong with it:
// 64 MiB of `{},` are under 100 KB in a repository, and more than 6 GB as the entries of a directory. So what a document
// would cost is counted before anything is made of it.

// jsonCost is what decoding one kind of document makes.
type jsonCost struct {
	what string // for errors
	// elements is the size in bytes of an element of an array, by how many objects and arrays it lies in; the last is for
	// all that lie deeper.
	elements []uintptr
	budget   int64 // for the whole document, in bytes
}

// Each budget is above what the largest document costs that its size limit allows and restic or this package writes.

// treeCost: an entry takes 304 bytes, and 110 of JSON where a writer leaves out what it can, ours 350. In an entry are
// attributes, and the ids of its content, which are smaller.
func treeCost() jsonCost {
	return jsonCost{"a tree", []uintptr{0, 0, unsafe.Sizeof(node{}), 0, unsafe.Sizeof(extendedAttribute{})}, maxTreeMemory}
}

// indexCost: a blob takes 48 bytes, and 130 of JSON.
func indexCost() jsonCost {
	return jsonCost{"an index", []uintptr{0, 0, unsafe.Sizeof(indexPack{}), 0, unsafe.Sizeof(indexBlob{})}, maxIndexMemory}
}

// snapshotCost: texts of the snapshot itself, then what is in its holdfast object.
func snapshotCost() jsonCost {
	return jsonCost{"a snapshot", []uintptr{0, 0, unsafe.Sizeof(""), unsafe.Sizeof(Omission{})}, maxSnapshotMemory}
}

// decodeJSON decodes a document unless that would cost more than its budget, which is ErrLimitExceeded. What is no JSON,
// or not of value's form, is ErrDamaged.
func decodeJSON(data []byte, cost jsonCost, value any) error {
	if err := cost.check(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("decoding %s: %w: %w", cost.what, ErrDamaged, err)
	}
	return nil
}

func (c jsonCost) check(data []byte) error {
	if c.exceeded(data) {
		return fmt.Errorf("decoding %s: its %d bytes would become more than %d in memory: %w", c.what, len(data), c.budget, ErrLimitExceeded)
	}
	return nil
}

// exceeded reports whether a document would cost more than the budget.
func (c jsonCost) exceeded(data []byte) bool {
	// An element has at least a character and a comma: a document that cannot cost so much is not looked at.
	return int64(len(data)/2+1)*int64(slices.Max(c.elements)) > c.budget && c.count(data) > c.budget
}

// count goes on until the budget is exceeded. Of what is no valid JSON it counts something: the decoder refuses that
// before it makes anything.
func (c jsonCost) count(data []byte) int64 {
	sum := int64(0)
	var arrays []bool // of the objects and arrays that are open, whether it is an array
	expect := false   // in an array, an element may begin here
	for i := 0; i < len(data) && sum <= c.budget; i++ {
		switch data[i] {
		case ' ', '\t', '\r', '\n', ':':
			continue
		case '}', ']':
			if len(arrays) > 0 {
				arrays = arrays[:len(arrays)-1]
			}
			expect = false
			continue
		case ',':
			expect = len(arrays) > 0 && arrays[len(arrays)-1]
			continue
		}
		if expect {
			sum += int64(c.elements[min(len(arrays), len(c.elements)-1)])
			expect = false
		}
		switch data[i] {
		case '{', '[':
			if len(arrays) == maxJSONDepth {
				return 0 // encoding/json goes no deeper either
			}
			expect = data[i] == '['
			arrays = append(arrays, expect)
		case '"':
			i = endOfString(data, i)
		}
	}
	return sum
}

// endOfString is where the closing quote of the string is that begins at i, or the last byte.
func endOfString(data []byte, i int) int {
	for i++; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(data) - 1
}
