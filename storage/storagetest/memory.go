package storagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/storage"
)

// Memory is a Provider that keeps its objects in memory, for unit tests. It passes the suite.
type Memory struct {
	url string

	mu      sync.Mutex
	missing bool
	objects map[string]memoryObject
}

type memoryObject struct {
	data     []byte
	modified time.Time
}

// NewMemory makes an empty provider with an address of its own (memory://…).
func NewMemory() *Memory {
	return &Memory{url: "memory://" + strings.ToLower(rand.Text()[:12]), objects: map[string]memoryObject{}}
}

// NewMissingMemory makes a provider whose bucket does not exist.
func NewMissingMemory() *Memory {
	m := NewMemory()
	m.missing = true
	return m
}

// URL is memory:// and a random name.
func (m *Memory) URL() string { return m.url }

// Put stores a copy of data.
func (m *Memory) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if err := m.enter(ctx, key); err != nil {
		return storage.Object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if there, ok := m.objects[key]; ok && options.CreateOnly {
		if !bytes.Equal(there.data, data) {
			return storage.Object{}, fmt.Errorf("creating %s: %w", key, storage.ErrExists)
		}
		return describe(key, there), nil // invariant 8: an equal object is our own, its answer was lost
	}
	object := memoryObject{data: bytes.Clone(data), modified: time.Now()}
	m.objects[key] = object
	return describe(key, object), nil
}

// Get reads from the content as it is now; a later Put does not change what the reader sees.
func (m *Memory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := m.enter(ctx, key); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("reading %s from %d: %w", key, offset, storage.ErrInvalid)
	}
	m.mu.Lock()
	object, ok := m.objects[key]
	m.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("reading %s: %w", key, storage.ErrNotFound)
	}
	size := int64(len(object.data))
	if length < 0 && offset <= size {
		length = size - offset
	}
	if length < 0 || offset+length > size {
		return nil, fmt.Errorf("reading %s: %d bytes from %d of %d: %w", key, length, offset, size, io.ErrUnexpectedEOF)
	}
	return &memoryReader{ctx: ctx, reader: bytes.NewReader(object.data[offset : offset+length])}, nil
}

type memoryReader struct {
	ctx    context.Context
	reader *bytes.Reader
}

func (r *memoryReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.reader.Read(p)
}

func (r *memoryReader) Close() error { return nil }

// Stat describes one object.
func (m *Memory) Stat(ctx context.Context, key string) (storage.Object, error) {
	if err := m.enter(ctx, key); err != nil {
		return storage.Object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	object, ok := m.objects[key]
	if !ok {
		return storage.Object{}, fmt.Errorf("looking at %s: %w", key, storage.ErrNotFound)
	}
	return describe(key, object), nil
}

// List calls each for the objects that were there when it began.
func (m *Memory) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	if err := storage.ValidatePrefix(prefix); err != nil {
		return err
	}
	if m.missing {
		return fmt.Errorf("listing %s: %w", m.url, storage.ErrBucketNotFound)
	}
	m.mu.Lock()
	objects := maps.Clone(m.objects)
	m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("listing %s: %w", m.url, err)
		}
		if err := each(describe(key, objects[key])); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("listing %s: %w", m.url, err)
	}
	return nil
}

// Delete removes an object.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := m.enter(ctx, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// Close does nothing.
func (m *Memory) Close() error { return nil }

// Corrupt replaces the content of an object behind the provider's back, for tests of damage. The checksum that the
// provider reports follows the new content.
func (m *Memory) Corrupt(key string, change func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	object := m.objects[key]
	object.data = change(bytes.Clone(object.data))
	m.objects[key] = object
}

// Keys lists the keys that are there, in order.
func (m *Memory) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

func (m *Memory) enter(ctx context.Context, key string) error {
	if err := storage.ValidateKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s on %s: %w", key, m.url, err)
	}
	if m.missing {
		return fmt.Errorf("%s on %s: %w", key, m.url, storage.ErrBucketNotFound)
	}
	return nil
}

func describe(key string, object memoryObject) storage.Object {
	return storage.Object{Key: key, Size: int64(len(object.data)), CRC32C: storage.Checksum(object.data), HasCRC32C: true, Modified: object.modified}
}
