package snapshot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
)

// formatVersion is the only version of the repository format that this package reads and writes. Version 1 has no
// compression; `restic migrate upgrade_repo_v2` turns one into the other.
const formatVersion = 2

// ErrUnsupportedVersion means that the repository has another format version than 2. Permanent.
var ErrUnsupportedVersion = errors.New("the repository's format version is not supported (only 2 is)")

// repositoryConfig is the file "config". It is encrypted but never compressed.
type repositoryConfig struct {
	Version    uint       `json:"version"`
	ID         string     `json:"id"`
	Polynomial polynomial `json:"chunker_polynomial"`
}

func newRepositoryConfig() (repositoryConfig, error) {
	var id blobID
	if _, err := rand.Read(id[:]); err != nil {
		return repositoryConfig{}, fmt.Errorf("making a repository id: %w", err)
	}
	p, err := randomPolynomial()
	if err != nil {
		return repositoryConfig{}, err
	}
	return repositoryConfig{Version: formatVersion, ID: id.String(), Polynomial: p}, nil
}

func decodeConfig(plain []byte) (repositoryConfig, error) {
	var config repositoryConfig
	if err := json.Unmarshal(plain, &config); err != nil {
		return config, fmt.Errorf("decoding the config: %w: %w", ErrDamaged, err)
	}
	if config.Version != formatVersion {
		return config, fmt.Errorf("the config says version %d: %w", config.Version, ErrUnsupportedVersion)
	}
	if _, err := parseID(config.ID); err != nil {
		return config, fmt.Errorf("decoding the config: %w", err)
	}
	if !config.Polynomial.irreducible() {
		return config, fmt.Errorf("decoding the config: the chunker's polynomial can be divided: %w", ErrDamaged)
	}
	return config, nil
}
