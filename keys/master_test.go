package keys

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openLocal(t *testing.T, path string) *Master {
	t.Helper()
	url, err := LocalKeyURL(path)
	require.NoError(t, err)
	master, err := OpenMaster(context.Background(), url)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	return master
}

func newLocal(t *testing.T) *Master {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	created, err := CreateLocalKey(path)
	require.NoError(t, err)
	require.True(t, created)
	return openLocal(t, path)
}

func TestMasterRoundTrip(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "a b", "keys") // made on the way, and not only plain characters
	path := filepath.Join(dir, "master.key")
	created, err := CreateLocalKey(path)
	require.NoError(t, err)
	require.True(t, created)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 1, "no scratch file is left")

	for _, secret := range []string{"", "password", strings.Repeat("x", 10_000)} {
		wrapped, err := openLocal(t, path).Wrap(ctx, PurposeRepositoryPassword, []byte(secret))
		require.NoError(t, err)
		again := openLocal(t, path) // another process
		plain, err := again.Unwrap(ctx, PurposeRepositoryPassword, wrapped)
		require.NoError(t, err)
		require.Equal(t, secret, string(plain))
		id, err := WrappedBy(wrapped)
		require.NoError(t, err)
		require.Equal(t, again.ID(), id)
	}
}

// A key is never overwritten: that would lose all that it wrapped.
func TestCreateLocalKeyNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	var created atomic.Int64
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			mine, err := CreateLocalKey(path)
			if err != nil {
				t.Error(err)
			}
			if mine {
				created.Add(1)
			}
			// Whoever lost the race finds a whole key.
			if _, err := readLocalKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.EqualValues(t, 1, created.Load())

	for _, content := range []string{"", "something else"} {
		other := filepath.Join(t.TempDir(), "there")
		require.NoError(t, os.WriteFile(other, []byte(content), 0o600))
		made, err := CreateLocalKey(other)
		require.NoError(t, err)
		require.False(t, made)
		kept, err := os.ReadFile(other)
		require.NoError(t, err)
		require.Equal(t, content, string(kept))
	}
	dangling := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink("/nowhere/at/all", dangling))
	made, err := CreateLocalKey(dangling)
	require.NoError(t, err)
	require.False(t, made, "a link is something that is there")
}

func TestExposedKeyFilesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	_, err := CreateLocalKey(path)
	require.NoError(t, err)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o660, 0o601} {
		require.NoError(t, os.Chmod(path, mode))
		_, err = OpenMaster(context.Background(), "localkey://"+path)
		require.ErrorIs(t, err, ErrExposed, "%o", mode)
		require.ErrorContains(t, err, "chmod 600 "+path)
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		require.NoError(t, os.Chmod(path, mode))
		_, err = OpenMaster(context.Background(), "localkey://"+path)
		require.NoError(t, err)
	}
}

func TestOpenMasterErrors(t *testing.T) {
	dir := t.TempDir()
	const planted = "cGxhbnRlZC1zZWNyZXQtMDEyMzQ1Njc4OQ"
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return "localkey://" + path
	}
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for name, test := range map[string]struct{ url, want string }{
		"missing file":     {"localkey://" + filepath.Join(dir, "none"), "no such file"},
		"short key":        {write("short", planted), "32 bytes in base64"},
		"not base64":       {write("text", planted+"!!"), "32 bytes in base64"},
		"empty":            {write("empty", ""), "32 bytes in base64"},
		"huge":             {write("huge", strings.Repeat("A", maxSecretFile+1)), "larger than any key file"},
		"a directory":      {"localkey://" + dir, "not a regular file"},
		"a fifo":           {"localkey://" + fifo, "not a regular file"},
		"a host":           {"localkey://etc/master.key", "absolute"},
		"a query":          {"localkey:///a?b=c", "absolute"},
		"no scheme":        {"/etc/master.key", "no scheme"},
		"unknown scheme":   {"gcpkms://projects/p", "no driver for gcpkms://"},
		"random base64key": {"base64key://", "holds no key"},
		"bad base64key":    {"base64key://" + planted, "32 bytes"},
		"unparsable":       {"base64key://" + planted + "%zz", "cannot be parsed"},
		"control bytes":    {"base64key://" + planted + "\x01", "cannot be parsed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := OpenMaster(context.Background(), test.url)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), planted, "an error never quotes a key")
		})
	}
}

func TestUnwrapTellsFailuresApart(t *testing.T) {
	ctx := context.Background()
	mine, other := newLocal(t), newLocal(t)
	require.NotEqual(t, mine.ID(), other.ID())
	wrapped, err := mine.Wrap(ctx, PurposeControlIdentity, []byte("identity"))
	require.NoError(t, err)

	_, err = other.Unwrap(ctx, PurposeControlIdentity, wrapped)
	require.ErrorIs(t, err, ErrWrongKey)
	require.ErrorContains(t, err, mine.ID())
	require.ErrorContains(t, err, other.ID())

	// A wrapped control identity cannot pass as a repository's password.
	_, err = mine.Unwrap(ctx, PurposeRepositoryPassword, wrapped)
	require.ErrorIs(t, err, ErrWrongPurpose)
	_, err = mine.Unwrap(ctx, "", wrapped)
	require.Error(t, err)

	for i := range wrapped {
		changed := append([]byte(nil), wrapped...)
		changed[i] ^= 1
		_, err := mine.Unwrap(ctx, PurposeControlIdentity, changed)
		require.Error(t, err, "byte %d was changed", i)
	}
	for i := range wrapped {
		_, err := mine.Unwrap(ctx, PurposeControlIdentity, wrapped[:i])
		require.ErrorIs(t, err, ErrDamaged, "cut to %d bytes", i)
	}
	_, err = mine.Wrap(ctx, "", nil)
	require.Error(t, err)
	_, err = mine.Wrap(ctx, strings.Repeat("p", maxPurpose+1), nil)
	require.Error(t, err)
}

func TestBase64KeyMaster(t *testing.T) {
	ctx := context.Background()
	url := "base64key://" + base64.URLEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcde?"))
	master, err := OpenMaster(ctx, url)
	require.NoError(t, err)
	wrapped, err := master.Wrap(ctx, "p", []byte("x"))
	require.NoError(t, err)
	again, err := OpenMaster(ctx, url)
	require.NoError(t, err)
	plain, err := again.Unwrap(ctx, "p", wrapped)
	require.NoError(t, err)
	require.Equal(t, "x", string(plain))
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", master, *master, struct{ M *Master }{master}), "0123456789abcdef")
}

func TestRepositoryPasswords(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		password := NewRepositoryPassword()
		decoded, err := base64.RawURLEncoding.DecodeString(password)
		require.NoError(t, err)
		require.Len(t, decoded, 32)
		require.False(t, seen[password])
		seen[password] = true
	}
}

func FuzzUnwrap(f *testing.F) {
	ctx := context.Background()
	master, err := OpenMaster(ctx, "base64key://"+base64.URLEncoding.EncodeToString(make([]byte, 32)))
	if err != nil {
		f.Fatal(err)
	}
	wrapped, _ := master.Wrap(ctx, "p", []byte("x"))
	f.Add(wrapped)
	f.Add([]byte("hfwrap1\x00\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := master.Unwrap(ctx, "p", data); err == nil && string(data) != string(wrapped) {
			t.Fatal("accepted")
		}
		_, _ = checkPurpose("p", data)
	})
}
