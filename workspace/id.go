package workspace

import (
	"crypto/rand"
	"strings"
)

// NewID makes a workspace id: 26 characters of lower-case base32, 130 random bits.
func NewID() string {
	// rand.Text is 26 characters of upper-case base32.
	return strings.ToLower(rand.Text())
}

// ValidVolumeID says whether a text can be the id of a shared volume: the same form.
func ValidVolumeID(id string) bool {
	return len(id) == 26 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
