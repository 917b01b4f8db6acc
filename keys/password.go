package keys

import (
	"crypto/rand"
	"encoding/base64"
)

// NewRepositoryPassword makes a repository's password: 32 random bytes in URL-safe base64 (43 characters), which restic
// takes from a password file as it is.
func NewRepositoryPassword() string {
	var password [32]byte
	rand.Read(password[:]) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(password[:])
}
