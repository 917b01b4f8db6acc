package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/proto"
)

func newCodec(t *testing.T, keys ...CodecKey) converter.PayloadCodec {
	t.Helper()
	codec, err := NewCodec(keys...)
	require.NoError(t, err)
	return codec
}

func TestCodecKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "codec.key")
	_, err := LoadCodecKey(path)
	require.ErrorIs(t, err, fs.ErrNotExist, "loading alone never makes a key")
	first, err := LoadOrCreateCodecKey(path)
	require.NoError(t, err)
	second, err := LoadOrCreateCodecKey(path)
	require.NoError(t, err)
	third, err := LoadCodecKey(path)
	require.NoError(t, err)
	require.Equal(t, first.secret(), second.secret())
	require.Equal(t, first.ID(), third.ID())

	require.NoError(t, os.Chmod(path, 0o644))
	_, err = LoadOrCreateCodecKey(path)
	require.ErrorIs(t, err, ErrExposed)
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.WriteFile(path, []byte("cGxhbnRlZA=="), 0o600))
	_, err = LoadOrCreateCodecKey(path)
	require.ErrorContains(t, err, "32 bytes")
	require.NotContains(t, err.Error(), "cGxhbnRlZA")

	_, err = NewCodec()
	require.Error(t, err)
	_, err = NewCodec(first, second)
	require.Error(t, err, "the same key twice")
	_, err = NewCodec(CodecKey{})
	require.Error(t, err)
}

type message struct {
	Name   string
	Secret string
}

func TestDataConverterRoundTrip(t *testing.T) {
	dc := DataConverter(newCodec(t, NewCodecKey()))
	in := message{"api", "planted-secret"}
	payloads, err := dc.ToPayloads(in, "second", nil, []byte("raw"))
	require.NoError(t, err)
	wire, err := proto.Marshal(payloads)
	require.NoError(t, err)
	require.NotContains(t, string(wire), "planted-secret")
	require.NotContains(t, string(wire), "json/plain", "the metadata is encrypted too")
	var out message
	var second string
	var none *message
	var raw []byte
	require.NoError(t, dc.FromPayloads(payloads, &out, &second, &none, &raw))
	require.Equal(t, in, out)
	require.Equal(t, "second", second)
	require.Nil(t, none)
	require.Equal(t, "raw", string(raw))

	again, err := dc.ToPayload(in)
	require.NoError(t, err)
	require.NotEqual(t, payloads.Payloads[0].Data, again.Data, "every payload has a nonce of its own")
}

func TestCodecKeysRotate(t *testing.T) {
	old, fresh := NewCodecKey(), NewCodecKey()
	before, err := DataConverter(newCodec(t, old)).ToPayload("kept")
	require.NoError(t, err)
	rotated := DataConverter(newCodec(t, fresh, old))
	var text string
	require.NoError(t, rotated.FromPayload(before, &text))
	require.Equal(t, "kept", text)
	after, err := rotated.ToPayload("new")
	require.NoError(t, err)
	require.Equal(t, fresh.ID(), string(after.Metadata[metadataCodecKey]))

	err = DataConverter(newCodec(t, fresh)).FromPayload(before, &text)
	require.ErrorIs(t, err, ErrUnknownCodecKey)
	require.ErrorContains(t, err, old.ID())
}

func TestDecode(t *testing.T) {
	key, other := NewCodecKey(), NewCodecKey()
	codec := newCodec(t, key, other)
	plain := &commonpb.Payload{Metadata: map[string][]byte{"encoding": []byte("json/plain")}, Data: []byte(`"x"`)}

	// Written by Temporal itself or by a stock tool: as it is.
	out, err := codec.Decode([]*commonpb.Payload{plain, {}})
	require.NoError(t, err)
	require.Same(t, plain, out[0])

	encoded, err := codec.Encode([]*commonpb.Payload{plain})
	require.NoError(t, err)
	for name, spoil := range map[string]func(p *commonpb.Payload){
		"changed":       func(p *commonpb.Payload) { p.Data[len(p.Data)/2] ^= 1 },
		"cut":           func(p *commonpb.Payload) { p.Data = p.Data[:len(p.Data)-1] },
		"empty":         func(p *commonpb.Payload) { p.Data = nil },
		"not ours":      func(p *commonpb.Payload) { p.Data = []byte(`"x"`) },
		"another key":   func(p *commonpb.Payload) { p.Metadata[metadataCodecKey] = []byte(other.ID()) },
		"unknown key":   func(p *commonpb.Payload) { p.Metadata[metadataCodecKey] = []byte("0000") },
		"without a key": func(p *commonpb.Payload) { delete(p.Metadata, metadataCodecKey) },
	} {
		spoiled := proto.Clone(encoded[0]).(*commonpb.Payload)
		spoil(spoiled)
		out, err := codec.Decode([]*commonpb.Payload{spoiled})
		require.Error(t, err, name)
		require.Nil(t, out, "never passed through: %s", name)
		require.True(t, errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnknownCodecKey), name)
	}
}

// What a failure says, and where, is as secret as a payload.
func TestFailuresAreEncrypted(t *testing.T) {
	dc := DataConverter(newCodec(t, NewCodecKey()))
	fc := FailureConverter(dc)
	cause := temporal.NewApplicationError("planted-cause", "Inner", "planted-detail")
	failure := fc.ErrorToFailure(temporal.NewNonRetryableApplicationError("planted-message", "StorageDenied", cause, "planted-outer-detail"))
	wire, err := proto.Marshal(failure)
	require.NoError(t, err)
	require.NotContains(t, string(wire), "planted")
	require.NotContains(t, string(wire), "codec_test.go", "no stack trace either")
	require.NotNil(t, failure.GetEncodedAttributes())

	back := fc.FailureToError(failure)
	var application *temporal.ApplicationError
	require.ErrorAs(t, back, &application)
	require.Equal(t, "planted-message", application.Message())
	require.Equal(t, "StorageDenied", application.Type(), "retry policies name it")
	require.True(t, application.NonRetryable())
	var detail string
	require.NoError(t, application.Details(&detail))
	require.Equal(t, "planted-outer-detail", detail)
	require.ErrorContains(t, errors.Unwrap(application), "planted-cause")
}

func FuzzDecode(f *testing.F) {
	key := NewCodecKey()
	codec, err := NewCodec(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("x"), key.ID())
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		_, err := codec.Decode([]*commonpb.Payload{{
			Metadata: map[string][]byte{converter.MetadataEncoding: []byte(CodecEncoding), metadataCodecKey: []byte(id)}, Data: data}})
		if err == nil {
			t.Fatal("accepted")
		}
	})
}
