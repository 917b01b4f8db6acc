package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/storage"
)

// openedKey is a key file that a password opened.
type openedKey struct {
	name   string
	data   []byte
	master masterKey
	box    *envelope
	keys   listing // of all key files
}

// openKeys tries the password on every key file that was listed until accept takes the key. accept returns errUnauthentic for a key
// that is not this repository's, which is passed over.
func openKeys(ctx context.Context, s store, keys listing, password []byte, accept func(*envelope) error) (openedKey, error) {
	names := make([]string, 0, len(keys.objects))
	for name := range keys.objects {
		names = append(names, name)
	}
	if len(names) > maxKeys {
		return openedKey{}, fmt.Errorf("%d keys, more than %d: %w", len(names), maxKeys, ErrLimitExceeded)
	}
	slices.Sort(names)
	var failures []error // of keys that could not be tried
	for _, name := range names {
		opened, err := openKey(ctx, s, keys, name, password)
		if err == nil {
			err = accept(opened.box)
			if err == nil {
				opened.keys = keys
				return opened, nil
			}
			err = fmt.Errorf("with key %s: %w", name, err)
		}
		if ctx.Err() != nil {
			return openedKey{}, ctx.Err()
		}
		if !errors.Is(err, ErrWrongPassword) {
			failures = append(failures, err)
		}
	}
	if unlisted := keys.failure(); storage.Retryable(unlisted) {
		// The key that opens may be among those that could not be listed: what is wrong with the others is not the cause.
		if len(failures) > 0 {
			unlisted = fmt.Errorf("%w; of the keys that are there: %v", unlisted, errors.Join(failures...))
		}
		return openedKey{}, unlisted
	} else if unlisted != nil {
		failures = append(failures, unlisted)
	}
	if failure := errors.Join(failures...); failure != nil {
		if errors.Is(failure, errUnauthentic) && !errors.Is(failure, ErrDamaged) {
			failure = fmt.Errorf("%w: %w", ErrDamaged, failure)
		}
		return openedKey{}, failure
	}
	if len(names) == 0 {
		return openedKey{}, fmt.Errorf("there is a config, but no key: %w", ErrDamaged)
	}
	return openedKey{}, ErrWrongPassword
}

func openKey(ctx context.Context, s store, keys listing, name string, password []byte) (openedKey, error) {
	id, err := parseID(strings.TrimPrefix(name, keyPrefix))
	if err != nil {
		return openedKey{}, fmt.Errorf("the key file %q: %w", name, err)
	}
	var file keyFile
	stored, err := loadWhole(ctx, s, keys, name, maxKeyFileSize, func(data []byte) error {
		if err := checkHash(id, data); err != nil {
			return err
		}
		file, err = decodeKeyFile(data)
		return err
	})
	if err != nil {
		return openedKey{}, err
	}
	master, err := file.unlock(password)
	if err != nil {
		return openedKey{}, fmt.Errorf("key %s: %w", name, err)
	}
	box, err := newEnvelope(master)
	if err != nil {
		return openedKey{}, err
	}
	return openedKey{name: name, data: stored, master: master, box: box}, nil
}
