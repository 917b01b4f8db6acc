package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/storage"
)

// This file notes what is damaged or missing where, and of packs what can still be read of them. check_meaning.go finds
// out who needs it.

// brokenObject is something that is not whole in some store.
type brokenObject struct {
	Damage
	held []heldObject // what the stores list of it
}

// copyID is one store's copy of a pack.
type copyID struct {
	pack  blobID
	store string
}

// badCopy is what cannot be read of a copy of a pack: all, or some blobs; perhaps none, when only the header is damaged.
type badCopy struct {
	all   bool
	blobs map[blobKey]error
}

func (b *badCopy) lacks(key blobKey) bool { return b != nil && (b.all || b.blobs[key] != nil) }

func (b packedBlob) key() blobKey { return blobKey{b.id, b.location.kind} }

// problemOf tells wrong bytes from bytes that could not be had.
func problemOf(err error) Problem {
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return ProblemMissing
	case errors.Is(err, ErrDamaged), errors.Is(err, storage.ErrIntegrity), errors.Is(err, ErrLimitExceeded):
		return ProblemDamaged
	default:
		return ProblemUnreadable
	}
}

// breaks notes that a store's copy of an object is not whole.
func (c *checker) breaks(l listing, key string, id blobID, store string, problem Problem, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	broken := c.brokenByKey[key]
	if broken == nil {
		broken = &brokenObject{Damage: Damage{Kind: kindOfObject(key), Key: key}, held: l.objects[key]}
		if !id.isZero() {
			broken.ID = id.String()
		}
		c.broken = append(c.broken, broken)
		c.brokenByKey[key] = broken
		switch broken.Kind {
		case DamageIndex:
			c.brokenIndexes[id] = broken
		case DamageSnapshot:
			c.badSnapshots[id] = broken
		}
	}
	for i := range broken.Stores {
		if broken.Stores[i].Store == store {
			return // the first that was found is what a listing showed
		}
	}
	broken.Stores = append(broken.Stores, DamagedCopy{Store: store, Problem: problem, Reason: reason})
}

func kindOfObject(key string) DamageKind {
	for prefix, kind := range map[string]DamageKind{keyPrefix: DamageKey, indexPrefix: DamageIndex, snapshotPrefix: DamageSnapshot, packPrefix: DamagePack} {
		if strings.HasPrefix(key, prefix) {
			return kind
		}
	}
	return DamageConfig
}

// spoils notes what cannot be read of a copy of a pack.
func (c *checker) spoils(copy copyID, bad *badCopy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.copies[copy] == nil {
		c.copies[copy] = bad
	}
}

// readCopy reads one store's copy of a pack, unless that was done before; nil when it is not the pack that was written.
func (c *checker) readCopy(ctx context.Context, held heldPack) ([]byte, error) {
	copy := copyID{held.id, held.provider}
	c.mu.Lock()
	known := c.copies[copy] != nil
	c.mu.Unlock()
	if known {
		return nil, nil
	}
	fail := func(err error, bad *badCopy) {
		c.errors.add("pack %s: damaged or unreadable on %s: %v", held.id, held.provider, err)
		c.breaks(c.packList, packKey(held.id), held.id, held.provider, problemOf(err), err.Error())
		c.spoils(copy, bad)
	}
	if held.Size > maxPackSize {
		fail(fmt.Errorf("it has %d bytes: %w", held.Size, ErrDamaged), &badCopy{all: true})
		return nil, nil
	}
	var got []byte
	answered := false
	err := c.load(ctx, held.provider, packKey(held.id), held.Size, func(data []byte) error {
		got, answered = data, true
		return checkHash(held.id, data)
	})
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if answered {
		c.mu.Lock()
		c.report.Bytes += int64(len(got))
		c.mu.Unlock()
	}
	switch {
	case err == nil:
		c.mu.Lock()
		c.wholeCopies[copy] = true
		c.mu.Unlock()
		return got, nil
	case answered && problemOf(err) == ProblemDamaged:
		fail(err, &badCopy{blobs: c.unopened(got, c.indexed[held.id])})
	default:
		fail(err, &badCopy{all: true})
	}
	return nil, nil
}

// readOther reads a copy of a pack beside those that were asked for, once.
func (c *checker) readOther(ctx context.Context, held heldPack) error {
	c.mu.Lock()
	whole := c.wholeCopies[copyID{held.id, held.provider}]
	c.mu.Unlock()
	if whole {
		return nil
	}
	_, err := c.readCopy(ctx, held)
	return err
}

// otherCopies reads the other copies of every pack of which one was found that is not what it should be. A store is said to
// have the pack whole only then: who believes that removes the damaged copy, and what can be read of that one may be in no
// other. Packs that are only missing somewhere are left alone, since nothing is removed for them, and a store that is new
// would have all be read.
func (c *checker) otherCopies(ctx context.Context) error {
	var copies []heldPack
	for _, broken := range c.broken {
		id, isPack := parsePackKey(broken.Key)
		if !isPack || !slices.ContainsFunc(broken.Stores, func(d DamagedCopy) bool { return d.Problem != ProblemMissing }) {
			continue
		}
		for _, object := range broken.held {
			copies = append(copies, heldPack{id, object})
		}
	}
	return c.each(ctx, len(copies), func(ctx context.Context, i int) error { return c.readOther(ctx, copies[i]) })
}

// badTree notes a tree that no store can give as a directory, although its pack is whole.
func (c *checker) badTree(id blobID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.badTrees[id] == nil {
		c.badTrees[id] = &brokenObject{Damage: Damage{Kind: DamageTree, ID: id.String(), Lost: true, Blobs: 1}}
		c.broken = append(c.broken, c.badTrees[id])
	}
}

// unnamedBlob counts a blob that no index names.
func (c *checker) unnamedBlob() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unnamed == nil {
		c.unnamed = &brokenObject{Damage: Damage{Kind: DamageBlob, Lost: true}}
		c.broken = append(c.broken, c.unnamed)
	}
	c.unnamed.Blobs++
}

// treeFailed notes a tree that could not be read, unless copies of its pack were found damaged, which says more.
func (c *checker) treeFailed(t failedTree) {
	locations := c.repository.blobLocations(t.id, treeBlob)
	if len(locations) == 0 {
		c.unnamedBlob()
		return
	}
	key := blobKey{t.id, treeBlob}
	for _, at := range locations {
		for _, url := range c.packList.listed {
			if !c.copies[copyID{at.pack, url}].lacks(key) {
				c.badTree(t.id)
				return
			}
		}
	}
}

// finish fills in what is known of an object once all copies were looked at.
func (b *brokenObject) finish(listed []string) {
	if len(b.Stores) == 0 {
		return // no object
	}
	damaged := func(url string) bool {
		return slices.ContainsFunc(b.Stores, func(d DamagedCopy) bool { return d.Store == url })
	}
	for _, url := range listed {
		if !damaged(url) {
			b.WholeOn = append(b.WholeOn, url)
		}
	}
	b.Lost = len(b.WholeOn) == 0
	slices.SortFunc(b.Stores, func(x, y DamagedCopy) int {
		return slices.Index(listed, x.Store) - slices.Index(listed, y.Store)
	})
	for i := range b.Stores {
		b.Stores[i].Hidden = b.Stores[i].Problem == ProblemDamaged && b.alike()
	}
}

// alike reports whether listings show no difference between the copies. A config is read by every repair.
func (b *brokenObject) alike() bool {
	if b.Kind == DamageConfig {
		return false
	}
	for _, one := range b.held {
		for _, other := range b.held {
			if one.Size != other.Size || one.HasCRC32C && other.HasCRC32C && one.CRC32C != other.CRC32C {
				return false
			}
		}
	}
	return true
}
