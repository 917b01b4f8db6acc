package keys

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
)

func newNode(t *testing.T) *NodeIdentity {
	t.Helper()
	node, err := LoadOrCreateNodeIdentity(filepath.Join(t.TempDir(), "identity"))
	require.NoError(t, err)
	return node
}

func TestNodeIdentityIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node", "identity")
	first, err := LoadOrCreateNodeIdentity(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	second, err := LoadOrCreateNodeIdentity(path)
	require.NoError(t, err)
	require.Equal(t, first.Recipient(), second.Recipient())
	require.True(t, strings.HasPrefix(first.Recipient(), "age1"))
	sealed, err := SealTo(first.Recipient(), []byte("x"), "p")
	require.NoError(t, err)
	plain, err := second.Open(sealed, "p")
	require.NoError(t, err)
	require.Equal(t, "x", string(plain))

	require.NoError(t, os.Chmod(path, 0o640))
	_, err = LoadOrCreateNodeIdentity(path)
	require.ErrorIs(t, err, ErrExposed)
}

// A damaged identity is said and kept: something may still be sealed to it.
func TestDamagedNodeIdentityIsNotReplaced(t *testing.T) {
	whole := newNode(t).identity().String()
	for _, content := range []string{"", "# only a comment\n", whole[:len(whole)-1], whole + "\n" + whole} {
		path := filepath.Join(t.TempDir(), "identity")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := LoadOrCreateNodeIdentity(path)
		require.Error(t, err)
		require.NotContains(t, err.Error(), whole[:30])
		kept, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, content, string(kept))
	}
}

func TestSealIsForOneNodeAndOnePurpose(t *testing.T) {
	mine, other := newNode(t), newNode(t)
	sealed, err := SealTo(mine.Recipient(), []byte("password"), PurposeRepositoryPassword)
	require.NoError(t, err)
	plain, err := mine.Open(sealed, PurposeRepositoryPassword)
	require.NoError(t, err)
	require.Equal(t, "password", string(plain))

	_, err = other.Open(sealed, PurposeRepositoryPassword)
	require.ErrorIs(t, err, ErrNotForThisNode)
	_, err = mine.Open(sealed, PurposeWorkspaceSecrets)
	require.ErrorIs(t, err, ErrWrongPurpose)
	for i := range sealed {
		if _, err := mine.Open(sealed[:i], PurposeRepositoryPassword); err == nil {
			t.Fatalf("cut to %d bytes and still opened", i)
		}
		changed := append([]byte(nil), sealed...)
		changed[i] ^= 1
		if _, err := mine.Open(changed, PurposeRepositoryPassword); err == nil {
			t.Fatalf("byte %d changed and still opened", i)
		}
	}
	_, err = mine.Open([]byte("nonsense"), "p")
	require.ErrorIs(t, err, ErrDamaged)
	_, err = SealTo("age1nonsense", nil, "p")
	require.Error(t, err)
	_, err = SealTo(mine.Recipient(), make([]byte, maxSealed), "p")
	require.Error(t, err)
}

func TestControlIdentity(t *testing.T) {
	ctx := context.Background()
	master := newLocal(t)
	control, err := NewControl()
	require.NoError(t, err)
	wrapped, err := control.MarshalWrapped(ctx, master)
	require.NoError(t, err)
	again, err := OpenControl(ctx, master, wrapped) // another control worker
	require.NoError(t, err)
	require.Equal(t, control.Recipient(), again.Recipient())
	require.Equal(t, control.VerifyKey(), again.VerifyKey())

	sealed, err := SealTo(control.Recipient(), []byte("KEY=value"), PurposeWorkspaceSecrets)
	require.NoError(t, err)
	plain, err := again.Open(sealed, PurposeWorkspaceSecrets)
	require.NoError(t, err)
	require.Equal(t, "KEY=value", string(plain))

	claims := dataport.Claims{WorkspaceID: "w", Node: "n", Verb: dataport.VerbLogs, Subject: "s", Expires: time.Now().Add(time.Minute)}
	token, err := control.Sign(claims)
	require.NoError(t, err)
	got, err := dataport.Verify(again.VerifyKey(), token, time.Now())
	require.NoError(t, err)
	require.Equal(t, "w", got.WorkspaceID)

	_, err = OpenControl(ctx, newLocal(t), wrapped)
	require.ErrorIs(t, err, ErrWrongKey)
	password, err := master.Wrap(ctx, PurposeRepositoryPassword, []byte("x"))
	require.NoError(t, err)
	_, err = OpenControl(ctx, master, password)
	require.ErrorIs(t, err, ErrWrongPurpose)
	for _, content := range []string{"", "{}", `{"version":2}`, `{"version":1,"age":"planted-secret"}`} {
		bad, err := master.Wrap(ctx, PurposeControlIdentity, []byte(content))
		require.NoError(t, err)
		_, err = OpenControl(ctx, master, bad)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "planted-secret")
	}
}

// No format of any verb shows a secret, also from inside other structs.
func TestFormatsHideSecrets(t *testing.T) {
	node := newNode(t)
	masterKey := [32]byte([]byte("planted master key, 32 bytes lon"))
	master := newLocalMaster(masterKey)
	control, err := NewControl()
	require.NoError(t, err)
	key := NewCodecKey()
	codec, err := NewCodec(key)
	require.NoError(t, err)
	raw := key.secret()
	secrets := []string{string(masterKey[:8]), node.identity().String(), control.identity().String()}
	for _, raw := range [][]byte{control.signing().Seed(), control.signing(), raw[:], masterKey[:]} {
		secrets = append(secrets, fmt.Sprint(raw[:8])[1:20], fmt.Sprintf("%x", raw[:8]), base64.StdEncoding.EncodeToString(raw)[:20],
			strings.Trim(fmt.Sprintf("%#v", raw[:4]), "[]byte{}"))
	}
	type outer struct {
		m *Master
		n *NodeIdentity
		c *Control
		k CodecKey
	}
	for _, value := range []any{master, node, control, key, &key, codec, []any{master, node, control, key},
		outer{master, node, control, key}, &outer{master, node, control, key}, struct {
			M Master
			m Master
			N NodeIdentity
			C Control
			n NodeIdentity
			c Control
		}{*master, *master, *node, *control, *node, *control}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			text := fmt.Sprintf(verb, value)
			for _, secret := range secrets {
				require.NotContains(t, text, secret, "%s of %T", verb, value)
			}
		}
	}
}
