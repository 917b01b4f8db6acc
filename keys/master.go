package keys

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"
)

// The URL schemes of local master keys. Every other scheme goes to the drivers of gocloud.dev/secrets that the program
// links; this one links none (the cloud KMS drivers are not among its modules). A program that imports, for example,
// gocloud.dev/secrets/gcpkms can open gcpkms:// URLs here without a change.
const (
	SchemeLocalKey  = "localkey"  // localkey:///path/to/master.key: a file with 32 random bytes in base64, mode 0600
	SchemeBase64Key = "base64key" // base64key://…: the key itself, in the URL; for tests, since URLs end up in listings
)

// ErrWrongKey means that something was wrapped by another master key than the one that was opened.
var ErrWrongKey = errors.New("wrapped by another master key")

// wrapMagic begins everything that a Master wraps. After it: the length of the master's id (1 byte), the id, and the
// driver's ciphertext.
var wrapMagic = []byte("hfwrap1\x00")

// Master is an opened master key. It is safe for concurrent use.
type Master struct {
	keeper *secrets.Keeper
	id     string
	local  bool // the id is a fingerprint of the key itself, so that another id is another key
}

// OpenMaster opens the master key that the URL names. Errors never quote the URL, which may be the key.
func OpenMaster(ctx context.Context, masterURL string) (*Master, error) {
	u, err := url.Parse(masterURL)
	if err != nil {
		// The parser's own error quotes the URL.
		return nil, errors.New("opening the master key: its URL cannot be parsed")
	}
	switch u.Scheme {
	case SchemeLocalKey:
		path, err := localKeyPath(u)
		if err != nil {
			return nil, fmt.Errorf("opening the master key: %w", err)
		}
		key, err := readLocalKey(path)
		if err != nil {
			return nil, fmt.Errorf("opening the master key: %w", err)
		}
		return newLocalMaster(key), nil
	case SchemeBase64Key:
		// The driver makes a random key when there is none in the URL: what it wraps could never be unwrapped again.
		if u.Host == "" {
			return nil, errors.New("opening the master key: the base64key URL holds no key")
		}
		key, err := localsecrets.Base64Key(u.Host)
		if err != nil {
			return nil, errors.New("opening the master key: the base64key URL does not hold 32 bytes in URL-safe base64")
		}
		return newLocalMaster(key), nil
	case "":
		return nil, fmt.Errorf("opening the master key: its URL has no scheme; for a key file say %s:///path/to/master.key", SchemeLocalKey)
	}
	if !secrets.DefaultURLMux().ValidKeeperScheme(u.Scheme) {
		return nil, fmt.Errorf("opening the master key: this build has no driver for %s:// (it has %s:// and %s://)",
			u.Scheme, SchemeLocalKey, SchemeBase64Key)
	}
	keeper, err := secrets.OpenKeeper(ctx, masterURL)
	if err != nil {
		return nil, fmt.Errorf("opening the master key with %s: %w", u.Scheme, err)
	}
	// A KMS does not show its key: its resource's name stands for it, without the query (regions, profiles).
	return &Master{keeper: keeper, id: u.Scheme + "-" + fingerprint([]byte(u.Scheme+"://"+u.Host+u.Path))}, nil
}

func newLocalMaster(key [32]byte) *Master {
	return &Master{keeper: localsecrets.NewKeeper(key), id: "local-" + fingerprint(key[:]), local: true}
}

func fingerprint(of []byte) string {
	sum := sha256.Sum256(append([]byte("holdfast master key id v1\x00"), of...))
	return hex.EncodeToString(sum[:8])
}

func localKeyPath(u *url.URL) (string, error) {
	if u.Host != "" || u.RawQuery != "" || u.Fragment != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("a local key's URL is %s:///absolute/path and nothing else", SchemeLocalKey)
	}
	return u.Path, nil
}

// LocalKeyURL returns the URL of a key file, for OpenMaster. A relative path is made absolute.
func LocalKeyURL(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("naming the key file: %w", err)
	}
	return (&url.URL{Scheme: SchemeLocalKey, Path: absolute}).String(), nil
}

// CreateLocalKey makes a key file with a new random key, mode 0600, whole and on the disk before its name appears. A
// file that is there is never touched: created is then false. Whoever loses this file loses all that it wrapped.
func CreateLocalKey(path string) (created bool, err error) {
	var key [32]byte
	rand.Read(key[:]) // never fails: crypto/rand ends the program instead
	created, err = createSecretFile(path, []byte(base64.StdEncoding.EncodeToString(key[:])+"\n"))
	if err != nil {
		return false, fmt.Errorf("making the master key file: %w", err)
	}
	return created, nil
}

func readLocalKey(path string) ([32]byte, error) {
	content, err := readSecretFile(path)
	if err != nil {
		return [32]byte{}, err
	}
	key, err := localsecrets.Base64KeyStd(strings.TrimSpace(string(content)))
	if err != nil {
		return [32]byte{}, fmt.Errorf("%s is not a key file: it must hold 32 bytes in base64", path)
	}
	return key, nil
}

// ID names the master key without showing anything of it. It is written beside all that this key wraps.
func (m *Master) ID() string { return m.id }

// Close releases the driver.
func (m *Master) Close() error { return m.keeper.Close() }

// Format writes the id, whatever the verb.
func (m *Master) Format(s fmt.State, _ rune) { io.WriteString(s, "master key "+m.id) }

// Wrap encrypts a short secret for a purpose. Cloud KMS services limit it to 4 KiB with the purpose.
func (m *Master) Wrap(ctx context.Context, purpose string, plaintext []byte) ([]byte, error) {
	bound, err := bindPurpose(purpose, plaintext)
	if err != nil {
		return nil, fmt.Errorf("wrapping a secret: %w", err)
	}
	sealed, err := m.keeper.Encrypt(ctx, bound)
	if err != nil {
		return nil, fmt.Errorf("wrapping a secret (%s) with master key %s: %w", purpose, m.id, err)
	}
	wrapped := make([]byte, 0, len(wrapMagic)+1+len(m.id)+len(sealed))
	wrapped = append(wrapped, wrapMagic...)
	wrapped = append(wrapped, byte(len(m.id)))
	wrapped = append(wrapped, m.id...)
	return append(wrapped, sealed...), nil
}

// Unwrap decrypts what Wrap made for the same purpose. The error wraps ErrWrongKey, ErrWrongPurpose or ErrDamaged when
// trying again is of no use; a KMS that does not answer is none of them.
func (m *Master) Unwrap(ctx context.Context, purpose string, wrapped []byte) ([]byte, error) {
	id, sealed, err := splitWrapped(wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrapping a secret (%s): %w", purpose, err)
	}
	// A KMS key can have several names, so that only a local key's other id is surely another key.
	if id != m.id && (m.local || strings.HasPrefix(id, "local-")) {
		return nil, fmt.Errorf("unwrapping a secret (%s): %w: it needs %s, this is %s", purpose, ErrWrongKey, id, m.id)
	}
	bound, err := m.keeper.Decrypt(ctx, sealed)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("unwrapping a secret (%s): %w", purpose, context.Cause(ctx))
		}
		switch {
		case m.local:
			return nil, fmt.Errorf("unwrapping a secret (%s): %w: %w", purpose, ErrDamaged, err)
		case id != m.id && gcerrors.Code(err) == gcerrors.InvalidArgument:
			return nil, fmt.Errorf("unwrapping a secret (%s): %w: it needs %s, this is %s: %w", purpose, ErrWrongKey, id, m.id, err)
		}
		return nil, fmt.Errorf("unwrapping a secret (%s) with master key %s: %w", purpose, m.id, err)
	}
	plaintext, err := checkPurpose(purpose, bound)
	if err != nil {
		return nil, fmt.Errorf("unwrapping a secret: %w", err)
	}
	return plaintext, nil
}

// WrappedBy names the master key that wrapped something, without opening it.
func WrappedBy(wrapped []byte) (id string, err error) {
	id, _, err = splitWrapped(wrapped)
	return id, err
}

func splitWrapped(wrapped []byte) (id string, sealed []byte, err error) {
	rest, ok := bytes.CutPrefix(wrapped, wrapMagic)
	if !ok || len(rest) == 0 {
		return "", nil, fmt.Errorf("%w: it was not made by a master key", ErrDamaged)
	}
	n := int(rest[0])
	rest = rest[1:]
	if n == 0 || n > len(rest) {
		return "", nil, fmt.Errorf("%w: its header is cut", ErrDamaged)
	}
	for _, b := range rest[:n] {
		if b <= ' ' || b > '~' { // it goes into error messages
			return "", nil, fmt.Errorf("%w: its header is not text", ErrDamaged)
		}
	}
	return string(rest[:n]), rest[n:], nil
}
