package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/activities"
)

func TestVolumeWatch(t *testing.T) {
	dir := t.TempDir()
	v := watchVolume(activities.OpenShared(dir, "node-1", "key"), dir)
	v.once()
	require.Empty(t, v.now().ID)
	require.Contains(t, v.now().Problem, "holdfast-volume.json")
	id, _, err := activities.MakeShared(dir)
	require.NoError(t, err)
	v.once()
	require.Equal(t, id, v.now().ID)
	require.Empty(t, v.now().Problem)
	require.Nil(t, (*volumeWatch)(nil).now())
}

// A mount that hangs is not announced, and holds up nobody.
func TestVolumeThatHangs(t *testing.T) {
	hangs, began := make(chan struct{}), make(chan struct{})
	v := &volumeWatch{dir: "/mnt/shared", look: func() (string, error) {
		close(began)
		<-hangs
		return "", errors.New("gone")
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := background(ctx, v.run)
	<-began
	require.Empty(t, v.now().ID)
	require.Contains(t, v.now().Problem, "does not answer")
	cancel()
	ended()
	close(hangs)
	require.Eventually(t, func() bool { return v.now().Problem == "gone" }, time.Minute, time.Millisecond)
}
