package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// Check looks for damage, on every provider by itself: a copy that only a fallback would hide is an error too. It reads
// all of config, keys, index and snapshots, follows every snapshot's trees, and compares the packs in the listings with
// the index. With options.ReadData it also reads every pack and opens every blob, as `restic check --read-data` does, and
// with options.Subset some of them. Of a pack of which a copy is not what it should be it reads every copy, whatever was
// asked for, and finds out which blobs can still be read.
//
// What is wrong is in the report, named, with what needs it; the error is only for a check that could not be done: an
// ended context, or no provider that could be listed. A provider that could not be listed while another could is in the
// report.
func (r *Repository) Check(ctx context.Context, options CheckOptions) (_ *CheckReport, err error) {
	ended := r.options.Metrics.began("check")
	defer func() { ended(err) }()
	if options.ReadData && !options.Subset.isZero() {
		return nil, fmt.Errorf("checking: both all of the packs and the subset %s are to be read: %w", options.Subset, storage.ErrInvalid)
	}
	if err := r.refreshIndex(ctx); err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	c := &checker{
		repository: r, options: options, reader: newPackReader(r), meter: newMeter(options.Progress), errors: &warningList{},
		hints: &warningList{}, unlistedStores: map[string]error{}, brokenByKey: map[string]*brokenObject{}, copies: map[copyID]*badCopy{},
		wholeCopies: map[copyID]bool{},
		badTrees:    map[blobID]*brokenObject{}, badSnapshots: map[blobID]*brokenObject{}, brokenIndexes: map[blobID]*brokenObject{},
	}
	// Without tries in place: what is wrong is read once more, and then reported.
	alone, end, err := r.store.alone(true)
	if err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	defer end()
	c.alone = alone
	for _, step := range []func(context.Context) error{c.files, c.packs, c.trees, c.otherCopies, c.meaning} {
		if err = step(ctx); err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("checking: %w", withCause(ctx, err))
		}
	}
	c.meter.done()
	c.report.Errors = slices.Clone(c.errors.all())
	c.report.Hints = slices.Clone(c.hints.all())
	if c.report.Errors == nil {
		c.report.Errors = []string{}
	}
	slices.Sort(c.report.Errors)
	slices.Sort(c.report.Hints)
	r.options.Metrics.checked(&c.report)
	return &c.report, nil
}

// checker is the state of one Check.
type checker struct {
	repository *Repository
	options    CheckOptions
	reader     *packReader
	meter      *meter
	report     CheckReport
	errors     *warningList
	hints      *warningList
	alone      map[string]store // each provider by itself, by URL
	opened     sync.Pool        // of *openedBlob
	large      sync.Mutex       // held by who reads a file of unusual size

	unlistedStores map[string]error // providers that are reported as a whole
	packList       listing
	indexed        map[blobID][]packedBlob
	snapshots      []storedSnapshot

	mu            sync.Mutex // guards the rest
	broken        []*brokenObject
	brokenByKey   map[string]*brokenObject
	brokenIndexes map[blobID]*brokenObject
	badSnapshots  map[blobID]*brokenObject
	badTrees      map[blobID]*brokenObject // in whole packs, and yet no directories
	unnamed       *brokenObject            // what no index names
	copies        map[copyID]*badCopy
	wholeCopies   map[copyID]bool // that were read, and are the pack that was written
}

// load reads an object from one provider. What fails or is refused is read once more, since it may have been the wire.
func (c *checker) load(ctx context.Context, url, key string, size int64, check func([]byte) error) error {
	_, err := c.alone[url].load(ctx, key, 0, size, check)
	if err != nil && ctx.Err() == nil {
		_, err = c.alone[url].load(ctx, key, 0, size, check)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// loadFile is load for a file that is opened. What is larger than a writer makes it, stored or opened, is opened alone: a hostile
// number of such files needs what one needs.
func (c *checker) loadFile(ctx context.Context, object heldObject, key string, open func([]byte, indexSize) error) error {
	if object.Size > ordinaryIndex.stored {
		c.large.Lock()
		defer c.large.Unlock()
		return c.load(ctx, object.provider, key, object.Size, func(data []byte) error { return open(data, anyIndex) })
	}
	return c.load(ctx, object.provider, key, object.Size, func(data []byte) error {
		err := open(data, ordinaryIndex)
		if errors.Is(err, errNotOrdinary) {
			c.large.Lock()
			defer c.large.Unlock()
			err = open(data, anyIndex)
		}
		return err
	})
}

// files checks config, keys, index and snapshots.
func (c *checker) files(ctx context.Context) error {
	for _, kind := range []struct {
		prefix string
		limit  int64
		open   func(id blobID, data []byte, within indexSize) error
	}{
		{configKey, maxConfigSize, func(_ blobID, data []byte, _ indexSize) error {
			plain, err := c.repository.box.open(nil, data)
			if err == nil {
				_, err = decodeConfig(plain)
			}
			return err
		}},
		{keyPrefix, maxKeyFileSize, func(id blobID, data []byte, _ indexSize) error {
			if err := checkHash(id, data); err != nil {
				return err
			}
			_, err := decodeKeyFile(data)
			return err
		}},
		{indexPrefix, maxUnpackedSize, c.opener(func(plain []byte, within indexSize) error {
			cost := indexCost()
			cost.budget = within.memory
			_, err := decodeIndexWithin(cost, plain)
			return err
		})},
		{snapshotPrefix, maxUnpackedSize, c.opener(func(plain []byte, _ indexSize) error {
			_, err := decodeSnapshot(plain)
			return err
		})},
	} {
		l, err := list(ctx, c.repository.store, kind.prefix)
		if err != nil {
			return err
		}
		c.unlisted(l)
		group, groupContext := errgroup.WithContext(ctx)
		group.SetLimit(unpackedLoaders)
		for _, key := range slices.Sorted(maps.Keys(l.objects)) {
			if kind.prefix == configKey && key != configKey {
				continue
			}
			group.Go(func() error { return c.file(groupContext, l, key, kind.prefix, kind.limit, kind.open) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		c.mustHave(l, kind.prefix)
	}
	return nil
}

// opener checks a file that is named by its hash and sealed; errNotOrdinary for one that is right by its hash, and beyond a size.
func (c *checker) opener(decode func([]byte, indexSize) error) func(blobID, []byte, indexSize) error {
	return func(id blobID, data []byte, within indexSize) error {
		if err := checkHash(id, data); err != nil {
			return err
		}
		framed, err := c.repository.box.open(nil, data)
		if err != nil {
			return err
		}
		decoder := c.repository.codec.bounded
		if within == ordinaryIndex {
			decoder = c.repository.codec.ordinary
		}
		plain, err := unpackFrame(decoder, framed)
		if err == nil {
			if c.repository.moments.checking != nil {
				c.repository.moments.checking(plain)
			}
			err = decode(plain, within)
		}
		if errors.Is(err, ErrLimitExceeded) && within != anyIndex {
			return errNotOrdinary
		}
		return err
	}
}

// file checks every provider's copy of one small file.
func (c *checker) file(ctx context.Context, l listing, key, prefix string, limit int64, open func(blobID, []byte, indexSize) error) error {
	var id blobID
	if prefix != configKey {
		var err error
		if id, err = parseID(strings.TrimPrefix(key, prefix)); err != nil {
			c.hints.add("%s: not a file of a repository", quotePath(key))
			return nil
		}
	}
	held := map[string]bool{}
	for _, object := range l.objects[key] {
		held[object.provider] = true
		if object.Size > limit {
			c.errors.add("%s: on %s it has %d bytes, more than %d", key, object.provider, object.Size, limit)
			c.breaks(l, key, id, object.provider, ProblemDamaged, fmt.Sprintf("it has %d bytes", object.Size))
			continue
		}
		err := c.loadFile(ctx, object, key, func(data []byte, within indexSize) error { return open(id, data, within) })
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			c.errors.add("%s: damaged or unreadable on %s: %v", key, object.provider, err)
			c.breaks(l, key, id, object.provider, problemOf(err), err.Error())
		}
	}
	c.missing(l, key, id, held)
	return nil
}

// mustHave reports the config, and the key with which the repository was opened, when no provider lists it any more.
func (c *checker) mustHave(l listing, prefix string) {
	key := map[string]string{configKey: configKey, keyPrefix: c.repository.keyName}[prefix]
	if key == "" || len(l.objects[key]) > 0 {
		return
	}
	c.errors.add("%s: missing on every provider", key)
	id, _ := parseID(strings.TrimPrefix(key, keyPrefix)) // zero for the config
	for _, url := range l.listed {
		c.breaks(l, key, id, url, ProblemMissing, "it is not there")
	}
}

// missing reports the providers that were listed and do not have an object that others have.
func (c *checker) missing(l listing, key string, id blobID, held map[string]bool) {
	for _, url := range l.listed {
		if !held[url] {
			c.errors.add("%s: missing on %s", key, url)
			c.breaks(l, key, id, url, ProblemMissing, "it is not there")
		}
	}
}

// unlisted reports the providers that could not be listed, once each.
func (c *checker) unlisted(l listing) {
	for _, url := range slices.Sorted(maps.Keys(l.failed)) {
		if c.unlistedStores[url] == nil {
			c.unlistedStores[url] = l.failed[url]
			c.errors.add("%s: could not be listed: %v", url, l.failed[url])
		}
	}
}
