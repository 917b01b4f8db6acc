package dataport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func frameBytes(kind frameType, size uint32, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(kind)}, size), payload...)
}

// A frame that announces more than its type may hold is refused before memory is taken for it.
func TestFrameLimits(t *testing.T) {
	for _, kind := range []frameType{frameRequest, frameInput, frameEnd, frameResize, framePing, frameBegin, frameStdout, frameStderr, frameCredit, frameResult, frameError} {
		var buffer []byte
		_, _, err := readFrame(bytes.NewReader(frameBytes(kind, uint32(kind.limit())+1, nil)), &buffer)
		require.ErrorIs(t, err, errProtocol, string(kind))
		require.Nil(t, buffer)
		_, payload, err := readFrame(bytes.NewReader(frameBytes(kind, uint32(kind.limit()), make([]byte, kind.limit()))), &buffer)
		require.NoError(t, err)
		require.Len(t, payload, kind.limit())
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frameBytes(frameStdout, 3, []byte("abc")))
	f.Add(frameBytes(frameStdout, 1<<31, []byte("abc")))
	f.Add(frameBytes(frameEnd, 0, nil))
	f.Add([]byte("o\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var buffer []byte
		for {
			kind, payload, err := readFrame(r, &buffer)
			if err != nil {
				// A clean end is told from a cut one.
				if err == io.EOF && r.Len() != 0 {
					t.Fatal("end of file before the end")
				}
				if cap(buffer) > maxRequest {
					t.Fatal("too much memory")
				}
				return
			}
			if len(payload) > kind.limit() || errors.Is(err, io.EOF) {
				t.Fatal("limit")
			}
		}
	})
}
