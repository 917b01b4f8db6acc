package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"holdfast/storage"
)

// ErrOtherRepository means that stores which were named together hold different repositories. It is permanent.
var ErrOtherRepository = errors.New("the stores hold different repositories")

// otherRepository says which provider holds another repository than the one that was opened: a backup would add objects
// to it that its own keys do not open, and stock restic would then refuse it. Whoever has a config and keys, but not the
// key that the password opened, is looked at; no request is made otherwise. The second error is of that look.
//
// A provider that cannot be listed now is not known, and neither is one whose only fault is a config that was damaged.
func (r *Repository) otherRepository(ctx context.Context, configs listing, opened openedKey) (mixed, err error) {
	own := r.files[configKey]
	for _, config := range configs.objects[configKey] {
		if !opened.keys.hasOnlyOthers(config.provider, opened.name) {
			continue
		}
		at := slices.IndexFunc(r.store.providers(), func(p storage.Provider) bool { return p.URL() == config.provider })
		one, err := r.store.of(r.store.providers()[at:at+1], storage.PolicyAll, true)
		if err != nil {
			return nil, err
		}
		data, err := one.load(ctx, configKey, 0, min(config.Size, maxConfigSize), nil)
		_ = one.mirror.Close() // it wrote nothing
		switch {
		case err != nil:
			return nil, fmt.Errorf("comparing what the stores hold: %w", err)
		case blobID(sha256.Sum256(data)) != own.hash: // one that keys were added to has the same config
			return fmt.Errorf("%w: %s has a config and keys that are not those of the others", ErrOtherRepository, config.provider), nil
		}
	}
	return nil, nil
}

// hasOnlyOthers reports whether a provider lists keys, and name is not among them.
func (l listing) hasOnlyOthers(provider, name string) bool {
	others := false
	for key, held := range l.objects {
		if slices.ContainsFunc(held, func(o heldObject) bool { return o.provider == provider }) {
			if key == name {
				return false
			}
			others = true
		}
	}
	return others
}
