package keys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrWrongPurpose means that something was wrapped or sealed for another purpose than the one it is opened for.
var ErrWrongPurpose = errors.New("this secret was made for another purpose")

// ErrDamaged means that something wrapped or sealed is not whole, or was never made by Holdfast.
var ErrDamaged = errors.New("the sealed data is damaged")

const maxPurpose = 255

var purposeMagic = []byte("holdfast purpose v1\x00")

// bindPurpose puts the purpose before the plaintext. It is inside what is encrypted and authenticated.
func bindPurpose(purpose string, plaintext []byte) ([]byte, error) {
	if purpose == "" || len(purpose) > maxPurpose {
		return nil, fmt.Errorf("a purpose has 1 to %d bytes, not %d", maxPurpose, len(purpose))
	}
	bound := make([]byte, 0, len(purposeMagic)+2+len(purpose)+len(plaintext))
	bound = append(bound, purposeMagic...)
	bound = binary.BigEndian.AppendUint16(bound, uint16(len(purpose)))
	bound = append(bound, purpose...)
	return append(bound, plaintext...), nil
}

// checkPurpose returns the plaintext that bindPurpose was given, when it was for this purpose.
func checkPurpose(purpose string, bound []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(bound, purposeMagic)
	if !ok || len(rest) < 2 {
		return nil, fmt.Errorf("%w: it has no purpose", ErrDamaged)
	}
	n := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if n > len(rest) {
		return nil, fmt.Errorf("%w: its purpose is cut", ErrDamaged)
	}
	if made := string(rest[:n]); made != purpose {
		return nil, fmt.Errorf("%w: made for %q, wanted for %q", ErrWrongPurpose, made, purpose)
	}
	return rest[n:], nil
}
