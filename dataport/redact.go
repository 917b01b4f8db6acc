package dataport

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// minSecret is the shortest environment value that is blotted out: shorter ones ("1", "yes") are no secrets, and blotting
// them out would make messages unreadable.
const minSecret = 4

// maxMessage bounds an error message on the wire and in the log.
const maxMessage = 4 << 10

// redactor blots out secrets that a host's error quotes against the rules.
type redactor struct{ secrets []string }

func newRedactor(token string, request ExecRequest) redactor {
	secrets := []string{token}
	for _, value := range request.Environment {
		if len(value) >= minSecret {
			secrets = append(secrets, value)
		}
	}
	// The longest first: one secret may be part of another.
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return redactor{secrets: secrets}
}

func (r redactor) clean(message string) string {
	for _, secret := range r.secrets {
		if secret != "" {
			message = strings.ReplaceAll(message, secret, "[secret]")
		}
	}
	return printable(message)
}

// printable makes a message from elsewhere harmless to a terminal and bounds it.
func printable(message string) string {
	if len(message) > maxMessage {
		cut := maxMessage
		for cut > 0 && !utf8.RuneStart(message[cut]) {
			cut--
		}
		message = message[:cut] + " …"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(message, "?"))
}
