package snapshot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/poly1305" //nolint:staticcheck // the format is defined with Poly1305-AES
)

// The envelope around everything that is stored encrypted: a random initialisation vector, the AES-256-CTR ciphertext,
// and a Poly1305-AES tag over the ciphertext that uses the vector as its nonce.
const (
	vectorSize       = aes.BlockSize
	tagSize          = poly1305.TagSize
	envelopeOverhead = vectorSize + tagSize
)

// errUnauthentic says that bytes were not sealed with this repository's key, or were changed since.
var errUnauthentic = errors.New("the message is not authentic: damaged, or sealed with another key")

// macKey is the long-lived half of Poly1305-AES: k encrypts the nonce, r is the polynomial's point.
type macKey struct {
	K []byte `json:"k"`
	R []byte `json:"r"`
}

// masterKey is what encrypts a repository; key files hold it, wrapped by a password.
type masterKey struct {
	MAC     macKey `json:"mac"`
	Encrypt []byte `json:"encrypt"`
}

// clampR clears the bits of r that Poly1305 requires to be zero (https://cr.yp.to/mac/poly1305-20050329.pdf, section
// 2): the top four of bytes 3, 7, 11, 15 and the lowest two of bytes 4, 8, 12.
func clampR(r []byte) {
	for _, i := range []int{3, 7, 11, 15} {
		r[i] &= 15
	}
	for _, i := range []int{4, 8, 12} {
		r[i] &= 252
	}
}

func newMasterKey() (masterKey, error) {
	random := make([]byte, 64)
	if _, err := rand.Read(random); err != nil {
		return masterKey{}, fmt.Errorf("making a master key: %w", err)
	}
	key := masterKey{Encrypt: random[:32], MAC: macKey{K: random[32:48], R: random[48:64]}}
	clampR(key.MAC.R)
	return key, nil
}

func decodeMasterKey(plain []byte) (masterKey, error) {
	var key masterKey
	if err := json.Unmarshal(plain, &key); err != nil {
		return masterKey{}, fmt.Errorf("decoding the master key: %w: %w", ErrDamaged, err)
	}
	if len(key.Encrypt) != 32 || len(key.MAC.K) != 16 || len(key.MAC.R) != 16 {
		return masterKey{}, fmt.Errorf("decoding the master key: a part has the wrong length: %w", ErrDamaged)
	}
	return key, nil
}

// envelope seals and opens messages with one key. It is safe for concurrent use.
type envelope struct {
	encrypt cipher.Block
	mac     cipher.Block
	r       [16]byte
}

func newEnvelope(key masterKey) (*envelope, error) {
	encrypt, err := aes.NewCipher(key.Encrypt)
	if err != nil {
		return nil, fmt.Errorf("setting up AES: %w", err)
	}
	mac, err := aes.NewCipher(key.MAC.K)
	if err != nil {
		return nil, fmt.Errorf("setting up Poly1305-AES: %w", err)
	}
	e := &envelope{encrypt: encrypt, mac: mac}
	copy(e.r[:], key.MAC.R)
	return e, nil
}

func (e *envelope) tag(vector, ciphertext []byte) [tagSize]byte {
	var oneTime [32]byte
	copy(oneTime[:16], e.r[:])
	e.mac.Encrypt(oneTime[16:], vector)
	var tag [tagSize]byte
	poly1305.Sum(&tag, ciphertext, &oneTime)
	return tag
}

// seal appends the sealed message to dst. dst's spare capacity must not overlap plain.
func (e *envelope) seal(dst, plain []byte) []byte {
	start := len(dst)
	dst = grow(dst, len(plain)+envelopeOverhead)
	copy(dst[start+vectorSize:], plain)
	e.sealInPlace(dst[start : start+vectorSize+len(plain)]) // the tag is appended within dst
	return dst
}

// sealInPlace seals the message that begins after the first vectorSize bytes, over itself, and appends the tag.
func (e *envelope) sealInPlace(message []byte) []byte {
	vector, content := message[:vectorSize], message[vectorSize:]
	// crypto/rand.Read never fails since Go 1.24: it ends the program instead.
	_, _ = rand.Read(vector)
	cipher.NewCTR(e.encrypt, vector).XORKeyStream(content, content)
	tag := e.tag(vector, content)
	return append(message, tag[:]...)
}

// open appends the plaintext of a sealed message to dst, after the tag was found right.
func (e *envelope) open(dst, sealed []byte) ([]byte, error) {
	stream, ciphertext, err := e.authenticate(sealed)
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = grow(dst, len(ciphertext))
	stream.XORKeyStream(dst[start:], ciphertext)
	return dst, nil
}

// openAuthentic is open for a message whose tag was found right before.
func (e *envelope) openAuthentic(dst, sealed []byte) ([]byte, error) {
	if len(sealed) < envelopeOverhead {
		return nil, fmt.Errorf("a sealed message has %d bytes, less than its frame: %w", len(sealed), errUnauthentic)
	}
	start, ciphertext := len(dst), sealed[vectorSize:len(sealed)-tagSize]
	dst = grow(dst, len(ciphertext))
	cipher.NewCTR(e.encrypt, sealed[:vectorSize]).XORKeyStream(dst[start:], ciphertext)
	return dst, nil
}

// authenticate finds a sealed message's tag right, and returns its ciphertext with what turns that into the plaintext.
func (e *envelope) authenticate(sealed []byte) (cipher.Stream, []byte, error) {
	if len(sealed) < envelopeOverhead {
		return nil, nil, fmt.Errorf("a sealed message has %d bytes, less than its frame: %w", len(sealed), errUnauthentic)
	}
	vector, ciphertext := sealed[:vectorSize], sealed[vectorSize:len(sealed)-tagSize]
	tag := e.tag(vector, ciphertext)
	if subtle.ConstantTimeCompare(tag[:], sealed[len(sealed)-tagSize:]) != 1 {
		return nil, nil, errUnauthentic
	}
	return cipher.NewCTR(e.encrypt, vector), ciphertext, nil
}

// opening reads the plaintext of a message that was authenticated, without ever holding all of it.
type opening struct {
	stream     cipher.Stream
	ciphertext []byte
}

func (o *opening) Read(p []byte) (int, error) {
	if len(o.ciphertext) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(o.ciphertext))
	o.stream.XORKeyStream(p[:n], o.ciphertext[:n])
	o.ciphertext = o.ciphertext[n:]
	return n, nil
}

// grow extends b by n bytes whose content is unspecified.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	larger := make([]byte, len(b)+n)
	copy(larger, b)
	return larger
}
