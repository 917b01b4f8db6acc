package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"holdfast/storage"
)

// programVersion is what snapshots name as their writer.
const programVersion = "holdfast"

// backup is one running Backup.
type backup struct {
	r       *Repository
	options BackupOptions
	dir     string
	root    int
	// descriptors is this process's /proc/self/fd.
	descriptors int
	start       time.Time

	saver     *saver
	packer    *packer
	inventory *inventory
	parent    *storedSnapshot
	parents   *packReader // for the parent's trees
	readers   []*contentReader
	// reread: content is never taken over from the parent, nor from the state file.
	reread bool
	state  backupState

	rules *ignoreRules // of the call

	mu        sync.Mutex
	omissions []Omission
	left      Excluded
	links     map[inodeKey]linkedContent
	names     nameCache

	rootTree     blobID
	rootNode     node
	parentFailed atomic.Bool

	files, dirs, bytes               atomic.Int64
	unreadable                       atomic.Int64
	newFiles, changedFiles, oldFiles atomic.Int64
	current                          atomic.Pointer[string]
}

// linkedContent is the content of a file with several names, when it had the record stat.
type linkedContent struct {
	stat    statRecord
	content []blobID
	size    int64
}

func (o *BackupOptions) applyDefaults(dir string) error {
	if o.Kind == "" {
		o.Kind = Live
	}
	if !o.Kind.valid() {
		return fmt.Errorf("a snapshot of the kind %q: %w", o.Kind, storage.ErrInvalid)
	}
	if o.Hostname == "" {
		hostname, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("finding this host's name: %w", err)
		}
		o.Hostname = hostname
	}
	if len(o.Paths) == 0 {
		o.Paths = []string{dir}
	}
	return nil
}

// Backup stores a directory as a new snapshot. The snapshot's tree is the content of dir, as `restic backup .` in it
// would store it; what dir itself is (mode, owner, times, attributes) is kept in the snapshot file.
//
// It may be called again after any failure or kill, on this or another node: whatever was stored is used, and at most
// the packs that were on their way are uploaded again. Files that are what they were in the newest snapshot of the same
// hostname and paths (size, mtime and ctime all equal) are not read again.
//
// What the ignore files in the directory (IgnoreFile) and options.Excludes name is left out and told in Excluded. What
// cannot be read is left out and named, in the result and in the snapshot. Errors: ErrSourceMissing when dir cannot
// be read, ErrLocked while somebody prunes, ErrLimitExceeded for a directory with more entries than the format can
// hold; the store's otherwise, for which storage.Retryable tells whether calling again can help.
func (r *Repository) Backup(ctx context.Context, dir string, options BackupOptions) (_ *BackupResult, err error) {
	ended := r.options.Metrics.began("backup")
	defer func() { ended(err) }()
	r.backups.Lock()
	defer r.backups.Unlock()
	start := time.Now()
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("backing up: %w: %w", ErrSourceMissing, err)
	}
	if err := options.applyDefaults(dir); err != nil {
		return nil, fmt.Errorf("backing up %s: %w", quotePath(dir), err)
	}
	rules, err := callRules(options.Excludes)
	if err != nil {
		return nil, fmt.Errorf("backing up %s without what is excluded: %w", quotePath(dir), err)
	}
	root, err := openRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("backing up: %w", err)
	}
	defer unix.Close(root)
	b := &backup{r: r, options: options, dir: dir, root: root, rules: rules, start: start, links: map[inodeKey]linkedContent{}}
	if b.options.Time.IsZero() {
		b.options.Time = start
	}
	result, err := b.run(ctx)
	if err != nil {
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			err = fmt.Errorf("%w: %w", ended, err) // callers ask for this as well as for the context's cause
		}
		return nil, fmt.Errorf("backing up %s: %w", quotePath(dir), err)
	}
	r.options.Metrics.backedUp(result)
	return result, nil
}

func (b *backup) run(ctx context.Context) (*BackupResult, error) {
	lock, err := b.r.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.release(ctx)
	if err := b.r.refreshIndex(ctx); err != nil {
		return nil, err
	}
	if b.inventory, err = b.r.takeInventory(ctx); err != nil {
		return nil, err
	}
	b.packer = newPacker(ctx, b.r)
	defer b.packer.abandon()
	adopted, err := b.inventory.adopt(ctx, b.packer)
	if err != nil {
		return nil, err
	}
	if adopted > 0 {
		b.r.log.Info("took in packs of a backup that did not end", "packs", adopted)
	}
	b.saver = newSaver(b.r, b.packer, b.inventory.lost)
	if err := b.findParent(ctx); err != nil {
		return nil, err
	}
	b.openState()
	defer b.closeState()
	stopProgress := b.reportProgress()
	defer stopProgress()

	top, err := b.scanAndCopy(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.packer.finish(ctx); err != nil {
		return nil, err
	}
	if err := lock.valid(); err != nil {
		return nil, err
	}
	result, err := b.commit(ctx, top)
	if err == nil {
		b.writeState()
	}
	return result, err
}

// scanAndCopy reads the directory, while what some provider lacks is copied to it.
func (b *backup) scanAndCopy(ctx context.Context) (*scanDir, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	copying, ctx := errgroup.WithContext(ctx)
	scanned := make(chan struct{})
	copying.Go(func() error { return b.inventory.copyMissing(ctx, b.packer, scanned) })
	top, err := b.scan(ctx)
	close(scanned)
	if err != nil {
		cancel()
		_ = copying.Wait() // if it failed first, err is its error
		if failure := b.packer.failure(); failure != nil {
			return nil, failure // the cause of what went wrong after it
		}
		return nil, err
	}
	if err := copying.Wait(); err != nil {
		return nil, err
	}
	return top, nil
}

// scan reads the directory and stores its content and trees.
func (b *backup) scan(ctx context.Context) (*scanDir, error) {
	descriptors, err := openDescriptors()
	if err != nil {
		return nil, err
	}
	defer unix.Close(descriptors)
	b.descriptors = descriptors
	workers := b.r.options.Concurrency
	slots, err := newChunkSlots(workers, b.r.chunkerKey)
	if err != nil {
		return nil, err
	}
	for range workers {
		b.readers = append(b.readers, &contentReader{saver: b.saver, chunks: slots})
	}
	var fs unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(b.root, &fs) }); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSourceMissing, err)
	}
	// On file systems in memory, what a program writes through a mapping leaves no trace in a file's times. A live
	// snapshot may miss that, the last one must not.
	const ramfs = 0x858458f6
	b.reread = b.options.Kind != Live && (fs.Type == unix.TMPFS_MAGIC || fs.Type == ramfs)
	s := &scan{root: b.root, workers: workers, handler: b, excludes: b.rules}
	return s.run(ctx)
}

// findParent looks for the newest snapshot of the same host and paths. Without one every file is read, so what cannot be
// had is no failure.
func (b *backup) findParent(ctx context.Context) error {
	b.parents = newPackReader(b.r)
	found, _, err := b.r.snapshots(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b.r.log.Warn("the snapshots cannot be read; every file is read again", "error", err)
		return nil
	}
	for _, s := range slices.Backward(found) {
		if s.Hostname == b.options.Hostname && slices.Equal(s.Paths, b.options.Paths) {
			b.parent = &s
			return nil
		}
	}
	return nil
}

// commit writes the snapshot file, the last thing of all, to the providers that hold everything it names.
func (b *backup) commit(ctx context.Context, top *scanDir) (*BackupResult, error) {
	result := b.result(top)
	file := b.snapshotFile(top, result)
	target, err := b.complete()
	if err != nil {
		return nil, err
	}
	if target.mirror != b.r.store.mirror {
		defer func() { _ = target.mirror.Close() }() // it has nothing to say
	}
	id, stored, err := b.r.storeFileIn(ctx, target, snapshotPrefix, file)
	if err != nil {
		return nil, fmt.Errorf("storing the snapshot: %w", err)
	}
	for _, url := range target.behind() {
		b.inventory.owe(url, target.mirror.BehindError(url))
	}
	for _, url := range b.r.store.behind() {
		b.inventory.owe(url, b.r.store.mirror.BehindError(url))
	}
	b.packer.bytesUploaded.Add(stored.size)
	result.Snapshot = id.String()
	result.BytesUploaded, result.PacksUploaded = b.packer.bytesUploaded.Load(), b.packer.packsUploaded.Load()
	for url, err := range b.inventory.owed {
		b.r.log.Warn("a provider does not hold everything of the snapshot", "provider", url, "error", err)
		result.Owed = append(result.Owed, url)
	}
	slices.Sort(result.Owed)
	result.Seconds = time.Since(b.start).Seconds()
	return result, nil
}

// complete is a store of only those providers that hold every object so far: a snapshot is never shown by one that
// lacks its content.
func (b *backup) complete() (store, error) {
	for _, url := range b.r.store.behind() {
		b.inventory.owe(url, b.r.store.mirror.BehindError(url))
	}
	if err := b.inventory.enough(); err != nil {
		return store{}, err
	}
	if len(b.inventory.owed) == 0 {
		return b.r.store, nil
	}
	all := b.r.store.providers()
	required := b.r.store.policy().Count(len(all))
	whole := slices.DeleteFunc(all, func(p storage.Provider) bool { return b.inventory.owed[p.URL()] != nil })
	return b.r.store.of(whole, storage.Policy{Required: required}, false)
}

func (b *backup) result(top *scanDir) *BackupResult {
	slices.SortStableFunc(b.omissions, func(x, y Omission) int { return cmp.Compare(x.Path, y.Path) })
	result := &BackupResult{
		Tree: b.rootTree.String(), Files: b.files.Load(), Dirs: b.dirs.Load(), Bytes: b.bytes.Load(),
		BytesAdded: b.saver.addedBytes[dataBlob].Load(), Omissions: b.omissions, Unreadable: b.unreadable.Load(),
		StatDigest: top.statDigest(), Excluded: b.left.orNil(),
	}
	if b.parent != nil {
		result.Parent = b.parent.id.String()
	}
	return result
}

func (b *backup) snapshotFile(top *scanDir, result *BackupResult) snapshotFile {
	tags := slices.Clone(b.options.Tags)
	if tag := b.options.Kind.tag(); !slices.Contains(tags, tag) {
		tags = append(tags, tag)
	}
	file := snapshotFile{
		Time: b.options.Time.UTC(), Tree: &b.rootTree, Paths: b.options.Paths, Hostname: b.options.Hostname,
		Username: username(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Tags: tags, ProgramVersion: programVersion,
		Excludes: b.left.patterns(b.options.Excludes),
		Summary: &snapshotSummary{
			BackupStart: b.start.UTC(), BackupEnd: time.Now().UTC(),
			FilesNew: uint64(b.newFiles.Load()), FilesChanged: uint64(b.changedFiles.Load()), FilesUnmodified: uint64(b.oldFiles.Load()),
			DataBlobs: b.saver.addedBlobs[dataBlob].Load(), TreeBlobs: b.saver.addedBlobs[treeBlob].Load(),
			DataAdded:           uint64(b.saver.addedBytes[dataBlob].Load() + b.saver.addedBytes[treeBlob].Load()),
			DataAddedPacked:     uint64(b.packer.bytesUploaded.Load()),
			TotalFilesProcessed: uint64(result.Files), TotalBytesProcessed: uint64(result.Bytes),
		},
		Holdfast: &holdfastDetails{
			Kind: b.options.Kind, StatDigest: result.StatDigest, Root: &b.rootNode,
			Omissions: b.omissions[:min(len(b.omissions), maxStoredOmissions)], OmissionCount: int64(len(b.omissions)),
			Excluded: result.Excluded,
		},
	}
	if b.parent != nil {
		file.Parent = &b.parent.id
	}
	return file
}

// reportProgress calls back about ten times a second until the function that it returns is called.
func (b *backup) reportProgress() func() {
	if b.options.Progress == nil {
		return func() {}
	}
	report := func() {
		p := Progress{
			Files: b.files.Load(), Bytes: b.bytes.Load(), BytesUploaded: b.packer.bytesUploaded.Load(),
			PacksUploaded: b.packer.packsUploaded.Load(),
		}
		if current := b.current.Load(); current != nil {
			p.Current = *current
		}
		b.options.Progress(p)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				report()
			case <-stop:
				report()
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-done })
}
