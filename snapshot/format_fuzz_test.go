package snapshot

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// The decoders meet bytes that a hostile or broken store hands out. None may panic, and what one accepts must keep the
// promises that its callers rely on.

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"version":2,"id":"0000000000000000000000000000000000000000000000000000000000000000","chunker_polynomial":"3da3358b4dc173"}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if config, err := decodeConfig(data); err == nil && (config.Version != formatVersion || !config.Polynomial.irreducible()) {
			t.Fatal("accepted a bad config")
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(`{"kdf":"scrypt","N":1024,"r":8,"p":1,"salt":"AAAAAAAAAAAAAAAA","data":"AAAA"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if file, err := decodeKeyFile(data); err == nil && 128*int64(file.N)*int64(file.R) > maxScryptMemory {
			t.Fatal("accepted a cost beyond the limit")
		}
	})
}

func FuzzMasterKey(f *testing.F) {
	f.Add([]byte(`{"mac":{"k":"AAAAAAAAAAAAAAAAAAAAAA==","r":"AAAAAAAAAAAAAAAAAAAAAA=="},"encrypt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := decodeMasterKey(data)
		if err != nil {
			return
		}
		box, err := newEnvelope(key)
		if err != nil {
			t.Fatalf("accepted a key that cannot be used: %v", err)
		}
		if opened, err := box.open(nil, box.seal(nil, data)); err != nil || !bytes.Equal(opened, data) {
			t.Fatal("a key does not open what it sealed")
		}
	})
}

func FuzzLock(f *testing.F) {
	f.Add([]byte(`{"time":"2001-02-03T04:05:06Z","exclusive":true,"hostname":"h","username":"u","pid":17,"uid":0,"gid":0}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := decodeLock(data)
		if err != nil {
			return
		}
		if len(data) > maxLockSize {
			t.Fatal("accepted a lock beyond the limit")
		}
		// Whatever a lock says of itself, one that a store has only just been given is held.
		if file.leftOver(time.Now(), 0, "", func(int) bool { return false }) {
			t.Fatalf("left over as soon as it is there: %+v", file)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(wireIndex(2, 2).appendJSON(nil))
	f.Add([]byte(`{"packs":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","blobs":[{"id":"0100000000000000000000000000000000000000000000000000000000000000","type":"tree","offset":0,"length":40,"uncompressed_length":9}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if file, ok := indexOf(data); ok {
			var want indexFile
			if err := json.Unmarshal(data, &want); err != nil || !reflect.DeepEqual(file, want) {
				t.Fatalf("not what encoding/json reads (%v):\n%+v\n%+v", err, file, want)
			}
		}
		file, err := decodeIndex(data)
		if err != nil {
			return
		}
		x := newMemoryIndex(1 << 40)
		for _, pack := range file.Packs {
			if err := x.add(pack, blobID{1}); err != nil {
				t.Fatal(err)
			}
		}
		x.each(func(b packedBlob) bool {
			if len(x.locations(blobKey{b.id, b.location.kind})) == 0 {
				t.Fatal("lost a blob")
			}
			return b.location.validate() == nil || t.Failed()
		})
	})
}

func FuzzPackHeader(f *testing.F) {
	f.Add(appendHeader(nil, []packedBlob{{id: blobID{1}, location: blobLocation{length: 40}}, {id: blobID{2}, location: blobLocation{kind: treeBlob, length: 40, plain: 100}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		blobs, err := parseHeader(blobID{}, data)
		if err == nil && !bytes.Equal(appendHeader(nil, blobs), data) {
			t.Fatal("a header does not survive a round trip")
		}
	})
}

func FuzzTree(f *testing.F) {
	nodes := wireNodes(2)
	nodes[1].ExtendedAttributes = []extendedAttribute{{"user.a", []byte("b")}}
	usual, err := encodeTree(nodes)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(usual)
	f.Add([]byte(`{"nodes":[{"name":"a\\xff","type":"file","mode":420,"mtime":"2001-02-03T04:05:06.7Z","content":[]}]}`))
	f.Add([]byte(`{"nodes":[{"name":"l","type":"symlink","linktarget":"x","linktarget_raw":"/w==","content":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if nodes, ok := treeOf(data); ok {
			var want struct{ Nodes []node }
			if err := json.Unmarshal(data, &want); err != nil || !reflect.DeepEqual(nodes, want.Nodes) {
				t.Fatalf("not what encoding/json reads (%v):\n%+v\n%+v", err, nodes, want.Nodes)
			}
		}
		nodes, err := decodeTree(data)
		if err != nil {
			return
		}
		for i := range nodes {
			if name := nodes[i].Name; name == "" || name == "." || name == ".." || bytes.ContainsAny([]byte(name), "/\x00") {
				t.Fatalf("accepted the name %q", name)
			}
		}
		encoded, err := encodeTree(nodes)
		if err != nil {
			return // a time that JSON cannot hold
		}
		again, err := decodeTree(encoded)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v\n%s", err, encoded)
		}
		if twice, err := encodeTree(again); err != nil || !bytes.Equal(encoded, twice) {
			t.Fatalf("not stable: %v\n%s\n%s", err, encoded, twice)
		}
	})
}

func FuzzSnapshotFile(f *testing.F) {
	f.Add([]byte(`{"time":"2001-02-03T04:05:06Z","tree":"0000000000000000000000000000000000000000000000000000000000000000","tags":["holdfast:final"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if file, err := decodeSnapshot(data); err == nil {
			s := storedSnapshot{snapshotFile: file}
			if _, err := json.Marshal(s.info()); err != nil && s.Time.Year() >= 0 && s.Time.Year() <= 9999 {
				t.Fatal(err)
			}
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	box := testEnvelope(f)
	c := testCodec(f)
	f.Add([]byte(nil), false)
	f.Add(bytes.Repeat([]byte{1}, 40), false)
	f.Add([]byte(`{"packs":[]}`), true)
	f.Fuzz(func(t *testing.T, data []byte, honest bool) {
		if _, err := box.open(nil, data); err == nil {
			t.Fatal("opened what was never sealed")
		}
		if honest { // a hostile holder of the key: the framing inside is what is fuzzed
			opened, err := box.open(nil, box.seal(nil, data))
			if err != nil || !bytes.Equal(opened, data) {
				t.Fatal("lost a message")
			}
		}
		if plain, err := c.unpackFile(data); err == nil && len(plain) > maxUnpackedSize {
			t.Fatal("unpacked more than the limit")
		}
	})
}
