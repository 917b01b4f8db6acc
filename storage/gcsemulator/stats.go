package gcsemulator

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"maps"
	"os"
	"sync"
	"time"
)

// ObjectStats counts the uploads to one object name.
type ObjectStats struct {
	// Stored is how often a complete upload became the object.
	Stored int64 `json:"stored"`
	// Received is how many bytes of content came in, with those of uploads that failed or were abandoned.
	Received int64 `json:"received"`
	// ReceivedAgain is how many of them had been received before for this name at the same place with the same
	// content, counted in blocks of 16 KiB; less than one block is missed where an upload was cut.
	ReceivedAgain int64 `json:"received_again"`
}

// Stats is what the emulator has counted since its directory was made, over all restarts, except Requests, Uploading and Held.
type Stats struct {
	ObjectStats                  // sums over all names
	Objects     int64            `json:"objects"`      // there now
	ObjectBytes int64            `json:"object_bytes"` // of the objects that are there now
	Partial     int64            `json:"partial"`      // names of which bytes were received but none was ever stored
	Uploading   int64            `json:"uploading"`    // requests that are sending content at this moment
	Held        int64            `json:"held"`         // requests that wait (see Hold) at this moment
	Requests    map[string]int64 `json:"requests"`     // since this start, by kind of operation
	// PerObject has every "bucket/name" that was ever uploaded to.
	PerObject map[string]ObjectStats `json:"per_object,omitempty"`
}

// uploadRecord is one line of uploads.jsonl: one request that carried content.
type uploadRecord struct {
	Time          time.Time `json:"time"`
	Kind          string    `json:"kind"`
	Object        string    `json:"object"` // bucket/name
	Upload        string    `json:"upload,omitempty"`
	Offset        int64     `json:"offset"`
	Received      int64     `json:"received"`
	ReceivedAgain int64     `json:"received_again"`
	Stored        bool      `json:"stored"`
	Generation    int64     `json:"generation,string,omitempty"`
	Error         string    `json:"error,omitempty"`
	// FirstBlock and Blocks are the checksums of what was received, so that "received again" survives a restart.
	FirstBlock int64  `json:"first_block"`
	Blocks     string `json:"blocks,omitempty"`
}

// blockSize is the unit in which content is recognised; uploads continue at multiples of 256 KiB.
const blockSize = 16 << 10

var blockTable = crc64.MakeTable(crc64.ECMA)

// counters keeps Stats and the log.
type counters struct {
	mu       sync.Mutex
	log      *os.File
	objects  map[string]*ObjectStats
	blocks   map[string]map[int64]uint64 // by object and block number
	requests map[string]int64
	active   int64
}

// openCounters reads the log of earlier runs and continues it.
func openCounters(path string) (*counters, error) {
	c := &counters{objects: map[string]*ObjectStats{}, blocks: map[string]map[int64]uint64{}, requests: map[string]int64{}}
	var err error
	if c.log, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	reader := bufio.NewReaderSize(c.log, 1<<20)
	var good int64
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 { // cut by a kill
				if err := c.log.Truncate(good); err != nil {
					return c, err
				}
			}
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("reading the log of uploads: %w", err)
		}
		good += int64(len(line))
		var record uploadRecord
		if err := json.Unmarshal(bytes.TrimSpace(line), &record); err != nil {
			return c, fmt.Errorf("reading the log of uploads: %w", err)
		}
		stats := c.object(record.Object)
		stats.Received += record.Received
		stats.ReceivedAgain += record.ReceivedAgain
		if record.Stored {
			stats.Stored++
		}
		sums, _ := base64.StdEncoding.DecodeString(record.Blocks)
		for i := 0; i+8 <= len(sums); i += 8 {
			c.blocks[record.Object][record.FirstBlock+int64(i/8)] = binary.LittleEndian.Uint64(sums[i:])
		}
	}
}

// object is called with the lock held, or before there is anyone else.
func (c *counters) object(key string) *ObjectStats {
	if c.objects[key] == nil {
		c.objects[key] = &ObjectStats{}
		c.blocks[key] = map[int64]uint64{}
	}
	return c.objects[key]
}

func (c *counters) close() error { return c.log.Close() }

func (c *counters) countRequest(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[kind]++
}

// meter counts the content of one request.
type meter struct {
	c      *counters
	record uploadRecord
	offset int64 // of the next byte in the object
	block  uint64
	filled int // bytes of the present block; below 0 while in one whose beginning was not seen
	sums   []byte
}

// begin starts to count a request whose content belongs at offset.
func (c *counters) begin(q *request, offset int64) *meter {
	m := &meter{c: c, offset: offset, record: uploadRecord{
		Time: time.Now().UTC(), Kind: q.op.Kind, Object: q.op.Bucket + "/" + q.op.Object, Upload: q.op.Upload, Offset: offset,
	}}
	m.record.FirstBlock = (offset + blockSize - 1) / blockSize
	m.filled = int(offset - m.record.FirstBlock*blockSize)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active++
	return m
}

// add counts bytes as they come in.
func (m *meter) add(data []byte) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	stats := m.c.object(m.record.Object)
	stats.Received += int64(len(data))
	m.record.Received += int64(len(data))
	for len(data) > 0 {
		if m.filled < 0 {
			n := min(-m.filled, len(data))
			m.filled += n
			data = data[n:]
			continue
		}
		n := min(blockSize-m.filled, len(data))
		m.block = crc64.Update(m.block, blockTable, data[:n])
		m.filled += n
		data = data[n:]
		if m.filled == blockSize {
			m.endBlock(stats)
		}
	}
}

// endBlock compares the block with what was received before. The lock is held.
func (m *meter) endBlock(stats *ObjectStats) {
	index := m.record.FirstBlock + int64(len(m.sums)/8)
	sum := m.block ^ uint64(m.filled)
	known, ok := m.c.blocks[m.record.Object][index]
	if ok && known == sum {
		stats.ReceivedAgain += int64(m.filled)
		m.record.ReceivedAgain += int64(m.filled)
	}
	m.c.blocks[m.record.Object][index] = sum
	m.sums = binary.LittleEndian.AppendUint64(m.sums, sum)
	m.block, m.filled = 0, 0
}

// end writes the request's line. whole says that all the content of the request has come in.
func (m *meter) end(whole bool, stored *object, err error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.active--
	stats := m.c.object(m.record.Object)
	if whole && m.filled > 0 {
		m.endBlock(stats)
	}
	if stored != nil {
		stats.Stored++
		m.record.Stored, m.record.Generation = true, stored.meta.Generation
	}
	if err != nil {
		m.record.Error = err.Error()
	}
	m.record.Blocks = base64.StdEncoding.EncodeToString(m.sums)
	line, _ := json.Marshal(m.record)
	// The log is for counting, so it is not synced, and one that cannot be written must not fail an upload.
	_, _ = m.c.log.Write(append(line, '\n'))
}

// Stats gives the counts at this moment.
func (e *Emulator) Stats() Stats {
	var s Stats
	e.mu.Lock()
	for _, b := range e.buckets {
		s.Objects += int64(len(b.objects))
		for _, o := range b.objects {
			s.ObjectBytes += o.meta.Size
		}
	}
	e.mu.Unlock()
	s.Held = e.held.count()
	c := e.stats
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Uploading, s.Requests, s.PerObject = c.active, maps.Clone(c.requests), map[string]ObjectStats{}
	for key, o := range c.objects {
		s.PerObject[key] = *o
		s.Stored += o.Stored
		s.Received += o.Received
		s.ReceivedAgain += o.ReceivedAgain
		if o.Stored == 0 && o.Received > 0 {
			s.Partial++
		}
	}
	return s
}
