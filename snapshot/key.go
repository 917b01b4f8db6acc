package snapshot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/crypto/scrypt"
)

// keyFile is a file of keys/: the master key, sealed with a key that scrypt derives from a password. It is the only
// kind of file that is stored as plain JSON.
type keyFile struct {
	Created  time.Time `json:"created"`
	Username string    `json:"username"`
	Hostname string    `json:"hostname"`
	KDF      string    `json:"kdf"`
	N        int       `json:"N"`
	R        int       `json:"r"`
	P        int       `json:"p"`
	Salt     []byte    `json:"salt"`
	Data     []byte    `json:"data"`
}

const saltSize = 64

// The default cost of scrypt: about half a second and 32 MiB, as restic calibrates on common machines.
const (
	defaultScryptN = 32768
	defaultScryptR = 8
	defaultScryptP = 5
)

// Limits on the cost that a key file can ask for: 1 GiB of memory, and about a minute of one processor.
const (
	maxScryptMemory = 1 << 30
	maxScryptWork   = 1 << 27 // N*r*p
)

func (k KDFParameters) applyDefaults() KDFParameters {
	if k.N == 0 {
		k.N = defaultScryptN
	}
	if k.R == 0 {
		k.R = defaultScryptR
	}
	if k.P == 0 {
		k.P = defaultScryptP
	}
	return k
}

// validate refuses parameters that scrypt does not know, or that would cost more than the limits allow.
func (k KDFParameters) validate() error {
	n, r, p := int64(k.N), int64(k.R), int64(k.P)
	switch {
	case n < 2 || n&(n-1) != 0 || r < 1 || p < 1:
		return fmt.Errorf("scrypt parameters N=%d r=%d p=%d make no sense: %w", k.N, k.R, k.P, ErrDamaged)
	case n > 1<<30 || r > 1<<16 || p > 1<<16 || 128*n*r > maxScryptMemory || n*r*p > maxScryptWork:
		return fmt.Errorf("scrypt parameters N=%d r=%d p=%d: %w", k.N, k.R, k.P, ErrLimitExceeded)
	}
	return nil
}

// deriveKey turns a password into the key that seals a master key.
func deriveKey(password, salt []byte, cost KDFParameters) (masterKey, error) {
	if err := cost.validate(); err != nil {
		return masterKey{}, err
	}
	derived, err := scrypt.Key(password, salt, cost.N, cost.R, cost.P, 64)
	if err != nil {
		return masterKey{}, fmt.Errorf("deriving a key from the password: %w", err)
	}
	// What that took, 32 MiB as a rule, is most of the heap now, by which the collector would let as much again be made before it
	// looks. A collection takes a hundredth of the derivation's time.
	runtime.GC()
	return masterKeyOf(derived), nil
}

// masterKeyOf cuts 64 derived bytes into the parts of a key.
func masterKeyOf(derived []byte) masterKey {
	key := masterKey{Encrypt: derived[:32], MAC: macKey{K: derived[32:48], R: derived[48:64]}}
	clampR(key.MAC.R)
	return key
}

// newKeyFile seals a master key with a password.
func newKeyFile(password []byte, master masterKey, cost KDFParameters, hostname, username string) ([]byte, error) {
	cost = cost.applyDefaults()
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("making a salt: %w", err)
	}
	derived, err := deriveKey(password, salt, cost)
	if err != nil {
		return nil, err
	}
	box, err := newEnvelope(derived)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(master)
	if err != nil {
		return nil, fmt.Errorf("encoding the master key: %w", err)
	}
	encoded, err := json.Marshal(keyFile{
		Created: time.Now().UTC(), Username: username, Hostname: hostname,
		KDF: "scrypt", N: cost.N, R: cost.R, P: cost.P, Salt: salt, Data: box.seal(nil, plain),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a key file: %w", err)
	}
	return encoded, nil
}

func decodeKeyFile(data []byte) (keyFile, error) {
	var file keyFile
	if err := json.Unmarshal(data, &file); err != nil {
		return file, fmt.Errorf("decoding a key file: %w: %w", ErrDamaged, err)
	}
	if file.KDF != "scrypt" {
		return file, fmt.Errorf("decoding a key file: key derivation %q is unknown: %w", file.KDF, ErrDamaged)
	}
	if len(file.Salt) < 8 || len(file.Salt) > 1024 {
		return file, fmt.Errorf("decoding a key file: a salt of %d bytes: %w", len(file.Salt), ErrDamaged)
	}
	if err := (KDFParameters{N: file.N, R: file.R, P: file.P}).validate(); err != nil {
		return file, fmt.Errorf("decoding a key file: %w", err)
	}
	return file, nil
}

// unlock opens the master key with a password. A wrong one is ErrWrongPassword.
func (f keyFile) unlock(password []byte) (masterKey, error) {
	derived, err := deriveKey(password, f.Salt, KDFParameters{N: f.N, R: f.R, P: f.P})
	if err != nil {
		return masterKey{}, err
	}
	box, err := newEnvelope(derived)
	if err != nil {
		return masterKey{}, err
	}
	plain, err := box.open(nil, f.Data)
	if errors.Is(err, errUnauthentic) {
		return masterKey{}, ErrWrongPassword
	}
	if err != nil {
		return masterKey{}, err
	}
	return decodeMasterKey(plain)
}
