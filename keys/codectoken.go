package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// NewCodecToken makes a random token for CodecServerOptions: 26 letters and digits, at least 128 bits.
func NewCodecToken() string { return rand.Text() }

// LoadOrCreateCodecToken reads the token of a codec endpoint from a file of mode 0600, or makes the file. The error is for
// a file that others can read (ErrExposed), and for a token that is too short to guard all payloads.
func LoadOrCreateCodecToken(path string) (string, error) {
	content, err := readSecretFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := createSecretFile(path, []byte(NewCodecToken()+"\n")); err != nil {
			return "", fmt.Errorf("making the codec endpoint's token: %w", err)
		}
		content, err = readSecretFile(path) // another process may have been first, and then its token counts
	}
	if err != nil {
		return "", fmt.Errorf("reading the codec endpoint's token: %w", err)
	}
	token := strings.TrimSpace(string(content))
	if len(token) < minCodecToken {
		return "", fmt.Errorf("reading the codec endpoint's token: %s must hold at least %d characters", path, minCodecToken)
	}
	return token, nil
}
