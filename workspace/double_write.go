package workspace

import (
	"crypto/sha256"
	"encoding/binary"
)

// DoubleWritten says whether a workspace is among the first percent (0 to 100) of a hundred equal parts into which ids
// fall. A workspace that is in at some percentage is in at every higher one, so that a roll-out takes them in a few at a
// time and moves none twice.
func DoubleWritten(id string, percent int) bool {
	sum := sha256.Sum256([]byte("double-write\x00" + id))
	return binary.BigEndian.Uint64(sum[:])%100 < uint64(max(percent, 0))
}
