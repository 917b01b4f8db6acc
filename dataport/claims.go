package dataport

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Verb is what a token permits. One token permits one verb.
type Verb string

// The verbs.
const (
	VerbExec     Verb = "exec"     // run one command in the instance
	VerbShell    Verb = "shell"    // an interactive command; an empty command means the workspace's shell
	VerbLogs     Verb = "logs"     // read the main process's output
	VerbDownload Verb = "download" // read content, as a tar stream
	VerbUpload   Verb = "upload"   // put content in place, from a tar stream
)

// Verbs returns all verbs, in a fixed order.
func Verbs() []Verb {
	return []Verb{VerbExec, VerbShell, VerbLogs, VerbDownload, VerbUpload}
}

// changes says whether a verb can change content or state: such a token is good for one use only.
func (v Verb) changes() bool { return v == VerbExec || v == VerbShell || v == VerbUpload }

const (
	// MaxLifetime is the longest time that a token may live. Longer ones are refused even when the signature is right,
	// so that a mistake of the control side cannot make a standing permission.
	MaxLifetime = time.Hour

	// ClockSkew is how far the control side's and a node's clocks may differ before good tokens are refused.
	ClockSkew = 30 * time.Second

	// maxTokenBytes bounds the text of a token: it travels in a header.
	maxTokenBytes = 16 << 10

	tokenPrefix = "hf1."
	// signContext separates these signatures from any other use of the same key.
	signContext = "holdfast data port token v1\x00"
)

// Claims is what a token says. The control side fills it; a server believes it only from Verify.
type Claims struct {
	WorkspaceID string `json:"ws"`             // the immutable workspace id
	Name        string `json:"name,omitempty"` // the workspace's name, for messages and the audit line only
	Token       uint64 `json:"tok,omitempty"`  // the instance's fencing token; 0 when the verb needs no instance
	Node        string `json:"node"`           // the only node that may honour it
	Volume      string `json:"vol,omitempty"`  // the id of the shared volume that the content is on; empty: the node's own disk
	Verb        Verb   `json:"verb"`

	// Snapshot and Path narrow a download: which snapshot ("" lets the node choose the best that it has), and which
	// path inside the content ("" is all of it). A request cannot go beyond them.
	Snapshot string `json:"snap,omitempty"`
	Path     string `json:"path,omitempty"`

	// Sealed is a repository's password sealed to the node (keys.SealTo), for downloads that must read from the
	// object store. Neither the client nor the control worker's logs can read it.
	Sealed []byte `json:"sealed,omitempty"`

	Subject string    `json:"sub"`   // who asked, for the audit line
	Expires time.Time `json:"exp"`   // at most MaxLifetime ahead
	Nonce   string    `json:"nonce"` // unique to this token; Sign makes one when it is empty
}

// The ways in which a token is refused. All of them wrap ErrUnauthorized, except ErrExpired and ErrForbidden, which are
// told apart because their mends differ: ask for a new token; ask for the right one.
var (
	errMalformedToken = fmt.Errorf("%w: the token is malformed", ErrUnauthorized)
	errBadSignature   = fmt.Errorf("%w: the token was not signed by this control side", ErrUnauthorized)
)

// Sign makes the token's text from the claims. key is the control side's ed25519 key. An empty Nonce is filled in;
// claims that no server would accept (no workspace, node, subject, verb, or no expiry) are refused here.
func Sign(key crypto.Signer, claims Claims) (string, error) {
	if _, ok := key.Public().(ed25519.PublicKey); !ok {
		return "", errors.New("signing a data port token: the key is not an ed25519 key")
	}
	if claims.Nonce == "" {
		claims.Nonce = rand.Text()
	}
	claims.Expires = claims.Expires.UTC()
	if err := claims.complete(); err != nil {
		return "", fmt.Errorf("signing a data port token: %w", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("signing a data port token: %w", err)
	}
	signature, err := key.Sign(rand.Reader, append([]byte(signContext), body...), crypto.Hash(0))
	if err != nil {
		return "", fmt.Errorf("signing a data port token: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := tokenPrefix + encode(body) + "." + encode(signature)
	if len(text) > maxTokenBytes {
		return "", fmt.Errorf("signing a data port token: %d bytes are more than the limit of %d", len(text), maxTokenBytes)
	}
	return text, nil
}

// Verify checks a token's signature and time and returns what it says. The error wraps ErrUnauthorized or ErrExpired
// and never quotes the token. The caller still has to ask Permits.
func Verify(pub ed25519.PublicKey, text string, now time.Time) (Claims, error) {
	if len(pub) != ed25519.PublicKeySize {
		return Claims{}, fmt.Errorf("%w: no verification key", ErrUnauthorized)
	}
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(text) > maxTokenBytes {
		return Claims{}, errMalformedToken
	}
	bodyText, signatureText, ok := strings.Cut(rest, ".")
	if !ok {
		return Claims{}, errMalformedToken
	}
	decode := base64.RawURLEncoding.Strict()
	body, err := decode.DecodeString(bodyText)
	if err != nil {
		return Claims{}, errMalformedToken
	}
	signature, err := decode.DecodeString(signatureText)
	if err != nil {
		return Claims{}, errMalformedToken
	}
	if !ed25519.Verify(pub, append([]byte(signContext), body...), signature) {
		return Claims{}, errBadSignature
	}
	var claims Claims
	if err := json.Unmarshal(body, &claims); err != nil {
		return Claims{}, errMalformedToken
	}
	if err := claims.complete(); err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	if now.After(claims.Expires.Add(ClockSkew)) {
		return Claims{}, fmt.Errorf("%w: at %s, it is %s now", ErrExpired,
			claims.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if claims.Expires.After(now.Add(MaxLifetime + ClockSkew)) {
		return Claims{}, fmt.Errorf("%w: the token lives longer than %s", ErrUnauthorized, MaxLifetime)
	}
	return claims, nil
}

// Permits checks that the claims are for this node and this verb; the error wraps ErrForbidden.
func (c Claims) Permits(node string, verb Verb) error {
	switch {
	case c.Node != node:
		return fmt.Errorf("%w: the token is for node %q, this is node %q", ErrForbidden, c.Node, node)
	case c.Verb != verb:
		return fmt.Errorf("%w: the token permits %q, not %q", ErrForbidden, c.Verb, verb)
	}
	return nil
}

func (c Claims) complete() error {
	switch {
	case c.WorkspaceID == "":
		return errors.New("the token names no workspace")
	case c.Node == "":
		return errors.New("the token names no node")
	case c.Subject == "":
		return errors.New("the token names no subject")
	case c.Nonce == "":
		return errors.New("the token has no nonce")
	case c.Expires.IsZero():
		return errors.New("the token has no expiry")
	case !slices.Contains(Verbs(), c.Verb):
		return fmt.Errorf("the token has an unknown verb %q", c.Verb)
	}
	return nil
}
