package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptorXattrs reads the extended attributes (ACLs are among them) of an open file or directory, sorted by name; a
// file system without them has none.
func descriptorXattrs(fd int) ([]extendedAttribute, error) {
	list, err := readSized(func(buffer []byte) (int, error) { return unix.Flistxattr(fd, buffer) })
	if errors.Is(err, unix.ENOTSUP) || (err == nil && len(list) == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing attributes: %w", err)
	}
	var attributes []extendedAttribute
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := readSized(func(buffer []byte) (int, error) { return unix.Fgetxattr(fd, name, buffer) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return attributes, fmt.Errorf("attribute %q: %w", name, err)
		}
		attributes = append(attributes, extendedAttribute{Name: name, Value: value})
	}
	return sortXattrs(attributes, nil)
}

// sortXattrs brings attributes into the form that trees hold: sorted, since file systems list them in any order, and an
// empty value not null.
func sortXattrs(attributes []extendedAttribute, err error) ([]extendedAttribute, error) {
	for i := range attributes {
		if attributes[i].Value == nil {
			attributes[i].Value = []byte{}
		}
	}
	slices.SortFunc(attributes, func(a, b extendedAttribute) int { return strings.Compare(a.Name, b.Name) })
	return attributes, err
}
