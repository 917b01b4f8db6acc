package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// sealer turns plaintext into what is stored: compressed, sealed, and opened again and compared before anybody gets to
// see it. It keeps its buffers from one message to the next, so only one goroutine may use it.
type sealer struct {
	box   *envelope
	codec *codec

	sealed []byte
	// opened and unpacked are for messages of up to smallMessage bytes. Larger ones are compared piece by piece, with
	// stream and piece, so that a chunk of 4 MiB is in memory twice and not four times.
	opened, unpacked []byte
	stream           *zstd.Decoder
	piece            []byte
}

func (r *Repository) newSealer() *sealer { return &sealer{box: r.box, codec: r.codec} }

const (
	smallMessage = 512 << 10
	pieceSize    = 64 << 10
)

// compressionGain: what zstd does not make smaller by 1/64 is stored as it is, and costs nothing to read.
const compressionGain = 64

// blob seals a blob. plainSize is what its pack's header says: 0 when it was not worth compressing. The sealed bytes
// are valid until the next call.
func (s *sealer) blob(plain []byte) (sealed []byte, plainSize uint32, err error) {
	message := s.codec.compress(s.start(len(plain)), plain)
	if plainSize = uint32(len(plain)); len(plain)-(len(message)-vectorSize) < max(1, len(plain)/compressionGain) {
		message, plainSize = append(message[:vectorSize], plain...), 0
	}
	s.sealed = s.box.sealInPlace(message)
	if err := s.verify(s.sealed, plain, plainSize != 0, nil); err != nil {
		return nil, 0, err
	}
	return s.sealed, plainSize, nil
}

// file seals a file of snapshots/, index/ or locks/.
func (s *sealer) file(plain []byte) ([]byte, error) {
	framing := []byte{compressedFraming}
	s.sealed = s.box.sealInPlace(s.codec.compress(append(s.start(len(plain)), framing...), plain))
	if err := s.verify(s.sealed, plain, true, framing); err != nil {
		return nil, err
	}
	return s.sealed, nil
}

// start is a buffer with room for everything that can become of size bytes, at the place where content begins.
func (s *sealer) start(size int) []byte {
	// More than what becomes of what zstd cannot compress: the worst case that its reference implementation wants room for.
	need := envelopeOverhead + size + size>>8 + 128
	if cap(s.sealed) < need {
		s.sealed = make([]byte, recycledSize(need))
	}
	return s.sealed[:vectorSize]
}

// bufferMargin is what sealing adds to a chunk, and more.
const bufferMargin = 64 << 10

// keptBuffer is the largest buffer that is used again: what is larger is for a huge directory.
const keptBuffer = maxChunkSize + bufferMargin

// recycledSize is how large to make a buffer for need bytes: one of two sizes, because memory that buffers of many sizes
// leave behind fits nothing else.
func recycledSize(need int) int {
	for _, size := range []int{smallMessage + bufferMargin, keptBuffer} {
		if need <= size {
			return size
		}
	}
	return need
}

// verify opens what is about to be stored and compares it with what it was made of: a defect of memory or of a library
// is found while the content still exists.
func (s *sealer) verify(sealed, plain []byte, packed bool, framing []byte) error {
	stream, ciphertext, err := s.box.authenticate(sealed)
	if err != nil {
		return err
	}
	content := &opening{stream, ciphertext}
	for _, want := range framing {
		var got [1]byte
		if _, err := content.Read(got[:]); err != nil || got[0] != want {
			return fmt.Errorf("it opens to another framing: %w", ErrDamaged)
		}
	}
	switch {
	case !packed:
		return s.compare(content, plain)
	case len(plain) > smallMessage:
		if err := s.unpack(content); err != nil {
			return err
		}
		return s.compare(s.stream, plain)
	}
	s.opened = grow(s.opened[:0], len(content.ciphertext))
	content.stream.XORKeyStream(s.opened, content.ciphertext)
	if s.unpacked, err = s.codec.decompress(s.unpacked[:0], s.opened, len(plain)); err != nil {
		return err
	}
	if !bytes.Equal(s.unpacked, plain) {
		return errOtherContent
	}
	return nil
}

var errOtherContent = fmt.Errorf("it opens to something else: %w", ErrDamaged)

// unpack makes stream decompress content.
func (s *sealer) unpack(content io.Reader) error {
	if s.stream == nil {
		var err error
		// One goroutine's decoder runs in that goroutine, so that there is nothing to stop.
		s.stream, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxChunkSize))
		if err != nil {
			return fmt.Errorf("setting up zstd: %w", err)
		}
	}
	if err := s.stream.Reset(content); err != nil {
		return fmt.Errorf("decompressing: %w: %w", ErrDamaged, err)
	}
	return nil
}

// compare reads content to its end, and fails unless it is plain.
func (s *sealer) compare(content io.Reader, plain []byte) error {
	if s.piece == nil {
		s.piece = make([]byte, pieceSize)
	}
	for {
		n, err := content.Read(s.piece)
		if n > len(plain) || !bytes.Equal(s.piece[:n], plain[:n]) {
			return errOtherContent
		}
		plain = plain[n:]
		switch {
		case errors.Is(err, io.EOF) && len(plain) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return errOtherContent
		case err != nil:
			return fmt.Errorf("opening: %w: %w", ErrDamaged, err)
		}
	}
}
