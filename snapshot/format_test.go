package snapshot

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testEnvelope(t testing.TB) *envelope {
	t.Helper()
	key, err := newMasterKey()
	require.NoError(t, err)
	box, err := newEnvelope(key)
	require.NoError(t, err)
	return box
}

func testCodec(t testing.TB) *codec {
	t.Helper()
	c, err := newCodec(1)
	require.NoError(t, err)
	t.Cleanup(c.close)
	return c
}

func TestEnvelopeNoticesEveryChange(t *testing.T) {
	box := testEnvelope(t)
	for _, size := range []int{0, 1, 15, 16, 17, 1000} {
		plain := bytes.Repeat([]byte{7}, size)
		sealed := box.seal([]byte("before"), plain)
		require.Equal(t, "before", string(sealed[:6]))
		sealed = sealed[6:]
		opened, err := box.open([]byte("x"), sealed)
		require.NoError(t, err)
		require.Equal(t, append([]byte("x"), plain...), opened)
		for bit := range len(sealed) * 8 {
			sealed[bit/8] ^= 1 << (bit % 8)
			_, err := box.open(nil, sealed)
			require.ErrorIs(t, err, errUnauthentic)
			sealed[bit/8] ^= 1 << (bit % 8)
		}
		for cut := range len(sealed) {
			_, err := box.open(nil, sealed[:cut])
			require.ErrorIs(t, err, errUnauthentic)
		}
		_, err = testEnvelope(t).open(nil, sealed)
		require.ErrorIs(t, err, errUnauthentic, "another key")
	}
	require.NotEqual(t, box.seal(nil, nil), box.seal(nil, nil), "every message has its own vector")
}

// TestPoly1305AES uses the first two examples of appendix B of the Poly1305-AES paper.
func TestPoly1305AES(t *testing.T) {
	for _, example := range []struct{ message, r, k, nonce, tag string }{
		{
			"f3f6", "851fc40c3467ac0be05cc20404f3f700", "ec074c835580741701425b623235add6",
			"fb447350c4e868c52ac3275cf9d4327e", "f4c633c3044fc145f84f335cb81953de",
		},
		{
			"", "a0f3080000f46400d0c7e9076c834403", "75deaa25c09f208e1dc4ce6b5cad3fbf",
			"61ee09218d29b0aaed7e154a2c5509cc", "dd3fab2251f11ac759f0887129cc2ee7",
		},
	} {
		unhex := func(text string) []byte {
			b, err := hex.DecodeString(text)
			require.NoError(t, err)
			return b
		}
		r := unhex(example.r)
		clamped := bytes.Clone(r)
		clampR(clamped)
		require.Equal(t, r, clamped, "a valid r stays as it is")
		box, err := newEnvelope(masterKey{Encrypt: make([]byte, 32), MAC: macKey{K: unhex(example.k), R: r}})
		require.NoError(t, err)
		tag := box.tag(unhex(example.nonce), unhex(example.message))
		require.Equal(t, example.tag, hex.EncodeToString(tag[:]))
	}
}

func TestPolynomials(t *testing.T) {
	require.True(t, polynomial(0x3DA3358B4DC173).irreducible(), "the one in restic's own tests")
	for p, want := range map[polynomial]bool{0: false, 1: false, 2: true, 3: true, 4: false, 5: false, 6: false, 7: true, 0x11b: true, 0x11d: true, 0x11: false} {
		require.Equal(t, want, p.irreducible(), "%x", uint64(p))
	}
	for range 20 { // products are found out
		p, err := randomPolynomial()
		require.NoError(t, err)
		require.Equal(t, polynomialDegree, p.degree())
		a, b := polynomial(rand.Uint64N(1<<26)|1<<26), polynomial(rand.Uint64N(1<<26)|1<<26)
		require.False(t, a.multiplyMod(b, 1<<62).irreducible())
	}
	text, err := json.Marshal(polynomial(0x3DA3358B4DC173))
	require.NoError(t, err)
	require.Equal(t, `"3da3358b4dc173"`, string(text))
}

func TestKeysRefuseCostsBeyondTheLimits(t *testing.T) {
	master, err := newMasterKey()
	require.NoError(t, err)
	data, err := newKeyFile(testPassword, master, KDFParameters{N: 1024, R: 8, P: 1}, "host", "user")
	require.NoError(t, err)
	file, err := decodeKeyFile(data)
	require.NoError(t, err)
	opened, err := file.unlock(testPassword)
	require.NoError(t, err)
	require.Equal(t, master, opened)
	_, err = file.unlock([]byte("wrong"))
	require.ErrorIs(t, err, ErrWrongPassword)
	for _, cost := range []struct {
		n, r, p int
		want    error
	}{
		{0, 8, 1, ErrDamaged}, {1, 8, 1, ErrDamaged}, {1000, 8, 1, ErrDamaged}, {-1024, 8, 1, ErrDamaged}, {1024, 0, 1, ErrDamaged},
		{1024, 8, 0, ErrDamaged}, {1 << 30, 8, 1, ErrLimitExceeded}, {1 << 40, 1, 1, ErrLimitExceeded}, {2, 1 << 30, 1, ErrLimitExceeded},
		{1024, 8, 1 << 20, ErrLimitExceeded}, {1 << 20, 8, 64, ErrLimitExceeded},
	} {
		file.N, file.R, file.P = cost.n, cost.r, cost.p
		data, err := json.Marshal(file)
		require.NoError(t, err)
		_, err = decodeKeyFile(data)
		require.ErrorIs(t, err, cost.want, "%+v", cost)
	}
}

func TestPackHeader(t *testing.T) {
	box := testEnvelope(t)
	builder := newPackBuilder(treeBlob, nil)
	builder.add(blobID{1}, make([]byte, 100), 0)
	builder.add(blobID{2}, make([]byte, 50), 4000)
	id, data, blobs := builder.finish(box)
	require.NoError(t, checkHash(id, data))
	require.Equal(t, int64(len(data)), packSizeOf(blobs))
	size, err := sealedHeaderSize(id, int64(len(data)), data[len(data)-4:])
	require.NoError(t, err)
	plain, err := box.open(nil, data[int64(len(data))-4-size:len(data)-4])
	require.NoError(t, err)
	parsed, err := parseHeader(id, plain)
	require.NoError(t, err)
	require.Equal(t, blobs, parsed)
	for cut := range plain {
		if blobs, err := parseHeader(id, plain[:cut]); err == nil {
			require.Len(t, blobs, 1, "only a whole entry is one")
		}
	}
}

// TestTreesAreStrict: what a well-behaved writer would not have written is refused.
func TestTreesAreStrict(t *testing.T) {
	file := func(name string) string { return `{"name":"` + name + `","type":"file","content":[]}` }
	for text, want := range map[string]error{
		`{"nodes":[]}`:          nil,
		`{"nodes":[],"more":1}`: nil,
		`{"nodes":[` + file("a") + `,` + file("b") + `]}`:          nil,
		`{"nodes":[` + file("b") + `,` + file("a") + `]}`:          ErrDamaged,
		`{"nodes":[` + file("a") + `,` + file("a") + `]}`:          ErrDamaged,
		`{"nodes":[` + file("..") + `]}`:                           ErrUnsafePath,
		`{"nodes":[` + file(".") + `]}`:                            ErrUnsafePath,
		`{"nodes":[` + file("") + `]}`:                             ErrUnsafePath,
		`{"nodes":[` + file("a/b") + `]}`:                          ErrUnsafePath,
		`{"nodes":[` + file(`\\x00`) + `]}`:                        ErrUnsafePath,
		`{"nodes":[` + file(`\\x2f`) + `]}`:                        ErrUnsafePath,
		`{"nodes":[` + file(`\\x2e\\x2e`) + `]}`:                   ErrUnsafePath,
		`{"nodes":[` + file(`\"`) + `]}`:                           ErrDamaged,
		`{"nodes":[` + file(`\\`) + `]}`:                           ErrDamaged,
		`{"nodes":[{"name":"a","type":"dir"}]}`:                    ErrDamaged,
		`{"nodes":[{"name":"a","type":"file"}]}`:                   ErrDamaged,
		`{"nodes":[{"name":"a","type":"portal"}]}`:                 ErrDamaged,
		`{"nodes":[` + file(strings.Repeat("n", 5000)) + `]}`:      ErrLimitExceeded,
		`{"nodes":null}`:                                           ErrDamaged,
		`{}`:                                                       ErrDamaged,
		`[]`:                                                       ErrDamaged,
		`{"nodes":[`:                                               ErrDamaged,
		`{"nodes":[{"name":"a","type":"file","content":["xyz"]}]}`: ErrDamaged,
	} {
		_, err := decodeTree([]byte(text))
		if want == nil {
			require.NoError(t, err, text)
		} else {
			require.ErrorIs(t, err, want, text)
		}
	}
}

func TestTreesKeepEveryName(t *testing.T) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	id := blobID{5}
	nodes := []node{
		{Name: "\x01 \xff\xfe <&> \u2028 \" \\ \n", Type: "symlink", Mode: os.ModeSymlink | 0o777, LinkTarget: "t\xff", ModTime: at},
		{Name: "a", Type: "dir", Mode: os.ModeDir | os.ModeSticky | 0o755, Subtree: &id},
		{Name: "é", Type: "file", Content: []blobID{}, ModTime: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	encoded, err := encodeTree(nodes)
	require.NoError(t, err)
	require.Contains(t, string(encoded), `\u003c\u0026\u003e`, "as encoding/json escapes for HTML")
	require.Contains(t, string(encoded), `"content":null`)
	require.Contains(t, string(encoded), `"content":[]`)
	require.True(t, strings.HasSuffix(string(encoded), "]}\n"))
	decoded, err := decodeTree(encoded)
	require.NoError(t, err)
	require.Len(t, decoded, 3)
	for i := range nodes {
		require.Equal(t, nodes[i].Name, decoded[i].Name)
		require.Equal(t, nodes[i].LinkTarget, decoded[i].LinkTarget)
		require.Equal(t, nodes[i].Mode, decoded[i].Mode)
	}
	again, err := encodeTree(decoded)
	require.NoError(t, err)
	require.Equal(t, string(encoded), string(again))
	_, err = encodeTree([]node{nodes[1], nodes[0]})
	require.Error(t, err, "out of order")
	_, err = encodeTree([]node{nodes[1], nodes[1]})
	require.Error(t, err, "twice")
}

func TestDecompressionIsBounded(t *testing.T) {
	c := testCodec(t)
	bomb := c.compress(nil, make([]byte, maxUnpackedSize+1))
	require.Less(t, len(bomb), 1<<20)
	_, err := c.unpackFile(append([]byte{compressedFraming}, bomb...))
	require.ErrorIs(t, err, ErrLimitExceeded)
	small := c.compress(nil, make([]byte, 1000))
	for _, size := range []int{0, 1, 999, 1001} {
		_, err := c.decompress(nil, small, size)
		require.ErrorIs(t, err, ErrDamaged, size)
	}
	plain, err := c.decompress([]byte("x"), small, 1000)
	require.NoError(t, err)
	require.Len(t, plain, 1001)
	for _, framed := range [][]byte{nil, {0}, {3, 1}, {compressedFraming}, {compressedFraming, 1, 2, 3}} {
		if _, err := c.unpackFile(framed); !errors.Is(err, ErrDamaged) && len(framed) != 1 {
			require.Fail(t, "accepted", "%v", framed)
		}
	}
}

func TestIndexFindsEveryPlace(t *testing.T) {
	x := newMemoryIndex(1 << 20)
	blob := func(id blobID, kind blobType, offset uint32) indexBlob {
		return indexBlob{ID: id, Type: kind, Offset: offset, Length: 100}
	}
	same := blobID{1, 2, 3, 4, 5, 6, 7, 8, 9}
	other := blobID{1, 2, 3, 4, 5, 6, 7, 8, 10} // begins like same
	first := indexPack{ID: blobID{100}, Blobs: []indexBlob{blob(same, dataBlob, 0), blob(other, dataBlob, 100), blob(same, treeBlob, 200)}}
	second := indexPack{ID: blobID{200}, Blobs: []indexBlob{blob(same, dataBlob, 0)}}
	require.NoError(t, x.add(first, blobID{9}))
	require.NoError(t, x.add(second, blobID{}))
	require.NoError(t, x.add(first, blobID{8}), "stock restic may name a pack twice")
	require.Equal(t, 4, x.len())
	require.Len(t, x.locations(blobKey{same, dataBlob}), 2)
	require.Len(t, x.locations(blobKey{same, treeBlob}), 1)
	require.Equal(t, uint32(100), x.locations(blobKey{other, dataBlob})[0].offset)
	require.Empty(t, x.locations(blobKey{blobID{7}, dataBlob}))
	info, ok := x.pack(blobID{100})
	require.True(t, ok)
	require.Equal(t, int64(packFrameSize+3*(100+plainEntrySize)), info.size)
	require.Len(t, info.files, 2)
	info, _ = x.pack(blobID{200})
	require.False(t, info.indexed())
}
