package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// demoContent is the directory that the workspaces begin with.
func demoContent(dir string) (string, error) {
	if dir == "" {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return "", usage("the default content is the source tree of the installed Go, and `go env GOROOT` does not answer: %w", err).
				withMend("name a directory with --content DIR")
		}
		dir = filepath.Join(strings.TrimSpace(string(root)), "src")
	}
	dir, err := readableDirectory("--content", dir)
	if err != nil {
		return "", err
	}
	// The installed tree is often a link, and what is to be copied is what it leads to.
	return filepath.EvalSymlinks(dir)
}

// workScript is a day's work: new, changed, deleted and renamed files, links, modes, times, a sparse file, odd names.
const workScript = `set -e
mkdir -p notes/drafts empty "a name with spaces"
echo "uncommitted thoughts of $1" > notes/drafts/idea.md
echo "remember the milk" > "a name with spaces/todo.txt"
first=$(find . -maxdepth 2 -type f -name '*.*' | sort | head -n 1)
echo "# changed by $1" >> "$first"
second=$(find . -maxdepth 3 -type f -size -40k | sort | sed -n 20p)
if [ -n "$second" ]; then rm -f "$second"; fi
third=$(find . -maxdepth 3 -type f -size -40k | sort | sed -n 30p)
if [ -n "$third" ]; then mv "$third" "$third.renamed"; fi
ln -sf drafts/idea.md notes/newest
ln -sf /nowhere/at/all notes/dangling
ln -f notes/drafts/idea.md notes/hardlink.md
echo '#!/bin/sh' > notes/run.sh
chmod 750 notes/run.sh
chmod 700 empty
touch -d '2021-02-03 04:05:06.789012345' notes/drafts/idea.md || touch notes/drafts/idea.md
truncate -s 64M notes/sparse.img || dd if=/dev/zero of=notes/sparse.img bs=1 count=0 seek=67108864
head -c "$2" /dev/urandom > dataset.bin
sync
`

// manifest is what every entry of a tree is, by path.
type manifest map[string]entry

type entry struct {
	kind     string
	mode     fs.FileMode
	size     int64
	modified int64 // nanoseconds
	uid, gid uint32
	sum      string // SHA-256 of a file's content
	target   string // of a link
	linked   string // the first path, in order, that is the same file
}

// takeManifest reads a whole tree.
func takeManifest(root string) (manifest, error) {
	found := manifest{}
	first := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(path string, dirEntry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := dirEntry.Info()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("this system gives no stat records")
		}
		e := entry{mode: info.Mode(), modified: info.ModTime().UnixNano(), uid: stat.Uid, gid: stat.Gid, kind: info.Mode().Type().String()}
		switch {
		case info.Mode().IsRegular():
			e.size = info.Size()
			if stat.Nlink > 1 {
				id := [2]uint64{uint64(stat.Dev), stat.Ino}
				if first[id] == "" {
					first[id] = name
				}
				e.linked = first[id]
			}
			e.sum, err = sumOf(path)
		case info.Mode()&fs.ModeSymlink != 0:
			e.target, err = os.Readlink(path)
		}
		found[name] = e
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", root, err)
	}
	return found, nil
}

func sumOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func (m manifest) files() (files, bytes int64) {
	for _, e := range m {
		if e.mode.IsRegular() {
			files++
			bytes += e.size
		}
	}
	return files, bytes
}

// compare lists what differs, in order of the paths.
func (m manifest) compare(other manifest) []string {
	var differences []string
	for path, was := range m {
		is, ok := other[path]
		switch {
		case !ok:
			differences = append(differences, path+" is gone")
		case was != is:
			differences = append(differences, fmt.Sprintf("%s was %s and is %s", path, was, is))
		}
	}
	for path := range other {
		if _, ok := m[path]; !ok {
			differences = append(differences, path+" was not there before")
		}
	}
	slices.Sort(differences)
	return differences
}

func (e entry) String() string {
	return fmt.Sprintf("{%s %d bytes, modified %d, owner %d:%d, content %.8s, target %q, linked %q}", e.mode, e.size, e.modified, e.uid, e.gid, e.sum, e.target, e.linked)
}
