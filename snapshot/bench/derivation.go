package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// derivation says what it costs to open a repository of restic's format, which every command pays: restic measures the machine
// when it makes one, and takes fewer rounds while the machine is busy. It is empty for another format.
func derivation(repository string) (string, error) {
	files, err := filepath.Glob(filepath.Join(repository, "keys", "*"))
	if err != nil || len(files) == 0 {
		return "", err
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return "", fmt.Errorf("reading a key file: %w", err)
	}
	var key struct {
		KDF     string `json:"kdf"`
		N, R, P int
	}
	if err := json.Unmarshal(data, &key); err != nil {
		return "", fmt.Errorf("reading a key file: %w", err)
	}
	return fmt.Sprintf("%s %d, %d, %d", key.KDF, key.N, key.R, key.P), nil
}
