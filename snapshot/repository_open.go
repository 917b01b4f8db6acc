package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

func openOrCreateStore(ctx context.Context, s store, password []byte, options Options) (*Repository, error) {
	r, err := openStore(ctx, s, password, options)
	if !errors.Is(err, ErrNoRepository) {
		return r, err
	}
	r, err = createStore(ctx, s, password, options)
	if errors.Is(err, storage.ErrExists) { // somebody was faster
		return openStore(ctx, s, password, options)
	}
	return r, err
}

// openStore asks for everything at once, and decides in an order of its own: whether there is a repository, which key opens,
// whether the config is that key's, whose the stores are, and only then what the index says.
func openStore(ctx context.Context, s store, password []byte, options Options) (*Repository, error) {
	if err := options.applyDefaults(); err != nil {
		return nil, err
	}
	asked, end := askAhead(ctx, s)
	defer end()
	configs, err := asked.configs()
	if err != nil {
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	if len(configs.objects[configKey]) == 0 {
		if err := configs.failure(); err != nil {
			return nil, fmt.Errorf("opening the repository: no provider that answers has it: %w", err)
		}
		if err := remains(ctx, s); err != nil {
			return nil, fmt.Errorf("opening the repository: %w", err)
		}
		return nil, fmt.Errorf("opening the repository: %w", ErrNoRepository)
	}
	r := &Repository{
		store: s, options: options, log: options.Logger, index: newMemoryIndex(options.IndexMemory), indexFiles: map[blobID]storedFile{},
		indexDamaged: map[blobID]error{}, files: map[string]storedFile{}, parsed: map[blobID]*storedSnapshot{},
	}
	keys, err := asked.keys()
	if err != nil {
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	opened, err := openKeys(ctx, s, keys, password, func(box *envelope) error { return r.readConfig(ctx, configs, asked.config, box) })
	if err != nil {
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	r.keyName, r.box = opened.name, opened.box
	r.remember(opened.name, opened.data)
	if r.mixed, err = r.otherRepository(ctx, configs, opened); err != nil {
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	if r.mixed != nil {
		r.log.Warn("only what belongs to one of the repositories is read, and nothing is written", "error", r.mixed)
	}
	if err := r.deriveKeys(opened.master); err != nil {
		return nil, err
	}
	if r.codec, err = newCodec(options.Concurrency); err != nil {
		return nil, err
	}
	index, err := asked.index()
	if err == nil {
		err = r.takeIndex(ctx, index.listing, asked.began, index.files)
	}
	if err != nil {
		r.codec.close()
		return nil, fmt.Errorf("opening the repository: reading the index: %w", err)
	}
	return r, nil
}

// ahead is what opening a repository asks its stores before it knows what of it is needed: a store may be a tenth of a second
// away, and one question after the other is eight times that. Nothing that comes back is believed here: what is sealed is
// opened with the repository's key when that is there, in the order in which openStore decides.
type ahead struct {
	began   time.Time
	configs func() (listing, error)
	keys    func() (listing, error)
	config  func() ([]byte, error) // as some store has it, not opened
	index   func() (aheadIndex, error)
}

// aheadIndex is the listing of the index, and the files of it that were read already, by key.
type aheadIndex struct {
	listing listing
	files   map[string]aheadFile
}

// aheadFile are bytes whose hash is the file's name, or why they could not be had.
type aheadFile struct {
	data []byte
	err  error
}

const (
	// aheadBytes is how much of the index is read while the key is derived, in stored bytes: 100,000 blobs and more.
	aheadBytes = 8 << 20
	// aheadLoaders is how many files of it at once.
	aheadLoaders = 2 * unpackedLoaders
)

// askAhead begins to ask. The caller ends it, when it has all that it waits for.
func askAhead(ctx context.Context, s store) (asked *ahead, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	listed := func(prefix string) func() (listing, error) {
		return begin(&running, func() (listing, error) { return list(ctx, s, prefix) })
	}
	a := &ahead{began: time.Now(), configs: listed(configKey), keys: listed(keyPrefix)}
	index := listed(indexPrefix)
	a.config = begin(&running, func() ([]byte, error) {
		configs, err := a.configs()
		if err != nil || len(configs.objects[configKey]) == 0 {
			return nil, err
		}
		return loadWhole(ctx, s, configs, configKey, maxConfigSize, nil)
	})
	a.index = begin(&running, func() (aheadIndex, error) {
		l, err := index()
		if err != nil {
			return aheadIndex{}, err
		}
		return aheadIndex{l, readAhead(ctx, s, l)}, nil
	})
	return a, func() { cancel(); running.Wait() }
}

// begin runs f in a goroutine of its own, and returns what waits for its result.
func begin[T any](running *sync.WaitGroup, f func() (T, error)) func() (T, error) {
	var (
		value T
		err   error
		done  = make(chan struct{})
	)
	running.Go(func() {
		defer close(done)
		value, err = f()
	})
	return func() (T, error) { <-done; return value, err }
}

// readAhead reads the first files of the index, up to aheadBytes.
func readAhead(ctx context.Context, s store, l listing) map[string]aheadFile {
	var ids []blobID
	for key := range l.objects {
		if id, err := parseID(strings.TrimPrefix(key, indexPrefix)); err == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, blobID.compare)
	var mu sync.Mutex
	files := map[string]aheadFile{}
	left := int64(aheadBytes)
	var group errgroup.Group
	group.SetLimit(aheadLoaders)
	for _, id := range ids {
		key := indexPrefix + id.String()
		sizes := l.sizes(key, aheadBytes)
		if len(sizes) == 0 || sizes[0] > left {
			continue
		}
		left -= sizes[0]
		group.Go(func() error {
			data, err := loadWhole(ctx, s, l, key, maxUnpackedSize, func(data []byte) error { return checkHash(id, data) })
			mu.Lock()
			defer mu.Unlock()
			files[key] = aheadFile{data, err}
			return nil
		})
	}
	_ = group.Wait() // each file has its own error
	return files
}

// remains is ErrDamaged where there are snapshots or indexes: with them there was a config too.
func remains(ctx context.Context, s store) error {
	for _, prefix := range []string{snapshotPrefix, indexPrefix} {
		l, err := list(ctx, s, prefix)
		if err != nil {
			return err
		}
		if n := len(l.objects); n > 0 {
			return fmt.Errorf("the file config is missing on every provider, and there are %d files in %s: %w", n, prefix, ErrDamaged)
		}
	}
	return nil
}

// readConfig reads the config with a key; errUnauthentic when it is not that key's. What was read ahead is of one store only:
// where it does not open, every store's is tried.
func (r *Repository) readConfig(ctx context.Context, configs listing, ahead func() ([]byte, error), box *envelope) error {
	var config repositoryConfig
	accept := func(sealed []byte) error {
		plain, err := box.open(nil, sealed)
		if err != nil {
			return err
		}
		config, err = decodeConfig(plain)
		return err
	}
	data, err := ahead()
	if err != nil {
		return err
	}
	if accept(data) != nil {
		if data, err = loadWhole(ctx, r.store, configs, configKey, maxConfigSize, accept); err != nil {
			return err
		}
	}
	r.config = config
	r.remember(configKey, data)
	return nil
}
