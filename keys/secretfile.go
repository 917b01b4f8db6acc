package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxSecretFile bounds what is read from a key file: the real ones are far smaller, and the path comes from a person.
const maxSecretFile = 64 << 10

// ErrExposed means that a key file can be read by others than its owner.
var ErrExposed = errors.New("the key file can be read by others")

// createSecretFile writes a new file with mode 0600 and never touches one that is there: then created is false. The
// content is complete and on the disk before the name appears, so that neither a crash nor a second process that starts
// at the same time ever finds half a key. Missing directories are made with mode 0700.
func createSecretFile(path string, content []byte) (created bool, err error) {
	if _, err := os.Lstat(path); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	scratch := filepath.Join(dir, "."+filepath.Base(path)+"."+rand.Text())
	if err := writeExclusive(scratch, content); err != nil {
		return false, err
	}
	defer os.Remove(scratch)
	// A link fails when the name is there, as O_EXCL does, but what it makes appear is whole.
	err = os.Link(scratch, path)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		// A file system without hard links: the next best.
		err = writeExclusive(path, content)
		if errors.Is(err, fs.ErrExist) {
			return false, nil
		}
	}
	if err != nil {
		return false, err
	}
	return true, syncDir(dir)
}

func writeExclusive(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path) // only what this call made: O_EXCL succeeded
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readSecretFile reads a key file and refuses one that others than its owner can read; the error names the mend.
func readSecretFile(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO at this path must give an error, not wait for a writer for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of the opened file, so that it cannot be exchanged in between
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s", ErrExposed, path, mode, path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxSecretFile {
		return nil, fmt.Errorf("%s is larger than any key file (%d bytes)", path, maxSecretFile)
	}
	return content, nil
}
