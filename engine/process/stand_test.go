package process

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// What is paused and then ended where it stands writes nothing more: not a program that waits for nothing, and not what it has
// started beside itself.
func TestEndedWhereItStandsWritesNothing(t *testing.T) {
	allModes(t, func(t *testing.T, options Options) { endsWhereItStands(t, newTestEngine(t, options)) })
}

func endsWhereItStands(t *testing.T, e *Engine) {
	t.Helper()
	content := t.TempDir()
	id := startTest(t, e, engine.Spec{ContentDir: content, Command: []string{"/bin/sh", "-c",
		"(setsid sh -c 'while :; do echo y >> stray; done' &); while :; do echo x >> count; done"}})
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(content, name))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	require.Eventually(t, func() bool { return size("count") > 0 && size("stray") > 0 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, e.Pause(t.Context(), id))
	count, stray := size("count"), size("stray")
	require.NoError(t, e.Stop(t.Context(), id, engine.WhereItStands))
	require.Equal(t, count, size("count"))
	require.Equal(t, stray, size("stray"))
}
