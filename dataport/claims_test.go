package dataport

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testClaims(now time.Time) Claims {
	return Claims{WorkspaceID: "ws-1", Name: "api", Token: 3, Node: "node-a", Verb: VerbDownload, Snapshot: "abc", Path: "src",
		Sealed: []byte("sealed"), Subject: "alice", Expires: now.Add(5 * time.Minute).UTC().Truncate(time.Second), Nonce: "n-1"}
}

func TestTokenRoundTrip(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	now := time.Now()
	claims := testClaims(now)
	text, err := Sign(key, claims)
	require.NoError(t, err)
	got, err := Verify(pub, text, now)
	require.NoError(t, err)
	require.Equal(t, claims, got)

	claims.Nonce = ""
	first, err := Sign(key, claims)
	require.NoError(t, err)
	second, err := Sign(key, claims)
	require.NoError(t, err)
	require.NotEqual(t, first, second, "every token has a nonce of its own")
}

func TestTokenTimes(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	now := time.Now().UTC().Truncate(time.Second)
	for name, test := range map[string]struct {
		lifetime time.Duration
		after    time.Duration
		want     error
	}{
		"fresh":                   {5 * time.Minute, 0, nil},
		"at its end":              {5 * time.Minute, 5 * time.Minute, nil},
		"within the skew":         {5 * time.Minute, 5*time.Minute + ClockSkew, nil},
		"expired":                 {5 * time.Minute, 5*time.Minute + ClockSkew + time.Second, ErrExpired},
		"long expired":            {5 * time.Minute, 24 * time.Hour, ErrExpired},
		"signed for too long":     {MaxLifetime + ClockSkew + time.Minute, 0, ErrUnauthorized},
		"the longest permissible": {MaxLifetime, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			claims := testClaims(now)
			claims.Expires = now.Add(test.lifetime)
			text, err := Sign(key, claims)
			require.NoError(t, err)
			_, err = Verify(pub, text, now.Add(test.after))
			require.ErrorIs(t, err, test.want)
		})
	}
}

func TestTokenForgeries(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)
	now := time.Now()
	good, err := Sign(key, testClaims(now))
	require.NoError(t, err)
	foreignText, err := Sign(foreign, testClaims(now))
	require.NoError(t, err)
	parts := strings.Split(good, ".")

	raised := testClaims(now)
	raised.Verb = VerbExec
	body, _ := json.Marshal(raised)
	plainSignature := ed25519.Sign(key, body) // by the right key, but not as a token
	encode := base64.RawURLEncoding.EncodeToString

	for name, text := range map[string]string{
		"empty":             "",
		"foreign key":       foreignText,
		"other body":        tokenPrefix + encode(body) + "." + parts[2],
		"without context":   tokenPrefix + encode(body) + "." + encode(plainSignature),
		"no signature":      tokenPrefix + parts[1] + ".",
		"one part":          tokenPrefix + parts[1],
		"no prefix":         parts[1] + "." + parts[2],
		"trailing bits":     good + "A",
		"a second one":      good + "." + good,
		"too large":         tokenPrefix + strings.Repeat("A", maxTokenBytes) + "." + parts[2],
		"padding":           good + "=",
		"foreign signature": tokenPrefix + parts[1] + "." + strings.Split(foreignText, ".")[2],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(pub, text, now)
			require.ErrorIs(t, err, ErrUnauthorized)
			if len(text) > 20 {
				require.NotContains(t, err.Error(), text[4:20])
			}
		})
	}
	// Any single changed character is noticed.
	for i := range good {
		changed := []byte(good)
		if changed[i]++; changed[i] == good[i] {
			continue
		}
		if _, err := Verify(pub, string(changed), now); err == nil {
			t.Fatalf("character %d was changed and the token still passes", i)
		}
	}
	_, err = Verify(nil, good, now)
	require.ErrorIs(t, err, ErrUnauthorized)
}

func TestSignRefusesIncompleteClaims(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	for name, spoil := range map[string]func(*Claims){
		"no workspace": func(c *Claims) { c.WorkspaceID = "" },
		"no node":      func(c *Claims) { c.Node = "" },
		"no subject":   func(c *Claims) { c.Subject = "" },
		"no expiry":    func(c *Claims) { c.Expires = time.Time{} },
		"no verb":      func(c *Claims) { c.Verb = "" },
		"unknown verb": func(c *Claims) { c.Verb = "root" },
		"too large":    func(c *Claims) { c.Sealed = make([]byte, maxTokenBytes) },
	} {
		t.Run(name, func(t *testing.T) {
			claims := testClaims(time.Now())
			spoil(&claims)
			_, err := Sign(key, claims)
			require.Error(t, err)
		})
	}
}

func TestPermits(t *testing.T) {
	claims := testClaims(time.Now())
	require.NoError(t, claims.Permits("node-a", VerbDownload))
	require.ErrorIs(t, claims.Permits("node-b", VerbDownload), ErrForbidden)
	for _, verb := range Verbs() {
		if verb != VerbDownload {
			require.ErrorIs(t, claims.Permits("node-a", verb), ErrForbidden, verb)
		}
	}
}

func TestNarrow(t *testing.T) {
	for _, test := range []struct {
		permitted, asked, want string
		err                    error
	}{
		{"", "", "", nil},
		{"", "a/b", "a/b", nil},
		{"", "./a//b/", "a/b", nil},
		{"src", "", "src", nil},
		{"src", "src", "src", nil},
		{"src/", "src/main.go", "src/main.go", nil},
		{"src", "srcs", "", ErrForbidden},
		{"src", "other", "", ErrForbidden},
		{"src", ".", "src", nil},
		{"src", "src/../etc", "", ErrInvalid},
		{"", "..", "", ErrInvalid},
		{"", "/etc/passwd", "", ErrInvalid},
		{"", "a\x00b", "", ErrInvalid},
		{"", "a..b", "a..b", nil},
	} {
		got, err := narrow(test.permitted, test.asked)
		require.ErrorIs(t, err, test.err, "%q in %q", test.asked, test.permitted)
		require.Equal(t, test.want, got)
	}
}

func FuzzVerify(f *testing.F) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	now := time.Now()
	good, _ := Sign(key, testClaims(now))
	f.Add(good)
	f.Add("hf1..")
	f.Add("hf1.e30.e30")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := Verify(pub, text, now); err == nil && text != good {
			t.Fatalf("accepted %q", text)
		}
	})
}
