package snapshot

import (
	"errors"
	"fmt"
	"strings"
)

// ignorePattern is one rule of a .holdfastignore file or of BackupOptions.Excludes, with the meaning that gitignore(5)
// gives it. git's own matcher is not the model but the judge: the two are compared in TestPatternsAreGits.
type ignorePattern struct {
	text     string // as it was written
	includes bool   // it began with "!"
	dirOnly  bool   // it ended with "/"
	// whole: it is compared with the path below the directory of its file, and not with the last element alone.
	whole  bool
	tokens []ignoreToken
	// Of the two commonest forms tokens is empty: a plain name or path, and "*" with a plain end.
	literal bool
	suffix  bool
	plain   string
}

// ignoreToken matches some bytes of a path. Bytes and not characters, as in git.
type ignoreToken struct {
	kind  tokenKind
	plain byte
	set   [256 / 64]uint64 // of tokenSet
}

type tokenKind byte

const (
	tokenPlain tokenKind = iota // one byte
	tokenSet                    // one byte of a set
	tokenStar                   // any bytes but a slash
	tokenAll                    // any bytes
	// A "**/" is two tokens: the first stands for no directory or leads to the second, which takes in one directory
	// after another.
	tokenDirs
	tokenWithin
)

var errPattern = errors.New("not a pattern as in gitignore")

// parseIgnoreFile reads the lines of an ignore file. One line that is no pattern makes the whole file void: a rule that
// somebody meant and got wrong must not let the others decide what is left out.
func parseIgnoreFile(data string) ([]ignorePattern, error) {
	if at := strings.IndexByte(data, 0); at >= 0 {
		return nil, fmt.Errorf("line %d has a zero byte: %w", 1+strings.Count(data[:at], "\n"), errPattern)
	}
	var patterns []ignorePattern
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(data, "\ufeff")) {
		number++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if strings.HasPrefix(line, "#") {
			continue
		}
		pattern, err := parseIgnorePattern(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if pattern != nil {
			patterns = append(patterns, *pattern)
		}
	}
	return patterns, nil
}

// parseIgnorePattern reads one line that is no comment; nil for one that can match nothing, such as an empty one.
func parseIgnorePattern(line string) (*ignorePattern, error) {
	line = trimTrailingSpaces(line)
	p := &ignorePattern{text: line}
	rest, negated := strings.CutPrefix(line, "!")
	p.includes = negated
	rest, p.dirOnly = strings.CutSuffix(rest, "/")
	p.whole = strings.Contains(rest, "/")
	rest = strings.TrimPrefix(rest, "/")
	if rest == "" {
		return nil, nil
	}
	if err := p.compile(rest); err != nil {
		return nil, fmt.Errorf("%q is %w: %w", line, errPattern, err)
	}
	return p, nil
}

// trimTrailingSpaces keeps a space that a backslash precedes.
func trimTrailingSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case ' ':
			continue
		case '\\':
			i++
		}
		end = min(i+1, len(line))
	}
	return line[:end]
}

func (p *ignorePattern) compile(text string) error {
	const special = `*?[\`
	if !strings.ContainsAny(text, special) {
		p.literal, p.plain = true, text
		return nil
	}
	if !p.whole && text[0] == '*' && !strings.ContainsAny(text[1:], special) {
		p.suffix, p.plain = true, text[1:]
		return nil
	}
	for i := 0; i < len(text); {
		token := ignoreToken{kind: tokenPlain, plain: text[i]}
		switch text[i] {
		case '*':
			stars := len(text[i:]) - len(strings.TrimLeft(text[i:], "*"))
			alone := stars > 1 && (i == 0 || text[i-1] == '/')
			i += stars
			switch {
			case alone && i == len(text), alone && strings.HasPrefix(text[i:], `\/`):
				token.kind = tokenAll
			case alone && text[i] == '/':
				i++
				p.tokens = append(p.tokens, ignoreToken{kind: tokenDirs})
				token.kind = tokenWithin
			default:
				token.kind = tokenStar
			}
		case '?':
			token = anyButSlash()
			i++
		case '[':
			set, length, err := parseSet(text[i:])
			if err != nil {
				return err
			}
			token = set
			i += length
		case '\\':
			i++
			if i == len(text) {
				return errors.New("it ends with a backslash")
			}
			token.plain = text[i]
			i++
		default:
			i++
		}
		p.tokens = append(p.tokens, token)
	}
	return nil
}

func anyButSlash() ignoreToken {
	token := ignoreToken{kind: tokenSet}
	token.add(0, 255)
	token.drop('/')
	return token
}

func (t *ignoreToken) add(from, to byte) {
	for c := int(from); c <= int(to); c++ {
		t.set[c/64] |= 1 << (c % 64)
	}
}

func (t *ignoreToken) drop(c byte) { t.set[c/64] &^= 1 << (c % 64) }

func (t *ignoreToken) has(c byte) bool { return t.set[c/64]>>(c%64)&1 != 0 }

// parseSet reads "[…]" at the beginning of text and returns how long it is.
func parseSet(text string) (ignoreToken, int, error) {
	unclosed := errors.New("a [ is not closed")
	token := ignoreToken{kind: tokenSet}
	i := 1
	negated := i < len(text) && (text[i] == '!' || text[i] == '^')
	if negated {
		i++
	}
	previous := byte(0) // what a range may begin with
	for first := true; ; first = false {
		if i >= len(text) {
			return token, 0, unclosed
		}
		c := text[i]
		switch {
		case c == ']' && !first:
			if negated {
				for n := range token.set {
					token.set[n] = ^token.set[n]
				}
			}
			token.drop('/') // a set never matches it
			return token, i + 1, nil
		case c == '-' && previous != 0 && i+1 < len(text) && text[i+1] != ']':
			i++
			if text[i] == '\\' {
				i++
			}
			if i >= len(text) {
				return token, 0, unclosed
			}
			token.add(previous, text[i])
			previous = 0
			i++
		case c == '[' && strings.HasPrefix(text[i:], "[:"):
			end := strings.IndexByte(text[i+2:], ']')
			if end < 0 {
				return token, 0, unclosed
			}
			name, isClass := strings.CutSuffix(text[i+2:i+2+end], ":")
			if !isClass {
				token.add('[', '[')
				previous = '['
				i++
				continue
			}
			class, known := byteClasses[name]
			if !known {
				return token, 0, fmt.Errorf("there is no class [:%s:]", name)
			}
			for c := range 128 { // git's classes are of ASCII
				if class(byte(c)) {
					token.add(byte(c), byte(c))
				}
			}
			previous = 0
			i += 2 + end + 1
		default:
			if c == '\\' {
				i++
				if i >= len(text) {
					return token, 0, unclosed
				}
				c = text[i]
			}
			token.add(c, c)
			previous = c
			i++
		}
	}
}

var byteClasses = map[string]func(byte) bool{
	"alnum": func(c byte) bool { return isLower(c) || isUpper(c) || isDigit(c) },
	"alpha": func(c byte) bool { return isLower(c) || isUpper(c) },
	"blank": func(c byte) bool { return c == ' ' || c == '\t' },
	"cntrl": func(c byte) bool { return c < ' ' || c == 127 },
	"digit": isDigit,
	"graph": isGraph,
	"lower": isLower,
	"print": func(c byte) bool { return c == ' ' || isGraph(c) },
	"punct": func(c byte) bool { return isGraph(c) && !isLower(c) && !isUpper(c) && !isDigit(c) },
	"space": func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' },
	"upper": isUpper,
	"xdigit": func(c byte) bool {
		return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	},
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isGraph(c byte) bool { return c > ' ' && c < 127 }

// match compares the pattern with an entry: name is its last element, below its path from the directory of the rule.
func (p *ignorePattern) match(name, below string, dir bool) bool {
	if p.dirOnly && !dir {
		return false
	}
	text := name
	if p.whole {
		text = below
	}
	switch {
	case p.literal:
		return text == p.plain
	case p.suffix:
		return strings.HasSuffix(text, p.plain)
	default:
		return matchTokens(p.tokens, text)
	}
}

// matchTokens follows all ways to match at once, so that its time is bounded by the product of the lengths, whatever
// the pattern: content may hold an ignore file that nobody looked at.
func matchTokens(tokens []ignoreToken, text string) bool {
	var room [2][65]bool
	now, next := room[0][:], room[1][:]
	if len(tokens) >= len(now) {
		now, next = make([]bool, len(tokens)+1), make([]bool, len(tokens)+1)
	}
	now, next = now[:len(tokens)+1], next[:len(tokens)+1]
	// reach marks a state, and those that are reached from it without a byte.
	reach := func(states []bool, at int) {
		for {
			states[at] = true
			if at == len(tokens) {
				return
			}
			switch tokens[at].kind {
			case tokenStar, tokenAll:
				at++
			case tokenDirs:
				states[at+1] = true
				at += 2
			default:
				return
			}
		}
	}
	reach(now, 0)
	for i := range len(text) {
		c, alive := text[i], false
		clear(next)
		for at := range tokens {
			if !now[at] {
				continue
			}
			token := &tokens[at]
			switch token.kind {
			case tokenPlain:
				if c == token.plain {
					reach(next, at+1)
					alive = true
				}
			case tokenSet:
				if token.has(c) {
					reach(next, at+1)
					alive = true
				}
			case tokenStar:
				if c != '/' {
					reach(next, at)
					alive = true
				}
			case tokenAll:
				reach(next, at)
				alive = true
			case tokenWithin:
				next[at], alive = true, true
				if c == '/' {
					reach(next, at+1)
				}
			}
		}
		if !alive {
			return false
		}
		now, next = next, now
	}
	return now[len(tokens)]
}
