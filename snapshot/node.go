package snapshot

import (
	"os"
	"time"
)

// node is one entry of a directory as a tree blob stores it. The order of the fields is the order in which restic's
// encoding/json writes them; see section "Trees" of docs/snapshot-format.md.
//
// In memory Name and LinkTarget are the exact bytes that the file system has, UTF-8 or not: encodeTree and decodeTree
// quote and unquote. A decoded node's name is a single path element ("", ".", "..", slashes and NULs are refused), a
// dir has a Subtree, a file a non-nil Content.
type node struct {
	Name               string              `json:"name"` // on the wire: strconv.Quote without the outer quotes
	Type               string              `json:"type"` // file dir symlink dev chardev fifo socket
	Mode               os.FileMode         `json:"mode,omitempty"`
	ModTime            time.Time           `json:"mtime,omitempty"`
	AccessTime         time.Time           `json:"atime,omitempty"`
	ChangeTime         time.Time           `json:"ctime,omitempty"`
	UID                uint32              `json:"uid"`
	GID                uint32              `json:"gid"`
	User               string              `json:"user,omitempty"`
	Group              string              `json:"group,omitempty"`
	Inode              uint64              `json:"inode,omitempty"`     // only when Links > 1
	DeviceID           uint64              `json:"device_id,omitempty"` // only when Links > 1
	Size               uint64              `json:"size,omitempty"`
	Links              uint64              `json:"links,omitempty"`
	LinkTarget         string              `json:"linktarget,omitempty"`
	LinkTargetRaw      []byte              `json:"linktarget_raw,omitempty"` // on the wire only, when LinkTarget is not UTF-8
	ExtendedAttributes []extendedAttribute `json:"extended_attributes,omitempty"`
	Device             uint64              `json:"device,omitempty"` // st_rdev
	Content            []blobID            `json:"content"`
	Subtree            *blobID             `json:"subtree,omitempty"`
	Error              string              `json:"error,omitempty"`
}

type extendedAttribute struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}
