package snapshot

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSealedIsOpenedAgain: what a sealer gives out opens to what went in, for every kind of content and on both ways of
// comparing, and with whatever its buffers held before.
func TestSealedIsOpenedAgain(t *testing.T) {
	s := &sealer{box: testEnvelope(t), codec: testCodec(t)}
	for _, size := range []int{maxChunkSize, 0, 1, 63, 64, 65, 4096, smallMessage - 1, smallMessage, smallMessage + 1, 3 << 20, 7} {
		for kind, plain := range map[string][]byte{
			"noise": randomBytes(int64(size), size), "zeros": make([]byte, size), "text": bytes.Repeat([]byte("some text. "), size/11+1)[:size],
		} {
			sealed, plainSize, err := s.blob(plain)
			require.NoError(t, err)
			opened, err := s.box.open(nil, sealed)
			require.NoError(t, err)
			if plainSize != 0 {
				require.Less(t, len(opened), size)
				require.Equal(t, uint32(size), plainSize)
				opened, err = s.codec.decompress(nil, opened, size)
				require.NoError(t, err)
			}
			require.True(t, bytes.Equal(plain, opened), "%s of %d bytes", kind, size)
			require.Equal(t, kind != "noise" && size > 20, plainSize != 0, "%s of %d bytes", kind, size)
			if size == 0 {
				continue
			}
			file, err := s.file(plain)
			require.NoError(t, err)
			framed, err := s.box.open(nil, file)
			require.NoError(t, err)
			opened, err = s.codec.unpackFile(framed)
			require.NoError(t, err)
			require.True(t, bytes.Equal(plain, opened), "%s of %d bytes", kind, size)
		}
	}
}

// TestVerificationSeesEveryDifference: nothing is stored that does not open to exactly what it was made of.
func TestVerificationSeesEveryDifference(t *testing.T) {
	s := &sealer{box: testEnvelope(t), codec: testCodec(t)}
	for _, size := range []int{100, smallMessage, smallMessage + 1, 2 << 20} {
		for _, packed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d bytes, packed %v", size, packed), func(t *testing.T) {
				plain := bytes.Repeat([]byte("twelve bytes"), size/12+1)[:size]
				content := plain
				if packed {
					content = s.codec.compress(nil, plain)
				}
				sealed := s.box.seal(nil, content)
				require.NoError(t, s.verify(sealed, plain, packed, nil))
				for _, at := range []int{0, size / 2, size - 1} {
					other := bytes.Clone(plain)
					other[at] ^= 1
					require.ErrorIs(t, s.verify(sealed, other, packed, nil), ErrDamaged)
				}
				require.ErrorIs(t, s.verify(sealed, plain[:size-1], packed, nil), ErrDamaged, "it has more")
				require.ErrorIs(t, s.verify(sealed, append(bytes.Clone(plain), 't'), packed, nil), ErrDamaged, "it has less")
				cut := s.box.seal(nil, content[:len(content)-1])
				require.ErrorIs(t, s.verify(cut, plain, packed, nil), ErrDamaged)
				require.Error(t, s.verify(sealed, plain, !packed, nil))
				sealed[len(sealed)/2] ^= 1
				require.ErrorIs(t, s.verify(sealed, plain, packed, nil), errUnauthentic)
				framed := s.box.seal(nil, append([]byte{compressedFraming + 1}, s.codec.compress(nil, plain)...))
				require.ErrorIs(t, s.verify(framed, plain, true, []byte{compressedFraming}), ErrDamaged, "another framing")
			})
		}
	}
}
