package docker

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// hostImageFormat changes when the image is put together in another way from the same inputs.
const hostImageFormat = "1"

// hostPrograms are what a workspace's image is made of where no registry can be asked. Only sh is indispensable.
var hostPrograms = strings.Fields(`sh bash dash
arch base64 basename cat chgrp chmod chown cksum comm cp csplit cut date dd df dir dirname du echo env expand expr factor false
fold head hostname id install join kill link ln logname ls md5sum mkdir mkfifo mknod mktemp mv nice nl nohup nproc od paste pathchk
printenv printf ps pwd readlink realpath rm rmdir seq sha1sum sha256sum sha512sum shuf sleep sort split stat stdbuf stty sum sync
tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users wc which who whoami xargs yes [
find grep egrep fgrep sed awk gawk mawk tar gzip gunzip zcat bzip2 xz zstd cpio diff cmp patch file less more vi nano ed
git ssh scp curl wget make setsid free top pgrep pkill uptime watch flock getopt ip ss getfattr setfattr getfacl setfacl rsync
tput clear reset infocmp ldd getent busybox openssl`)

// optionalTrees are data that those programs need, where the machine has them.
var optionalTrees = []string{
	"/usr/lib/git-core", "/usr/libexec/git-core", "/usr/share/git-core/templates", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
	"/lib/terminfo", "/usr/share/ca-certificates", "/etc/nsswitch.conf",
}

// imageFile is an entry of the image.
type imageFile struct {
	path   string // absolute
	mode   fs.FileMode
	link   string // target of a symbolic link
	data   []byte // content, when it is ours
	source string // else the file that it is copied from
	size   int64
	sum    [sha256.Size]byte
}

// hostFiles collects the files of the host image.
type hostFiles struct {
	files  map[string]*imageFile
	finder *libraryFinder
}

// collectHostFiles finds the programs of this machine with everything that they need to run.
func collectHostFiles(path string) (*hostFiles, error) {
	h := &hostFiles{files: map[string]*imageFile{}, finder: newLibraryFinder()}
	// A machine whose /bin is a link to usr/bin gets an image with the same links.
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"} {
		if info, err := os.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(dir)
			if err != nil {
				return nil, fmt.Errorf("reading the link %s: %w", dir, err)
			}
			h.files[dir] = &imageFile{path: dir, mode: fs.ModeSymlink | 0o777, link: target}
		}
	}
	for _, name := range hostPrograms {
		if err := h.addProgram(name, path); err != nil {
			return nil, err
		}
	}
	if err := h.add("/bin/sh", true); err != nil {
		return nil, fmt.Errorf("this machine has no usable /bin/sh: %w", err)
	}
	for _, tree := range optionalTrees {
		if err := h.addTree(tree); err != nil {
			return nil, err
		}
	}
	h.addOwn()
	return h, nil
}

// addProgram adds the first of that name on the path. A program that cannot run without what is not here is left out.
func (h *hostFiles) addProgram(name, path string) error {
	for _, dir := range filepath.SplitList(path) {
		candidate := filepath.Join(dir, name)
		info, err := os.Stat(candidate)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		return ignoreUnusable(h.add(candidate, true))
	}
	return nil
}

func ignoreUnusable(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// add adds a file with the links on the way to it, and with the libraries of a program.
func (h *hostFiles) add(path string, program bool) error {
	for depth := 0; ; depth++ {
		if depth > 40 {
			return fmt.Errorf("too many links at %s", path)
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return fmt.Errorf("resolving %s: %w", path, err)
		}
		path = filepath.Join(dir, filepath.Base(path))
		if _, known := h.files[path]; known && h.files[path].link == "" {
			return nil
		}
		info, err := os.Lstat(path)
		if err != nil {
			return fmt.Errorf("looking at %s: %w", path, err)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return fmt.Errorf("reading the link %s: %w", path, err)
			}
			h.files[path] = &imageFile{path: path, mode: fs.ModeSymlink | 0o777, link: target}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(path), target)
			}
			path = target
			continue
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		return h.addFile(path, info, program)
	}
}

func (h *hostFiles) addFile(path string, info fs.FileInfo, program bool) error {
	// Read once now: a file that cannot be read must be known before the tar is begun. Set-uid bits are left out: without
	// new privileges they mean nothing inside.
	sum, size, err := sumFile(path)
	if err != nil {
		return err
	}
	file := &imageFile{path: path, mode: info.Mode().Perm(), source: path, size: size, sum: sum}
	if !program {
		h.files[path] = file
		return nil
	}
	libraries, err := h.finder.dependencies(path)
	if err != nil {
		// A library that is nowhere: the program does not run on this machine either.
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	h.files[path] = file
	for _, library := range libraries {
		if err := h.add(library, true); err != nil {
			delete(h.files, path)
			return err
		}
	}
	return nil
}

// addTree adds a directory, or a file, if it is there; what cannot be read is left out.
func (h *hostFiles) addTree(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreUnusable(err)
		}
		if entry.IsDir() {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreUnusable(err)
		}
		return ignoreUnusable(h.add(path, info.Mode()&0o111 != 0 && info.Mode()&fs.ModeSymlink == 0))
	})
}

// addOwn adds the few files that are not copied: the machine's own users and names stay here.
func (h *hostFiles) addOwn() {
	own := func(path string, mode fs.FileMode, data string) {
		h.files[path] = &imageFile{path: path, mode: mode, data: []byte(data), size: int64(len(data)), sum: sha256.Sum256([]byte(data))}
	}
	own("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
	own("/etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
	own("/etc/os-release", 0o644, "NAME=\"Holdfast host image\"\nID=holdfast\nPRETTY_NAME=\"made from this machine's programs\"\n")
}

func sumFile(path string) ([sha256.Size]byte, int64, error) {
	var sum [sha256.Size]byte
	file, err := os.Open(path)
	if err != nil {
		return sum, 0, fmt.Errorf("reading %s: %w", path, err)
	}
	defer file.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return sum, 0, fmt.Errorf("reading %s: %w", path, err)
	}
	copy(sum[:], hash.Sum(nil))
	return sum, size, nil
}

func (h *hostFiles) sorted() []*imageFile {
	list := make([]*imageFile, 0, len(h.files))
	for _, file := range h.files {
		list = append(list, file)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].path < list[j].path })
	return list
}

// hash identifies the inputs by their content, so that two machines with the same programs make the same tag.
func (h *hostFiles) hash() string {
	hash := sha256.New()
	fmt.Fprintf(hash, "holdfast host image %s\n", hostImageFormat)
	for _, file := range h.sorted() {
		fmt.Fprintf(hash, "%q %o %q %x\n", file.path, file.mode, file.link, file.sum)
	}
	return hex.EncodeToString(hash.Sum(nil))[:24]
}

// writeTar writes the image's file system.
func (h *hostFiles) writeTar(w io.Writer) error {
	archive := tar.NewWriter(w)
	made := map[string]bool{"/": true}
	when := time.Unix(0, 0)
	var directory func(path string, mode int64) error
	directory = func(path string, mode int64) error {
		if made[path] || h.files[path] != nil {
			return nil
		}
		if err := directory(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		made[path] = true
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path[1:] + "/", Mode: mode, ModTime: when})
	}
	for path, mode := range map[string]int64{"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/home": 0o755, "/run": 0o755, workspacePath: 0o755} {
		if err := directory(path, mode); err != nil {
			return fmt.Errorf("writing the image: %w", err)
		}
	}
	for _, file := range h.sorted() {
		if err := directory(filepath.Dir(file.path), 0o755); err != nil {
			return fmt.Errorf("writing the image: %w", err)
		}
		if err := file.write(archive, when); err != nil {
			return fmt.Errorf("writing %s to the image: %w", file.path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	return nil
}

func (f *imageFile) write(archive *tar.Writer, when time.Time) error {
	if f.link != "" {
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: f.path[1:], Linkname: f.link, Mode: 0o777, ModTime: when})
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path[1:], Mode: int64(f.mode.Perm()), Size: f.size, ModTime: when}); err != nil {
		return err
	}
	if f.source == "" {
		_, err := archive.Write(f.data)
		return err
	}
	source, err := os.Open(f.source)
	if err != nil {
		return err
	}
	defer source.Close()
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(archive, hash), source, f.size); err != nil {
		return err
	}
	if [sha256.Size]byte(hash.Sum(nil)) != f.sum {
		return errors.New("it was changed while the image was made: try again")
	}
	return nil
}
