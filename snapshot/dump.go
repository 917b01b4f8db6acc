package snapshot

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"slices"

	"holdfast/storage"
)

// DumpOptions adjust Dump. The zero value gives a file as it is, and a directory as a tar stream.
type DumpOptions struct {
	// Archive is "tar" to get a tar stream of a single file too, or "".
	Archive string
	// Progress is called from time to time, from one goroutine.
	Progress func(Progress)
}

// Dump writes one file of a snapshot ("latest", an id or a prefix of one), or a directory as a PAX tar stream with
// modes, owners, times to the nanosecond, links, hard links and extended attributes. Names in it are relative to the
// directory. Every blob's hash is checked before its bytes are written.
//
// When it returns an error, what was written is not the whole: a tar stream then lacks its end mark. Errors:
// ErrNoSnapshot, ErrNoPath (also for a link or a device, which has no content of its own), ErrDamaged,
// ErrLimitExceeded, storage's and those of w.
func (r *Repository) Dump(ctx context.Context, snapshot, path string, w io.Writer, options DumpOptions) (err error) {
	ended := r.options.Metrics.began("dump")
	defer func() { ended(err) }()
	if options.Archive != "" && options.Archive != "tar" {
		return fmt.Errorf("dumping as %q: only tar is known: %w", options.Archive, storage.ErrInvalid)
	}
	stored, err := r.resolveSnapshot(ctx, snapshot)
	if err != nil {
		return fmt.Errorf("dumping: %w", err)
	}
	d := &dumper{repository: r, reader: newPackReader(r), meter: newMeter(options.Progress)}
	if err := d.dump(ctx, stored, path, w, options.Archive); err != nil {
		return fmt.Errorf("dumping from snapshot %s: %w", stored.id.short(), withCause(ctx, err))
	}
	d.meter.done()
	return nil
}

// dumper is the state of one Dump.
type dumper struct {
	repository *Repository
	reader     *packReader
	meter      *meter
	archive    *tar.Writer
	links      map[inodeKey]dumpedLink
}

// dumpedLink is the first name of a file with several names.
type dumpedLink struct {
	path    string
	kind    string
	content []blobID
	text    string
	device  uint64
}

func (d *dumper) dump(ctx context.Context, stored *storedSnapshot, path string, w io.Writer, archive string) error {
	found, err := d.reader.find(ctx, stored, path)
	if err != nil {
		return err
	}
	if !found.isDir() && archive == "" {
		if found.node.Type != "file" {
			return fmt.Errorf("%w: %s is a %s, not a file", ErrNoPath, quotePath(found.path), found.node.Type)
		}
		_, err := d.content(ctx, found.path, found.node, w)
		return err
	}
	d.archive, d.links = tar.NewWriter(w), map[inodeKey]dumpedLink{}
	if !found.isDir() {
		_, name := splitPath(found.path)
		err = d.entry(ctx, name, found.node)
	} else {
		if found.node != nil {
			err = d.header(".", found.node, 0, "")
		}
		if err == nil {
			err = d.reader.walk(ctx, found.tree, "", func(path string, n *node) (bool, error) {
				return true, d.entry(ctx, path, n)
			})
		}
	}
	if err != nil {
		return err
	}
	if err := d.archive.Close(); err != nil {
		return fmt.Errorf("ending the archive: %w", err)
	}
	return nil
}

func (d *dumper) header(path string, n *node, size int64, hardLink string) error {
	header, err := tarHeader(path, n, n.LinkTarget, size, hardLink)
	if err == nil && header != nil {
		err = d.archive.WriteHeader(header)
	}
	if err != nil {
		return tarError(path, err)
	}
	return nil
}

func (d *dumper) entry(ctx context.Context, path string, n *node) error {
	if n.Type != "dir" {
		d.meter.add(1, 0, path)
	}
	if n.Type != "dir" && n.Links > 1 && n.Inode != 0 {
		key := inodeKey{n.DeviceID, n.Inode}
		this := dumpedLink{path: path, kind: n.Type, content: n.Content, text: n.LinkTarget, device: n.Device}
		first, known := d.links[key]
		if known && first.kind == this.kind && first.text == this.text && first.device == this.device &&
			slices.Equal(first.content, this.content) {
			return d.header(path, n, 0, first.path)
		}
		if !known {
			d.links[key] = this
		}
	}
	if n.Type != "file" {
		return d.header(path, n, 0, "")
	}
	size, err := d.size(path, n)
	if err != nil {
		return err
	}
	if err := d.header(path, n, size, ""); err != nil {
		return err
	}
	written, err := d.content(ctx, path, n, d.archive)
	if err == nil && written != size {
		err = fmt.Errorf("%w: %s has %d bytes, the index says %d", ErrDamaged, quotePath(path), written, size)
	}
	return err
}

// size is the sum of a file's blobs.
func (d *dumper) size(path string, n *node) (size int64, err error) {
	for _, id := range n.Content {
		locations := d.repository.blobLocations(id, dataBlob)
		if len(locations) == 0 {
			return 0, fmt.Errorf("%w: no index names the data blob %s of %s", ErrDamaged, id, quotePath(path))
		}
		size += locations[0].plainSize()
	}
	return size, nil
}

// content writes a file's bytes, blob by blob, each verified. The next blob is read while one is written.
func (d *dumper) content(ctx context.Context, path string, n *node, w io.Writer) (written int64, err error) {
	type loaded struct {
		plain []byte
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := make(chan loaded)
	load := func(id blobID) {
		plain, err := d.reader.blob(ctx, id, dataBlob)
		next <- loaded{plain, err}
	}
	if len(n.Content) > 0 {
		go load(n.Content[0])
	}
	for i := range n.Content {
		blob := <-next
		if blob.err != nil {
			return written, fmt.Errorf("the content of %s: %w", quotePath(path), blob.err)
		}
		if i+1 < len(n.Content) {
			go load(n.Content[i+1])
		}
		count, err := w.Write(blob.plain)
		written += int64(count)
		if err != nil {
			if i+1 < len(n.Content) {
				cancel()
				<-next // no goroutine outlives the call
			}
			return written, fmt.Errorf("writing the content of %s: %w", quotePath(path), err)
		}
		d.meter.add(0, int64(count), path)
	}
	return written, nil
}
