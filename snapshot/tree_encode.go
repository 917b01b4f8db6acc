package snapshot

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// A directory is encoded by hand, because encoding/json takes as long for it as reading its files. The bytes are those
// of encoding/json, as restic writes them: FuzzTreesAreThoseOfEncodingJSON compares.

// encodeTree writes a tree. The nodes must be sorted by name already; a wrong order is a defect and an error.
func encodeTree(nodes []node) ([]byte, error) {
	out := make([]byte, 0, treeSize(nodes))
	out = append(out, `{"nodes":[`...)
	for i := range nodes {
		if i > 0 {
			if nodes[i-1].Name >= nodes[i].Name {
				return nil, fmt.Errorf("encoding a tree: %q does not come before %q", nodes[i-1].Name, nodes[i].Name)
			}
			out = append(out, ',')
		}
		var err error
		if out, err = appendNode(out, &nodes[i]); err != nil {
			return nil, err
		}
		if len(out) > maxTreeSize-16 {
			return nil, fmt.Errorf("a directory has too many entries (%d): %w", len(nodes), ErrLimitExceeded)
		}
	}
	return append(out, "]}\n"...), nil
}

// treeSize is about how many bytes the nodes will take, and rarely too few.
func treeSize(nodes []node) int {
	size := 64
	for i := range nodes {
		size += 384 + len(nodes[i].Name) + len(nodes[i].LinkTarget) + len(nodes[i].Content)*(2*len(blobID{})+3)
	}
	return min(size, maxTreeSize)
}

func appendNode(out []byte, n *node) ([]byte, error) {
	out = append(out, `{"name":`...)
	out = appendName(out, n.Name)
	out = append(out, `,"type":`...)
	out = appendString(out, n.Type)
	out = appendCount(out, `,"mode":`, uint64(n.Mode))
	var err error
	for _, t := range []struct {
		field string
		time  time.Time
	}{{`,"mtime":"`, n.ModTime}, {`,"atime":"`, n.AccessTime}, {`,"ctime":"`, n.ChangeTime}} {
		out = append(out, t.field...)
		// As MarshalJSON does, this refuses what RFC 3339 cannot express.
		if out, err = jsonTime(t.time).AppendText(out); err != nil {
			return nil, fmt.Errorf("encoding the node of %q: %w", n.Name, err)
		}
		out = append(out, '"')
	}
	out = append(out, `,"uid":`...)
	out = strconv.AppendUint(out, uint64(n.UID), 10)
	out = append(out, `,"gid":`...)
	out = strconv.AppendUint(out, uint64(n.GID), 10)
	out = appendText(out, `,"user":`, n.User)
	out = appendText(out, `,"group":`, n.Group)
	out = appendCount(out, `,"inode":`, n.Inode)
	out = appendCount(out, `,"device_id":`, n.DeviceID)
	out = appendCount(out, `,"size":`, n.Size)
	out = appendCount(out, `,"links":`, n.Links)
	out = appendText(out, `,"linktarget":`, n.LinkTarget)
	if !utf8.ValidString(n.LinkTarget) {
		out = append(out, `,"linktarget_raw":`...)
		out = appendBase64(out, []byte(n.LinkTarget))
	}
	out = appendAttributes(out, n.ExtendedAttributes)
	out = appendCount(out, `,"device":`, n.Device)
	out = appendContent(out, n.Content)
	if n.Subtree != nil {
		out = append(out, `,"subtree":`...)
		out = appendID(out, *n.Subtree)
	}
	out = appendText(out, `,"error":`, n.Error)
	return append(out, '}'), nil
}

// appendCount and appendText leave out what is empty.
func appendCount(out []byte, field string, n uint64) []byte {
	if n == 0 {
		return out
	}
	return strconv.AppendUint(append(out, field...), n, 10)
}

func appendText(out []byte, field, text string) []byte {
	if text == "" {
		return out
	}
	return appendString(append(out, field...), text)
}

func appendAttributes(out []byte, attributes []extendedAttribute) []byte {
	for i, a := range attributes {
		if i == 0 {
			out = append(out, `,"extended_attributes":[`...)
		} else {
			out = append(out, ',')
		}
		out = append(out, `{"name":`...)
		out = appendString(out, a.Name)
		out = append(out, `,"value":`...)
		out = append(appendBase64(out, a.Value), '}')
	}
	if len(attributes) > 0 {
		out = append(out, ']')
	}
	return out
}

func appendContent(out []byte, content []blobID) []byte {
	out = append(out, `,"content":`...)
	if content == nil {
		return append(out, "null"...)
	}
	out = append(out, '[')
	for i := range content {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendID(out, content[i])
	}
	return append(out, ']')
}

func appendID(out []byte, id blobID) []byte {
	out = append(out, '"')
	out = hex.AppendEncode(out, id[:])
	return append(out, '"')
}

func appendBase64(out, data []byte) []byte {
	if data == nil {
		return append(out, "null"...)
	}
	out = append(out, '"')
	out = base64.StdEncoding.AppendEncode(out, data)
	return append(out, '"')
}

// appendName writes a name as restic does: as Go quotes it, but for the quotes, and that as JSON.
func appendName(out []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted := strconv.Quote(name)
			return appendString(out, quoted[1:len(quoted)-1])
		}
	}
	return appendString(out, name)
}

// appendString writes a string as encoding/json does when it escapes for HTML.
func appendString(out []byte, text string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	start := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			out = append(out, text[start:i]...)
			switch c {
			case '"', '\\':
				out = append(out, '\\', c)
			case '\b':
				out = append(out, '\\', 'b')
			case '\f':
				out = append(out, '\\', 'f')
			case '\n':
				out = append(out, '\\', 'n')
			case '\r':
				out = append(out, '\\', 'r')
			case '\t':
				out = append(out, '\\', 't')
			default:
				out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			out = append(out, text[start:i]...)
			out = append(out, `\ufffd`...)
			start = i + size
		case r == '\u2028', r == '\u2029': // lines end there in JavaScript
			out = append(out, text[start:i]...)
			out = append(out, `\u202`...)
			out = append(out, digits[r&15])
			start = i + size
		}
		i += size
	}
	out = append(out, text[start:]...)
	return append(out, '"')
}
