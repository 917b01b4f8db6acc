package gcsemulator

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// object is one generation of an object; it never changes once it is in a bucket's map.
type object struct {
	meta objectMeta
	path string // of the content
}

// bucket is a bucket with everything in it. Emulator.mu guards it.
type bucket struct {
	name    string
	created time.Time
	dir     string
	objects map[string]*object
	names   []string // sorted, unless stale
	stale   bool
}

// On disk an object is objects/<hh>/<hash of its name>.json, which names the generation that is current, and
// <hash>.<generation>.data beside it. Names are hashed because they may be longer than file names, contain anything,
// and because "a" and "a/b" may both exist. Renaming the .json into place is the commit.
const (
	metaSuffix = ".json"
	dataSuffix = ".data"
)

func objectBase(name string) (dir, base string) {
	sum := sha256.Sum256([]byte(name))
	text := hex.EncodeToString(sum[:])
	return text[:2], text
}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)

// CreateBucket makes a bucket; one that exists is no error.
func (e *Emulator) CreateBucket(name string) error {
	_, err := e.createBucket(name)
	if err != nil && err.status != 409 {
		return err
	}
	return nil
}

func (e *Emulator) createBucket(name string) (*bucket, *apiError) {
	if !bucketName.MatchString(name) {
		return nil, badRequest("Invalid bucket name: '%s'", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.buckets[name]; b != nil {
		return b, &apiError{409, "conflict", "Your previous request to create the named bucket succeeded and you already own it."}
	}
	b := &bucket{name: name, created: time.Now().UTC(), dir: filepath.Join(e.bucketsDir(), name), objects: map[string]*object{}}
	if err := os.MkdirAll(filepath.Join(b.dir, "objects"), 0o700); err != nil {
		return nil, internalError("making a bucket", err)
	}
	record, _ := json.Marshal(map[string]any{"name": name, "timeCreated": b.created})
	if err := e.writeDurably(filepath.Join(b.dir, "bucket.json"), record); err != nil {
		return nil, internalError("making a bucket", err)
	}
	if err := e.syncDir(e.bucketsDir()); err != nil {
		return nil, internalError("making a bucket", err)
	}
	e.buckets[name] = b
	return b, nil
}

// find gives the bucket and the object, which is nil when there is none.
func (e *Emulator) find(bucketName, name string) (*bucket, *object, *apiError) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.buckets[bucketName]
	if b == nil {
		return nil, nil, noBucket()
	}
	return b, b.objects[name], nil
}

// existing is find for callers that need the object, with their preconditions checked.
func (e *Emulator) existing(q *request, bucketName, name, prefix string, read bool) (*object, *apiError) {
	conds, apiErr := parseConditions(q.query, prefix)
	if apiErr != nil {
		return nil, apiErr
	}
	_, o, apiErr := e.find(bucketName, name)
	if apiErr != nil {
		return nil, apiErr
	}
	generationParameter := "generation"
	if prefix == "ifSource" {
		generationParameter = "sourceGeneration"
	}
	if text := q.query.Get(generationParameter); text != "" && o != nil {
		if text != strconv.FormatInt(o.meta.Generation, 10) {
			o = nil // only the newest generation is kept
		}
	}
	if o == nil {
		return nil, noObject(bucketName, name)
	}
	return o, conds.check(o, read)
}

// lockObject serialises changes of one object.
func (e *Emulator) lockObject(bucket, name string) func() {
	h := fnv.New32a()
	_, _ = h.Write([]byte(bucket + "/" + name))
	m := &e.commits[h.Sum32()%uint32(len(e.commits))]
	m.Lock()
	return m.Unlock
}

func (e *Emulator) nextGeneration() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastGeneration = max(e.lastGeneration+1, time.Now().UnixMicro())
	return e.lastGeneration
}

func validateObjectName(name string) *apiError {
	switch {
	case name == "":
		return &apiError{400, "required", "Required parameter: name"}
	case len(name) > 1024, !utf8.ValidString(name), strings.ContainsAny(name, "\r\n"), name == ".", name == "..",
		strings.HasPrefix(name, ".well-known/acme-challenge/"):
		return badRequest("Invalid object name")
	}
	return nil
}

// commit makes staged, a synced file, the current generation of an object if the conditions hold. The file is gone
// from its place on success only.
func (e *Emulator) commit(meta objectMeta, staged string, conds conditions) (*object, *apiError) {
	defer e.lockObject(meta.Bucket, meta.Name)()
	b, old, apiErr := e.find(meta.Bucket, meta.Name)
	if apiErr != nil {
		return nil, apiErr
	}
	if apiErr := conds.check(old, false); apiErr != nil {
		return nil, apiErr
	}
	now := time.Now().UTC()
	meta.Generation, meta.Metageneration, meta.Created, meta.Updated = e.nextGeneration(), 1, now, now
	if meta.StorageClass == "" {
		meta.StorageClass = "STANDARD"
	}
	sub, base := objectBase(meta.Name)
	dir := filepath.Join(b.dir, "objects", sub)
	o := &object{meta: meta, path: filepath.Join(dir, fmt.Sprintf("%s.%d%s", base, meta.Generation, dataSuffix))}
	if err := e.makeDir(dir); err != nil {
		return nil, internalError("storing an object", err)
	}
	// A link, not a rename: should publishing fail, nobody knows whether the metadata reached the disk, so the content
	// stays in both places; the next start removes the one that is not needed, and the upload can be tried again.
	if err := os.Link(staged, o.path); err != nil {
		return nil, internalError("storing an object", err)
	}
	if err := e.publish(b, o, dir, base); err != nil {
		return nil, internalError("storing an object", err)
	}
	_ = os.Remove(staged)
	if old != nil {
		_ = os.Remove(old.path) // what stays is removed at the next start
	}
	return o, nil
}

// publish writes an object's metadata and puts it into the bucket's map.
func (e *Emulator) publish(b *bucket, o *object, dir, base string) error {
	record, err := json.Marshal(o.meta)
	if err != nil {
		return err
	}
	if err := e.writeDurably(filepath.Join(dir, base+metaSuffix), record); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if b.objects[o.meta.Name] == nil {
		b.stale = true
	}
	b.objects[o.meta.Name] = o
	return nil
}

// remove takes an object out of its bucket.
func (e *Emulator) remove(q *request) *apiError {
	defer e.lockObject(q.op.Bucket, q.op.Object)()
	o, apiErr := e.existing(q, q.op.Bucket, q.op.Object, "if", false)
	if apiErr != nil {
		return apiErr
	}
	b, _, _ := e.find(q.op.Bucket, q.op.Object)
	sub, base := objectBase(q.op.Object)
	dir := filepath.Join(b.dir, "objects", sub)
	if err := os.Remove(filepath.Join(dir, base+metaSuffix)); err != nil {
		return internalError("deleting an object", err)
	}
	e.mu.Lock()
	delete(b.objects, q.op.Object)
	b.stale = true
	e.mu.Unlock()
	if err := e.syncDir(dir); err != nil {
		return internalError("deleting an object", err)
	}
	_ = os.Remove(o.path)
	return nil
}

// sorted gives the names of a bucket in order. Emulator.mu is held.
func (b *bucket) sorted() []string {
	if b.stale {
		b.names = b.names[:0]
		for name := range b.objects {
			b.names = append(b.names, name)
		}
		slices.Sort(b.names)
		b.stale = false
	}
	return b.names
}

// loadBuckets reads all metadata. What has no metadata was never acknowledged and is removed.
func (e *Emulator) loadBuckets() error {
	dirs, err := os.ReadDir(e.bucketsDir())
	if err != nil {
		return err
	}
	for _, entry := range dirs {
		b := &bucket{name: entry.Name(), dir: filepath.Join(e.bucketsDir(), entry.Name()), objects: map[string]*object{}, stale: true}
		record, err := os.ReadFile(filepath.Join(b.dir, "bucket.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its creation was cut short
		}
		if err != nil {
			return err
		}
		var about struct {
			Created time.Time `json:"timeCreated"`
		}
		if err := json.Unmarshal(record, &about); err != nil {
			return fmt.Errorf("reading bucket %s: %w", b.name, err)
		}
		b.created = about.Created
		if err := e.loadObjects(b); err != nil {
			return fmt.Errorf("reading bucket %s: %w", b.name, err)
		}
		e.buckets[b.name] = b
	}
	return nil
}

func (e *Emulator) loadObjects(b *bucket) error {
	var content []string
	current := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(b.dir, "objects"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
			return err
		case strings.HasSuffix(path, dataSuffix):
			content = append(content, path)
			return nil
		case !strings.HasSuffix(path, metaSuffix):
			return os.Remove(path) // a temporary file
		}
		record, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		o := &object{}
		if err := json.Unmarshal(record, &o.meta); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		o.path = fmt.Sprintf("%s.%d%s", strings.TrimSuffix(path, metaSuffix), o.meta.Generation, dataSuffix)
		info, err := os.Stat(o.path)
		if err != nil {
			return fmt.Errorf("content of %q: %w", o.meta.Name, err)
		}
		if info.Size() != o.meta.Size {
			return fmt.Errorf("content of %q has %d bytes, want %d", o.meta.Name, info.Size(), o.meta.Size)
		}
		current[o.path] = true
		b.objects[o.meta.Name] = o
		e.lastGeneration = max(e.lastGeneration, o.meta.Generation)
		return nil
	})
	if err != nil {
		return err
	}
	for _, path := range content {
		if !current[path] {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// sync waits until a file is on the disk, unless NoSync is set.
func (e *Emulator) sync(file *os.File) error {
	if e.options.NoSync {
		return nil
	}
	return file.Sync()
}

// writeDurably replaces a file and returns when it would survive a loss of power.
func (e *Emulator) writeDurably(path string, data []byte) error {
	temporary := path + ".tmp" // callers hold the lock of what path belongs to
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = e.sync(file)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return e.syncDir(filepath.Dir(path))
}

// makeDir makes a directory in an existing one, durably.
func (e *Emulator) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.syncDir(filepath.Dir(dir))
}

func (e *Emulator) syncDir(dir string) error {
	if e.options.NoSync {
		return nil
	}
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
