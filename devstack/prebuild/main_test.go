package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/devstack/s3gateway"
	"holdfast/devstack/stockrestic"
)

// program is what stands in for a Temporal that can run the dev server, and for whatever is built.
const program = `#!/bin/sh
case "$1" in
--version) echo "temporal version 9.9.9 (Server 1.2.3, UI 4.5.6)" ;;
*) echo "--db-filename --sqlite-pragma --search-attribute --dynamic-config-value --ui-ip --headless --namespace" ;;
esac
`

// compiler stands in for Go.
const compiler = `#!/bin/sh
[ "$1" = build ] || exit 0
while [ "$1" != -o ]; do shift; done
cp "$(dirname "$0")/temporal" "$2"
`

// What was built before is what is found afterwards by those who need it, without a Go command.
func TestPrebuild(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	write := func(name, text string) string {
		path := filepath.Join(bin, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
		return path
	}
	write("temporal", program)
	write("go", compiler)
	var out, progress bytes.Buffer
	require.NoError(t, run(t.Context(), &out, &progress))
	require.Contains(t, progress.String(), "building versitygw")

	write("go", "#!/bin/sh\nexit 1\n")
	temporal, err := devstack.FindTemporal(t.Context(), devstack.FindOptions{NoDownload: true})
	require.NoError(t, err)
	gateway, err := s3gateway.Build(t.Context(), &progress)
	require.NoError(t, err)
	restic, err := stockrestic.Build(t.Context(), &progress)
	require.NoError(t, err)
	require.Equal(t, temporal+"\n"+gateway+"\n"+restic+"\n", out.String())

	// One that cannot be had is an error, with the reason.
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	require.ErrorContains(t, run(t.Context(), &out, &progress), "building versitygw")
}
