package activities

import (
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/keys"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// invariants 6 and 8: a workspace gets its password and its repository once, whoever asks at the same time.
func TestSealMakesOnePassword(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := workspace.SealInput{WorkspaceID: id, Name: "atlas", Recipient: r.node.Identity.Recipient()}
	const callers = 6
	passwords := make(chan string, callers)
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				result, err := run(r, r.control.Seal, input)
				if err != nil { // one that met another in the middle is tried again, for as long as the other takes
					transient(t, err)
					continue
				}
				password, err := r.node.Identity.Open(result.Password, keys.PurposeRepositoryPassword)
				if err != nil {
					t.Error(err)
				}
				passwords <- string(password)
				return
			}
			t.Error("sealing never succeeded")
		})
	}
	group.Wait()
	close(passwords)
	first := <-passwords
	require.NotEmpty(t, first)
	r.secrets = append(r.secrets, first)
	for password := range passwords {
		require.Equal(t, first, password)
	}
	// Both stores hold one and the same repository.
	for _, kind := range []string{"/config", "/keys/"} {
		var objects [2][]string
		for i, inner := range r.inner {
			for _, key := range inner.Keys() {
				if strings.HasPrefix(key, workspace.RepositoryPrefix(id)+kind) {
					objects[i] = append(objects[i], key)
				}
			}
		}
		require.NotEmpty(t, objects[0], kind)
		require.Equal(t, objects[0], objects[1], kind)
	}
	repository, err := r.node.repository(t.Context(), id, mustSeal(t, r, first))
	require.NoError(t, err)
	require.NoError(t, repository.Close())
	for _, inner := range r.inner { // nothing readable lies in a store
		for _, key := range inner.Keys() {
			require.NotContains(t, string(readAll(t, inner, key)), first, key)
		}
	}
}

func mustSeal(t *testing.T, r *rig, password string) []byte {
	t.Helper()
	sealed, err := keys.SealTo(r.node.Identity.Recipient(), []byte(password), keys.PurposeRepositoryPassword)
	require.NoError(t, err)
	return sealed
}

func readAll(t *testing.T, provider storage.Provider, key string) []byte {
	t.Helper()
	body, err := provider.Get(t.Context(), key, 0, -1)
	require.NoError(t, err)
	defer body.Close()
	data, err := io.ReadAll(body)
	require.NoError(t, err)
	return data
}

// What is sealed to one node can be read by it alone.
func TestSealIsForOneNode(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.target(1)
	other, err := keys.LoadOrCreateNodeIdentity(filepath.Join(t.TempDir(), "node.key"))
	require.NoError(t, err)
	_, err = other.Open(r.sealed.Password, keys.PurposeRepositoryPassword)
	require.ErrorIs(t, err, keys.ErrNotForThisNode)
	_, err = other.Open(r.sealed.Secrets, keys.PurposeWorkspaceSecrets)
	require.ErrorIs(t, err, keys.ErrNotForThisNode)
	secrets, err := r.node.secrets(r.sealed.Secrets)
	require.NoError(t, err)
	require.Equal(t, secretValue, secrets.Environment["SECRET"])
	empty, err := r.node.secrets(nil)
	require.NoError(t, err)
	require.Zero(t, empty)
}

func TestSealRefusesBadSecrets(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	for _, plain := range []string{`{"environment":{"A":"` + secretValue, `{"environment":{"1A":"` + secretValue + `"}}`, `{"environment":{"A":"` + secretValue + `\u0000"}}`} {
		sealed, err := keys.SealTo(r.control.Keys.Recipient(), []byte(plain), keys.PurposeWorkspaceSecrets)
		require.NoError(t, err)
		_, err = run(r, r.control.Seal, workspace.SealInput{WorkspaceID: id, Name: "atlas", Recipient: r.node.Identity.Recipient(), Secrets: sealed})
		typed(t, err, workspace.ErrorInvalid)
	}
	_, err := run(r, r.control.Seal, workspace.SealInput{WorkspaceID: id, Name: "atlas", Recipient: "age1nonsense"})
	require.Error(t, err)
}

// Another master key is named, and never makes a second password.
func TestSealWithAnotherMasterKey(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.target(1)
	right := r.control.Master.ID()
	r.control.Master = openMaster(t)
	_, err := run(r, r.control.Seal, workspace.SealInput{WorkspaceID: id, Name: "atlas", Recipient: r.node.Identity.Recipient()})
	typed(t, err, workspace.ErrorWrongKey)
	require.ErrorContains(t, err, right)
}

// A store that is away never leads to a second password for a repository.
func TestSealWhileAStoreIsAway(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	away(r.stores[0])
	input := workspace.SealInput{WorkspaceID: id, Name: "atlas", Recipient: r.node.Identity.Recipient()}
	_, err := run(r, r.control.Seal, input)
	transient(t, err)
	r.stores[0].Clear()
	r.target(1)
	for _, store := range r.stores {
		away(store)
		_, err := run(r, r.control.Seal, input)
		if err != nil {
			transient(t, err)
		}
		store.Clear()
	}
}

// A2, invariant 4: a new workspace begins with the newest version of another, or says that it cannot tell.
func TestSealOrigin(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	seal := workspace.SealInput{WorkspaceID: otherID, Name: "borealis", Recipient: r.node.Identity.Recipient(), OriginName: "atlas"}
	result, err := run(r, r.control.Seal, seal)
	require.NoError(t, err)
	require.Equal(t, id, result.OriginID)
	require.Equal(t, input.Snapshot, result.OriginSnapshot)
	prepared, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{
		Target: workspace.Target{WorkspaceID: otherID, Name: "borealis", Token: 1, Sealed: result.Password}, Source: workspace.Source{Kind: workspace.SourceSnapshot},
		OriginID: result.OriginID, OriginPassword: result.OriginPassword, Snapshot: result.OriginSnapshot,
	})
	require.NoError(t, err)
	require.Equal(t, input.Snapshot, prepared.Restored.Snapshot)
	require.FileExists(t, filepath.Join(r.node.Volumes.content(otherID, 1), "notes.txt"))

	named := seal
	named.OriginSnapshot = strings.Repeat("1", 64)
	result, err = run(r, r.control.Seal, named)
	require.NoError(t, err)
	require.Equal(t, named.OriginSnapshot, result.OriginSnapshot)

	instances := func(key string) bool { return strings.Contains(key, "/instances/") }
	r.stores[1].Inject(faulty.Rule{Op: faulty.List, Match: instances, Kind: faulty.Error})
	_, err = run(r, r.control.Seal, seal)
	transient(t, err)
	r.stores[1].Clear()
	seal.OriginName = "nobody"
	_, err = run(r, r.control.Seal, seal)
	typed(t, err, workspace.ErrorNotFound)
}
