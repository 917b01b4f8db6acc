package requests

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"holdfast/workspace"
)

// ContentDir is the directory that the workspace's instance sees as /workspace, in its node's directory.
func ContentDir(nodeDir string, state workspace.State) string {
	return filepath.Join(nodeDir, "workspaces", workspace.InstanceName(state.ID, state.Instance.Token), "content")
}

// WriteFiles makes files of so many bytes each that neither compress nor repeat, the same for the same seed.
func WriteFiles(dir string, seed uint64, files, size int) error {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	random := rand.NewChaCha8(key)
	content := make([]byte, size)
	for i := range files {
		_, _ = random.Read(content) // never fails
		path := filepath.Join(dir, fmt.Sprintf("part-%d", i%4), fmt.Sprintf("file-%d", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			return fmt.Errorf("writing a workspace's content: %w", err)
		}
	}
	return nil
}

// Digest is of all files below a directory, with their names.
func Digest(dir string) (string, error) {
	all := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(all, "%s %x\n", strings.TrimPrefix(path, dir), sha256.Sum256(content))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading a workspace's content: %w", err)
	}
	return fmt.Sprintf("%x", all.Sum(nil)), nil
}
