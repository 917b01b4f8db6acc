package snapshot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"

	"holdfast/storage"
)

func createStore(ctx context.Context, s store, password []byte, options Options) (*Repository, error) {
	if err := options.applyDefaults(); err != nil {
		return nil, err
	}
	all, err := list(ctx, s, "")
	if err != nil {
		return nil, fmt.Errorf("creating the repository: %w", err)
	}
	if required := s.policy().Count(len(s.providers())); len(all.listed) < required {
		return nil, fmt.Errorf("creating the repository: only %d of %d required providers answer: %w",
			len(all.listed), required, all.failure())
	}
	if len(all.objects[configKey]) > 0 {
		return nil, fmt.Errorf("creating the repository: %w", storage.ErrExists)
	}
	keys := 0
	for key := range all.objects {
		switch {
		case strings.HasPrefix(key, keyPrefix):
			keys++
		case strings.HasPrefix(key, packPrefix), strings.HasPrefix(key, indexPrefix), strings.HasPrefix(key, snapshotPrefix):
			return nil, fmt.Errorf("creating the repository: there is %s, but no config: %w", key, ErrDamaged)
		}
	}
	master, err := masterForCreation(ctx, s, password, options, keys > 0)
	if err != nil {
		return nil, fmt.Errorf("creating the repository: %w", err)
	}
	config, err := newRepositoryConfig()
	if err != nil {
		return nil, err
	}
	plain, err := encodeJSON(config)
	if err != nil {
		return nil, err
	}
	box, err := newEnvelope(master)
	if err != nil {
		return nil, err
	}
	if err := s.put(ctx, configKey, box.seal(nil, plain), true); err != nil {
		return nil, fmt.Errorf("creating the repository: storing the config: %w", err)
	}
	return openStore(ctx, s, password, options)
}

// masterForCreation makes a master key and stores it. When a creation was interrupted between key and config, its key is
// used again: two keys that open with one password but hold different master keys would confuse stock restic.
func masterForCreation(ctx context.Context, s store, password []byte, options Options, keysThere bool) (masterKey, error) {
	if keysThere {
		keys, err := list(ctx, s, keyPrefix)
		if err != nil {
			return masterKey{}, err
		}
		opened, err := openKeys(ctx, s, keys, password, func(*envelope) error { return nil })
		if err != nil {
			return masterKey{}, fmt.Errorf("there are keys, but no config: %w", err)
		}
		return opened.master, nil
	}
	master, err := newMasterKey()
	if err != nil {
		return masterKey{}, err
	}
	hostname, _ := os.Hostname()
	file, err := newKeyFile(password, master, options.KDF, hostname, username())
	if err != nil {
		return masterKey{}, err
	}
	name := keyPrefix + blobID(sha256.Sum256(file)).String()
	if err := s.put(ctx, name, file, true); err != nil {
		return masterKey{}, fmt.Errorf("storing the key: %w", err)
	}
	return master, nil
}
