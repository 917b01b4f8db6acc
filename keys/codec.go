package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/proto"
)

// CodecEncoding is the encoding that encrypted payloads carry in their metadata.
const CodecEncoding = "binary/holdfast-aes256gcm"

// metadataCodecKey is the metadata entry with the id of the key that encrypted a payload.
const metadataCodecKey = "holdfast-codec-key"

// ErrUnknownCodecKey means that a payload was encrypted with a key that this process has not got.
var ErrUnknownCodecKey = errors.New("the payload was encrypted with a codec key that is not here")

// CodecKey is a key of the payload codec: AES-256, with an id that says which key encrypted a payload.
type CodecKey struct {
	id     string
	secret hidden[[32]byte]
}

// ID names the key without showing anything of it.
func (k CodecKey) ID() string { return k.id }

// Format writes the id, whatever the verb.
func (k CodecKey) Format(s fmt.State, _ rune) { io.WriteString(s, "codec key "+k.id) }

// NewCodecKey makes a random key that is kept nowhere, for tests.
func NewCodecKey() CodecKey {
	var secret [32]byte
	rand.Read(secret[:]) // never fails: crypto/rand ends the program instead
	return codecKey(secret)
}

func codecKey(secret [32]byte) CodecKey {
	sum := sha256.Sum256(append([]byte("holdfast codec key id v1\x00"), secret[:]...))
	return CodecKey{id: hex.EncodeToString(sum[:8]), secret: hide(secret)}
}

// LoadOrCreateCodecKey reads the key file (one key, base64, mode 0600), or makes it. Every process that talks to one
// Temporal namespace needs the same key, so that on all machines but the first the file is copied, not made: use
// LoadCodecKey there. To change the key, make a second file and give NewCodec the new key first and the old one after it.
func LoadOrCreateCodecKey(path string) (CodecKey, error) {
	key, err := LoadCodecKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if _, err := CreateCodecKey(path); err != nil {
		return CodecKey{}, err
	}
	// Read back what is there: another process may have been first, and then its key counts.
	return LoadCodecKey(path)
}

// CreateCodecKey makes a key file with a new random key, mode 0600, whole and on the disk before its name appears. A
// file that is there is never touched: created is then false.
func CreateCodecKey(path string) (created bool, err error) {
	fresh := NewCodecKey()
	secret := fresh.secret()
	text := base64.StdEncoding.EncodeToString(secret[:]) + "\n"
	if created, err = createSecretFile(path, []byte(text)); err != nil {
		return false, fmt.Errorf("making the codec key: %w", err)
	}
	return created, nil
}

// LoadCodecKey reads a key file and never makes one; the error wraps fs.ErrNotExist when there is none.
func LoadCodecKey(path string) (CodecKey, error) {
	content, err := readSecretFile(path)
	if err != nil {
		return CodecKey{}, fmt.Errorf("reading the codec key: %w", err)
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(content)))
	if err != nil || len(decoded) != 32 {
		return CodecKey{}, fmt.Errorf("reading the codec key: %s must hold 32 bytes in base64", path)
	}
	return codecKey([32]byte(decoded)), nil
}

type codec struct {
	current string                 // the id of the key that encodes
	ciphers map[string]cipher.AEAD // by key id
}

// NewCodec returns the codec that encrypts every payload whole (its metadata too) with AES-256-GCM under the first key,
// and decrypts with any of them. The nonce is random; the encoding and the key's id are authenticated with the payload.
//
// On decoding, a payload in any other encoding is returned as it is: Temporal itself writes plain payloads, and so do
// people with the stock command line or Web UI. That gives nothing away, and nothing is trusted for having been
// encrypted: whoever may write to the namespace may send commands, with or without the key. A payload that claims our
// encoding, however, is decrypted and authenticated or is an error; it is never passed through.
//
// The error is for no keys, or two that are the same.
func NewCodec(keys ...CodecKey) (converter.PayloadCodec, error) {
	if len(keys) == 0 {
		return nil, errors.New("making the payload codec: there is no key")
	}
	c := &codec{current: keys[0].id, ciphers: make(map[string]cipher.AEAD, len(keys))}
	for _, key := range keys {
		if key.secret == nil {
			return nil, errors.New("making the payload codec: a key is empty")
		}
		if _, twice := c.ciphers[key.id]; twice {
			return nil, fmt.Errorf("making the payload codec: key %s is given twice", key.id)
		}
		secret := key.secret()
		block, err := aes.NewCipher(secret[:])
		if err != nil {
			return nil, fmt.Errorf("making the payload codec: %w", err)
		}
		// The nonce is made and put before the ciphertext by the cipher itself: 96 random bits, good for 2^32 payloads a key.
		if c.ciphers[key.id], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fmt.Errorf("making the payload codec: %w", err)
		}
	}
	return c, nil
}

// associated is what is authenticated beside the ciphertext.
func associated(keyID string) []byte { return []byte(CodecEncoding + "\x00" + keyID) }

// Encode implements converter.PayloadCodec.
func (c *codec) Encode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	encoded := make([]*commonpb.Payload, len(payloads))
	for i, payload := range payloads {
		plain, err := proto.Marshal(payload)
		if err != nil {
			return nil, fmt.Errorf("encrypting a payload: %w", err)
		}
		encoded[i] = &commonpb.Payload{
			Metadata: map[string][]byte{
				converter.MetadataEncoding: []byte(CodecEncoding),
				metadataCodecKey:           []byte(c.current),
			},
			Data: c.ciphers[c.current].Seal(nil, nil, plain, associated(c.current)),
		}
	}
	return encoded, nil
}

// Decode implements converter.PayloadCodec.
func (c *codec) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	decoded := make([]*commonpb.Payload, len(payloads))
	for i, payload := range payloads {
		if string(payload.GetMetadata()[converter.MetadataEncoding]) != CodecEncoding {
			decoded[i] = payload
			continue
		}
		id := string(payload.GetMetadata()[metadataCodecKey])
		aead, ok := c.ciphers[id]
		if !ok {
			return nil, fmt.Errorf("decrypting a payload: %w: it needs %q", ErrUnknownCodecKey, id)
		}
		plain, err := aead.Open(nil, nil, payload.GetData(), associated(id))
		if err != nil {
			return nil, fmt.Errorf("decrypting a payload with key %s: %w: %w", id, ErrDamaged, err)
		}
		decoded[i] = &commonpb.Payload{}
		if err := proto.Unmarshal(plain, decoded[i]); err != nil {
			return nil, fmt.Errorf("decrypting a payload with key %s: %w: it holds no payload", id, ErrDamaged)
		}
	}
	return decoded, nil
}

// DataConverter is the SDK's default converter behind the codec. Clients, workers and replayers must all have it.
func DataConverter(c converter.PayloadCodec) converter.DataConverter {
	return converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)
}

// FailureConverter makes failures carry their messages and stack traces as payloads of dc, so that they are encrypted
// too. Failure types stay readable, since retry policies name them: no type may hold a secret.
func FailureConverter(dc converter.DataConverter) converter.FailureConverter {
	return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{
		DataConverter:          dc,
		EncodeCommonAttributes: true,
	})
}
