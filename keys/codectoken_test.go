package keys

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCodecTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "token")
	token, err := LoadOrCreateCodecToken(path)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(token), minCodecToken)
	again, err := LoadOrCreateCodecToken(path)
	require.NoError(t, err)
	require.Equal(t, token, again)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, os.Chmod(path, 0o644))
	_, err = LoadOrCreateCodecToken(path)
	require.ErrorIs(t, err, ErrExposed)
	short := filepath.Join(t.TempDir(), "short")
	require.NoError(t, os.WriteFile(short, []byte("guess\n"), 0o600))
	_, err = LoadOrCreateCodecToken(short)
	require.ErrorContains(t, err, "at least 20 characters")
}
