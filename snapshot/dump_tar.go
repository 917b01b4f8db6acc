package snapshot

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// paxXattr is the prefix under which star, GNU tar, bsdtar and Go keep extended attributes in PAX headers.
const paxXattr = "SCHILY.xattr."

// encodeXattrName escapes what a PAX keyword cannot hold, in GNU tar's way.
func encodeXattrName(name string) string {
	return strings.NewReplacer("%", "%25", "=", "%3D").Replace(name)
}

func decodeXattrName(name string) string {
	return strings.NewReplacer("%25", "%", "%3D", "=").Replace(name)
}

// tarHeader makes the PAX header of one entry. path is relative; hardLink, unless empty, is the path of an entry
// already written that is the same file. It returns nil for what an archive cannot hold (a socket).
func tarHeader(path string, n *node, linkTarget string, size int64, hardLink string) (*tar.Header, error) {
	header := &tar.Header{
		Format: tar.FormatPAX, Name: path,
		Mode: int64(chmodBits(n.Mode)), Uid: int(n.UID), Gid: int(n.GID), Uname: n.User, Gname: n.Group,
		ModTime: n.ModTime, PAXRecords: map[string]string{},
	}
	switch n.Type {
	case "file":
		header.Typeflag, header.Size = tar.TypeReg, size
	case "dir":
		header.Typeflag, header.Name = tar.TypeDir, path+"/"
	case "symlink":
		header.Typeflag, header.Linkname = tar.TypeSymlink, linkTarget
	case "dev", "chardev":
		header.Typeflag = tar.TypeBlock
		if n.Type == "chardev" {
			header.Typeflag = tar.TypeChar
		}
		header.Devmajor, header.Devminor = int64(unix.Major(n.Device)), int64(unix.Minor(n.Device))
	case "fifo":
		header.Typeflag = tar.TypeFifo
	default:
		return nil, nil
	}
	if hardLink != "" {
		header.Typeflag, header.Linkname, header.Size = tar.TypeLink, hardLink, 0
		header.Devmajor, header.Devminor = 0, 0
	}
	if !utf8.ValidString(header.Name) || !utf8.ValidString(header.Linkname) {
		header.PAXRecords["hdrcharset"] = "BINARY" // the names are bytes, not UTF-8 (POSIX.1-2008, pax)
	}
	if !utf8.ValidString(n.User) || strings.IndexByte(n.User, 0) >= 0 {
		header.Uname = ""
	}
	if !utf8.ValidString(n.Group) || strings.IndexByte(n.Group, 0) >= 0 {
		header.Gname = ""
	}
	if hardLink == "" {
		for _, attribute := range n.ExtendedAttributes {
			if name := encodeXattrName(attribute.Name); name != "" && strings.IndexByte(name, 0) < 0 {
				header.PAXRecords[paxXattr+name] = string(attribute.Value)
			}
		}
	}
	return header, nil
}

// goMode turns st_mode into Go's mode.
func goMode(mode uint32) fs.FileMode {
	result := fs.FileMode(mode & 0o777)
	for _, bit := range []struct {
		kernel uint32
		mode   fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if mode&bit.kernel != 0 {
			result |= bit.mode
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		result |= fs.ModeDir
	case unix.S_IFLNK:
		result |= fs.ModeSymlink
	case unix.S_IFBLK:
		result |= fs.ModeDevice
	case unix.S_IFCHR:
		result |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		result |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		result |= fs.ModeSocket
	}
	return result
}

// tarError says that the archive, which cannot be mended once it has begun, could not be written.
func tarError(path string, err error) error {
	return fmt.Errorf("writing %s to the archive: %w", quotePath(path), err)
}
