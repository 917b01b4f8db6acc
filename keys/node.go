package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"filippo.io/age"
)

// ErrNotForThisNode means that something was sealed to another identity than the one that tried to open it.
var ErrNotForThisNode = errors.New("sealed to another identity")

// maxSealed bounds what Open decrypts into memory: sealed things are passwords and environments.
const maxSealed = 4 << 20

// NodeIdentity is a node's own key pair (age, X25519). The secret half never leaves the node.
type NodeIdentity struct{ identity hidden[*age.X25519Identity] }

// LoadOrCreateNodeIdentity reads the identity file (age's own format, mode 0600), or makes it. A file that cannot be
// read as one is an error and is left as it is.
func LoadOrCreateNodeIdentity(path string) (*NodeIdentity, error) {
	content, err := readSecretFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, fmt.Errorf("making the node's identity: %w", err)
		}
		text := "# holdfast node identity; public key: " + fresh.Recipient().String() + "\n" + fresh.String() + "\n"
		if _, err := createSecretFile(path, []byte(text)); err != nil {
			return nil, fmt.Errorf("making the node's identity: %w", err)
		}
		// Read back what is there: another process may have been first, and then its identity counts.
		content, err = readSecretFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading the node's identity: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading the node's identity: %w", err)
	}
	identity, err := parseIdentity(string(content))
	if err != nil {
		return nil, fmt.Errorf("reading the node's identity: %s: %w", path, err)
	}
	return &NodeIdentity{identity: hide(identity)}, nil
}

func parseIdentity(text string) (*age.X25519Identity, error) {
	var found *age.X25519Identity
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		identity, err := age.ParseX25519Identity(line)
		if err != nil {
			return nil, errors.New("a line is not an age identity") // age's error may quote the line
		}
		if found != nil {
			return nil, errors.New("there is more than one identity")
		}
		found = identity
	}
	if found == nil {
		return nil, errors.New("there is no identity")
	}
	return found, nil
}

// Recipient is the public half, as text (age1…), for SealTo.
func (n *NodeIdentity) Recipient() string { return n.identity().Recipient().String() }

// Open decrypts what SealTo made for this node and this purpose. The error wraps ErrNotForThisNode, ErrWrongPurpose or
// ErrDamaged.
func (n *NodeIdentity) Open(sealed []byte, purpose string) ([]byte, error) {
	return open(n.identity(), sealed, purpose)
}

// Format writes the public half, whatever the verb.
func (n *NodeIdentity) Format(s fmt.State, _ rune) { io.WriteString(s, "node identity "+n.Recipient()) }

// SealTo encrypts to the holder of a recipient's secret half, for a purpose. It does not say who sealed it: what comes
// sealed is trusted no more than the message that brought it.
func SealTo(recipient string, plaintext []byte, purpose string) ([]byte, error) {
	to, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("sealing a secret (%s): %w", purpose, err)
	}
	bound, err := bindPurpose(purpose, plaintext)
	if err != nil {
		return nil, fmt.Errorf("sealing a secret: %w", err)
	}
	if len(bound) > maxSealed {
		return nil, fmt.Errorf("sealing a secret (%s): it is larger than %d bytes", purpose, maxSealed)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err != nil {
		return nil, fmt.Errorf("sealing a secret (%s): %w", purpose, err)
	}
	if _, err := w.Write(bound); err != nil {
		return nil, fmt.Errorf("sealing a secret (%s): %w", purpose, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("sealing a secret (%s): %w", purpose, err)
	}
	return sealed.Bytes(), nil
}

func open(identity *age.X25519Identity, sealed []byte, purpose string) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if noMatch := (*age.NoIdentityMatchError)(nil); errors.As(err, &noMatch) {
		return nil, fmt.Errorf("opening a secret (%s): %w: this is %s", purpose, ErrNotForThisNode, identity.Recipient())
	}
	if err != nil {
		return nil, fmt.Errorf("opening a secret (%s): %w: %w", purpose, ErrDamaged, err)
	}
	bound, err := io.ReadAll(io.LimitReader(r, maxSealed+1))
	if err != nil {
		return nil, fmt.Errorf("opening a secret (%s): %w: %w", purpose, ErrDamaged, err)
	}
	if len(bound) > maxSealed {
		return nil, fmt.Errorf("opening a secret (%s): %w: it is larger than %d bytes", purpose, ErrDamaged, maxSealed)
	}
	plaintext, err := checkPurpose(purpose, bound)
	if err != nil {
		return nil, fmt.Errorf("opening a secret: %w", err)
	}
	return plaintext, nil
}
