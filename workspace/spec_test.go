package workspace_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

func TestSpec(t *testing.T) {
	require.NoError(t, workspace.Spec{}.Validate())
	require.NoError(t, workspace.Spec{Image: "registry.example:5000/a/b:1@sha256:00", Volume: workspace.Volume{Kind: workspace.VolumeLocal, SizeBytes: 1},
		Environment: []string{"A", "_b9"}, StopGraceSeconds: 3600}.Validate())
	require.NoError(t, workspace.Spec{Volume: workspace.Volume{Kind: workspace.VolumeShared}}.Validate())
	for field, spec := range map[string]workspace.Spec{
		"image":       {Image: "a b"},
		"image ":      {Image: strings.Repeat("a", 256)},
		"image  ":     {Image: "a\x00"},
		"volume":      {Volume: workspace.Volume{Kind: "network"}},
		"volume size": {Volume: workspace.Volume{SizeBytes: -1}},
		"stop grace":  {StopGraceSeconds: -1},
		"stop grace ": {StopGraceSeconds: 3601},
		"environment": {Environment: []string{"A=secret"}},
	} {
		require.ErrorContains(t, spec.Validate(), strings.TrimSpace(field))
	}
}

// Secrets are checked, and no value ever gets into an error.
func TestSecrets(t *testing.T) {
	const value = "planted-secret"
	require.NoError(t, workspace.Secrets{Environment: map[string]string{"A": value}}.Validate())
	for _, secrets := range []workspace.Secrets{
		{Environment: map[string]string{"1A": value}},
		{Environment: map[string]string{"": value}},
		{Environment: map[string]string{"A-B": value}},
		{Environment: map[string]string{"A": value + "\x00"}},
		{Environment: map[string]string{"A": strings.Repeat(value, 10000)}},
		{Environment: map[string]string{strings.Repeat("A", 256): value}},
	} {
		err := secrets.Validate()
		require.Error(t, err)
		require.NotContains(t, err.Error(), value)
	}
}

func TestSource(t *testing.T) {
	for _, good := range []workspace.Source{
		{}, {Kind: workspace.SourceUpload}, {Kind: workspace.SourceGit},
		{Kind: workspace.SourceSnapshot, Workspace: "atlas"}, {Kind: workspace.SourceSnapshot, Workspace: "atlas", Snapshot: strings.Repeat("0", 64)},
	} {
		require.NoError(t, good.Validate())
	}
	for _, bad := range []workspace.Source{
		{Kind: "tape"}, {Kind: workspace.SourceSnapshot}, {Kind: workspace.SourceSnapshot, Workspace: "atlas", Snapshot: "latest"},
	} {
		require.Error(t, bad.Validate())
	}
}

func TestPath(t *testing.T) {
	for path, good := range map[string]bool{
		"": true, "/": true, "a": true, "/a/b": true, "a/../b": true,
		"..": false, "/..": false, "a/../..": false, "//a": false, "a\x00": false,
	} {
		require.Equal(t, good, workspace.ValidatePath(path) == nil, "%q", path)
	}
}
