package s3gateway_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/s3gateway"
)

// progress shows in the test's log what is being built.
type progress struct{ t *testing.T }

func (p progress) Write(b []byte) (int, error) {
	p.t.Logf("%s", b)
	return len(b), nil
}

func TestGateway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // it may have to be built
	defer cancel()
	g, err := s3gateway.Start(ctx, s3gateway.Options{Root: t.TempDir(), Progress: progress{t}})
	require.NoError(t, err)
	response, err := http.Get(g.Endpoint)
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, response.StatusCode, "requests that are not signed are refused")
	_, _ = io.Copy(io.Discard, response.Body)
	require.NoError(t, response.Body.Close())
	address := g.Endpoint[len("http://"):]

	// A port in use is an error that says so, at once.
	_, err = s3gateway.Start(ctx, s3gateway.Options{Root: t.TempDir(), Address: address, Progress: progress{t}})
	require.Error(t, err)

	require.NoError(t, g.Stop())
	require.NoError(t, g.Stop())
	_, err = net.DialTimeout("tcp", address, time.Second)
	require.Error(t, err, "it still listens")
}
