package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"

	"filippo.io/age"

	"holdfast/dataport"
)

// Control is the control side's identity: a key pair that secrets are sealed to (age, X25519), and one that signs the
// data port's tokens (ed25519). All control workers share it: it lies in the catalog, wrapped by the master key.
type Control struct {
	identity hidden[*age.X25519Identity]
	signing  hidden[ed25519.PrivateKey]
}

// controlFile is what MarshalWrapped wraps.
type controlFile struct {
	Version int    `json:"version"`
	Age     string `json:"age"`
	Seed    []byte `json:"seed"`
}

// NewControl makes a new identity.
func NewControl() (*Control, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("making the control identity: %w", err)
	}
	_, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the control identity: %w", err)
	}
	return &Control{identity: hide(identity), signing: hide(signing)}, nil
}

// MarshalWrapped returns the identity wrapped by the master key.
func (c *Control) MarshalWrapped(ctx context.Context, master *Master) ([]byte, error) {
	plain, err := json.Marshal(controlFile{Version: 1, Age: c.identity().String(), Seed: c.signing().Seed()})
	if err != nil {
		return nil, fmt.Errorf("wrapping the control identity: %w", err)
	}
	wrapped, err := master.Wrap(ctx, PurposeControlIdentity, plain)
	if err != nil {
		return nil, fmt.Errorf("wrapping the control identity: %w", err)
	}
	return wrapped, nil
}

// OpenControl opens what MarshalWrapped returned. The errors are those of Master.Unwrap.
func OpenControl(ctx context.Context, master *Master, wrapped []byte) (*Control, error) {
	plain, err := master.Unwrap(ctx, PurposeControlIdentity, wrapped)
	if err != nil {
		return nil, fmt.Errorf("opening the control identity: %w", err)
	}
	var file controlFile
	// The causes are dropped below: they can quote what they could not parse.
	if err := json.Unmarshal(plain, &file); err != nil {
		return nil, fmt.Errorf("opening the control identity: %w: it is not JSON", ErrDamaged)
	}
	if file.Version != 1 {
		return nil, fmt.Errorf("opening the control identity: it has version %d, this program knows 1", file.Version)
	}
	identity, err := age.ParseX25519Identity(file.Age)
	if err != nil {
		return nil, fmt.Errorf("opening the control identity: %w: its age identity cannot be parsed", ErrDamaged)
	}
	if len(file.Seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("opening the control identity: %w: its signing seed has %d bytes", ErrDamaged, len(file.Seed))
	}
	signing := ed25519.NewKeyFromSeed(file.Seed)
	return &Control{identity: hide(identity), signing: hide(signing)}, nil
}

// Recipient is what secrets for the control side are sealed to with SealTo.
func (c *Control) Recipient() string { return c.identity().Recipient().String() }

// VerifyKey is what data ports verify tokens with.
func (c *Control) VerifyKey() ed25519.PublicKey { return c.signing().Public().(ed25519.PublicKey) }

// Open decrypts what was sealed to Recipient for this purpose. The errors are those of NodeIdentity.Open.
func (c *Control) Open(sealed []byte, purpose string) ([]byte, error) {
	return open(c.identity(), sealed, purpose)
}

// Sign makes a data port token. The key signs nothing else.
func (c *Control) Sign(claims dataport.Claims) (string, error) {
	return dataport.Sign(c.signing(), claims)
}

// Format writes the public half, whatever the verb.
func (c *Control) Format(s fmt.State, _ rune) { io.WriteString(s, "control identity "+c.Recipient()) }
