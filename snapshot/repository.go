package snapshot

// What the files of this package share, unexported:
//
//	loadBlob(ctx, id, kind)         a blob's plaintext, its hash verified; falls back from provider to provider and from
//	                                pack to pack; the caller may change the slice
//	loadTree(ctx, id)               a directory's nodes: sorted, names checked (see node.go)
//	blobLocations(id, kind)         where a blob lies; nil when no index names it
//	openBlob(dst, sealed, id, at)   plaintext of sealed bytes that were read from a pack some other way, hash verified
//	loadPackPart(ctx, pack, …)      raw bytes of a pack, accepted by the caller's check
//	loadPackHeader(ctx, pack, size) a pack's own list of its blobs, authenticated, its sizes adding up to size
//	loadPackWhole(ctx, pack, size)  all bytes of a pack, its SHA-256 verified
//	snapshots(ctx)                  all snapshot files that can be read, oldest first, and what could not be read
//	resolveSnapshot(ctx, text)      "latest", a prefix or a full id
//	snapshot.Holdfast.Root          in a snapshot of ours: the node of the backed-up directory itself (nil in others)
//	refreshIndex(ctx)               takes in index files that are new since
//	indexedPacks()                  a copy of what the index knows of each pack
//	eachBlob(visit)                 every blob in every pack
//	indexDamage()                   index files that no provider has whole, with the reason
//
// Errors: ErrDamaged (also in the chain of what a check refused on every provider), ErrLimitExceeded, and storage's own.

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"runtime"
	"slices"
	"sync"
	"time"

	"holdfast/storage"
)

// Repository is an open repository. Its methods are safe for concurrent use, except that one Backup runs at a time.
type Repository struct {
	store   store
	options Options
	log     *slog.Logger
	config  repositoryConfig
	keyName string // the object under keys/ that the password opened
	mixed   error  // that a provider holds another repository: nothing may be written
	box     *envelope
	codec   *codec
	// chunkerKey decides where files are cut. It is derived from the master key, so that who sees only sizes of chunks
	// cannot recognise known files by them.
	chunkerKey []byte
	stateBox   *envelope // seals state files

	backups sync.Mutex // held by a running Backup
	moments moments

	refresh   sync.Mutex // serialises refreshIndex
	refreshed time.Time  // under refresh: when the listing began that the index is of

	mu           sync.RWMutex
	index        *memoryIndex
	indexFiles   map[blobID]storedFile // taken in
	indexDamaged map[blobID]error
	unlisted     error // providers that the last refresh could not list
	files        map[string]storedFile
	parsed       map[blobID]*storedSnapshot
	listed       time.Time // when a listing of snapshots last ended
}

// moments are called at points of a backup where tests make something happen to the directory.
type moments struct {
	listed   func(path string)              // a directory was listed, its entries are not read yet
	read     func(path string, attempt int) // a file was read, and not yet looked at again
	decoding func(index []byte)             // an index file was opened, and is decoded next
	checking func(file []byte)              // the same of a file that a check looks at
	// untold: as on a file system where a change of an extended attribute leaves a file's ctime alone.
	untold bool
}

// storedFile is what is known of a stored object whose whole content was seen.
type storedFile struct {
	size int64
	crc  uint32
	hash blobID
}

func (o *Options) applyDefaults() error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Concurrency <= 0 {
		o.Concurrency = runtime.GOMAXPROCS(0)
	}
	if o.PackSize == 0 {
		o.PackSize = DefaultPackSize
	}
	if o.PackSize < 4<<20 || o.PackSize > 128<<20 {
		return fmt.Errorf("a pack size of %d bytes is not between 4 and 128 MiB: %w", o.PackSize, storage.ErrInvalid)
	}
	if o.IndexEvery <= 0 {
		o.IndexEvery = 16
	}
	if o.IndexMemory <= 0 {
		o.IndexMemory = max(availableMemory("/proc", "/sys/fs/cgroup")/4, leastIndexMemory)
	}
	return nil
}

// Open opens the repository that m holds. ErrNoRepository: every provider was listed and none has a config, a snapshot or an index;
// ErrWrongPassword: no key opens with the password; ErrDamaged, ErrLimitExceeded, ErrUnsupportedVersion: permanent too.
// An error of a provider that could not be reached, while the others have nothing, is transient.
func Open(ctx context.Context, m *storage.Mirror, password []byte, options Options) (*Repository, error) {
	return openStore(ctx, store{m}, password, options)
}

// Create makes a new repository. A repository that is there already is storage.ErrExists, and is not touched; so are
// remains of one without its config (ErrDamaged).
func Create(ctx context.Context, m *storage.Mirror, password []byte, options Options) (*Repository, error) {
	return createStore(ctx, store{m}, password, options)
}

// OpenOrCreate opens the repository, or makes it when every provider of the policy that answers has nothing.
func OpenOrCreate(ctx context.Context, m *storage.Mirror, password []byte, options Options) (*Repository, error) {
	return openOrCreateStore(ctx, store{m}, password, options)
}

// remember keeps what VerifyStored compares later.
func (r *Repository) remember(key string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[key] = storedFile{size: int64(len(data)), crc: storage.Checksum(data), hash: sha256.Sum256(data)}
}

func (r *Repository) deriveKeys(master masterKey) error {
	secret := slices.Concat(master.Encrypt, master.MAC.K)
	var err error
	if r.chunkerKey, err = hkdf.Key(sha256.New, secret, nil, "holdfast chunker v1", 32); err != nil {
		return fmt.Errorf("deriving the chunker's key: %w", err)
	}
	// What is sealed on the node must never pass for an object of the store.
	derived, err := hkdf.Key(sha256.New, secret, nil, "holdfast state v1", 64)
	if err != nil {
		return fmt.Errorf("deriving the state file's key: %w", err)
	}
	r.stateBox, err = newEnvelope(masterKeyOf(derived))
	return err
}

// Close releases what the repository holds in this process. It does not close the providers.
func (r *Repository) Close() error {
	r.codec.close()
	return nil
}

// ID is the repository's own random id, 64 hexadecimal digits.
func (r *Repository) ID() string { return r.config.ID }

// Snapshots lists the repository's snapshots, oldest first. A snapshot file that no provider has whole is left out and
// logged; one of a provider that cannot be reached is not known.
func (r *Repository) Snapshots(ctx context.Context) ([]Info, error) {
	infos, _, err := r.SnapshotsSeen(ctx)
	return infos, err
}

// SnapshotsSeen is Snapshots, and says in unseen why there may be more of them: a provider could not be listed, or a snapshot
// could not be read. It is nil when these are all.
func (r *Repository) SnapshotsSeen(ctx context.Context) (infos []Info, unseen, err error) {
	found, damaged, l, err := r.listSnapshots(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, err := range damaged {
		r.log.Warn("a snapshot cannot be read", "error", err)
	}
	infos = make([]Info, len(found))
	for i, s := range found {
		infos[i] = s.info()
		for _, held := range l.objects[snapshotPrefix+s.id.String()] {
			infos[i].Stores = append(infos[i].Stores, held.provider)
		}
	}
	return infos, errors.Join(l.failure(), unreadable(l, damaged)), nil
}

// Omissions are the things that a snapshot says it does not hold as they were; none for a snapshot of stock restic.
// ErrNoSnapshot when there is no such snapshot.
func (r *Repository) Omissions(ctx context.Context, snapshot string) ([]Omission, error) {
	s, err := r.resolveSnapshot(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	if s.Holdfast == nil {
		return nil, nil
	}
	return s.Holdfast.Omissions, nil
}

func sortSnapshots(list []storedSnapshot) {
	slices.SortFunc(list, func(a, b storedSnapshot) int {
		return cmp.Or(a.Time.Compare(b.Time), a.id.compare(b.id))
	})
}

// username is who runs this process, or "" when the system cannot say.
func username() string {
	if current, err := user.Current(); err == nil {
		return current.Username
	}
	return ""
}
