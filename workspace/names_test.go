package workspace_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

const id = "abcdefghijklmnopqrstuvwxyz"

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "atlas": true, "a-1": true, "9": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a_b": false, "a.b": false, "a/b": false, "ä": false, "a\n": false,
		strings.Repeat("a", 64): false, "..": false,
	} {
		err := workspace.ValidateName("name", name)
		require.Equal(t, good, err == nil, "%q: %v", name, err)
		var invalid *workspace.InvalidError
		if err != nil {
			require.True(t, errors.As(err, &invalid))
			require.Equal(t, "name", invalid.Field)
		}
	}
	require.NoError(t, workspace.ValidateSnapshotID(strings.Repeat("0a", 32)))
	for _, bad := range []string{"", "0a", strings.Repeat("0A", 32), strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		require.Error(t, workspace.ValidateSnapshotID(bad), bad)
	}
}

// invariant 6: ids and tokens in names are read back exactly, or not at all.
func TestInstanceNames(t *testing.T) {
	for _, token := range []uint64{1, 9, 10, 1<<64 - 1} {
		gotID, got, err := workspace.ParseInstanceName(workspace.InstanceName(id, token))
		require.NoError(t, err)
		require.Equal(t, id, gotID)
		require.Equal(t, token, got)
	}
	for _, bad := range []string{
		"", id, id + ".", id + ".0", id + ".01", id + ".+1", id + ".-1", id + ".1 ", id + ".1.2", "." + id, "x.1",
		strings.ToUpper(id) + ".1", id + ".18446744073709551616", "../" + id + ".1",
	} {
		_, _, err := workspace.ParseInstanceName(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseInstanceName(f *testing.F) {
	f.Add(id + ".1")
	f.Add("..1")
	f.Fuzz(func(t *testing.T, name string) {
		gotID, token, err := workspace.ParseInstanceName(name)
		if err == nil && (workspace.InstanceName(gotID, token) != name || strings.ContainsAny(name, "/\\\x00")) {
			t.Fatalf("%q was read as %s and %d", name, gotID, token)
		}
	})
}

func TestNewID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		made := workspace.NewID()
		require.NoError(t, workspace.ValidateID(made))
		require.False(t, seen[made])
		seen[made] = true
	}
	require.Error(t, workspace.ValidateID("atlas"))
}

// Everything that is derived from a name or an id is its own, whatever the others are.
func TestDerivedNamesDiffer(t *testing.T) {
	require.NotEqual(t, workspace.NodeQueue("a"), workspace.LeaseQueue("a"))
	require.NotEqual(t, workspace.NodeQueue("control"), workspace.ControlQueue)
	require.NotEqual(t, workspace.WorkflowID("a"), workspace.NodeWorkflowID("a"))
	require.Equal(t, "workspaces/"+id, workspace.RepositoryPrefix(id))
}
