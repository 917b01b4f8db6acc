package docker

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// TestClassifyPull holds messages of real engines, 20.10 to 28.
func TestClassifyPull(t *testing.T) {
	for _, test := range []struct {
		message string
		want    error
	}{
		{`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 10.255.255.53:53: no such host`, engine.ErrRegistryName},
		{`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 127.0.0.53:53: server misbehaving`, engine.ErrRegistryName},
		{`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 192.168.65.7:53: read udp 192.168.65.3:49494->192.168.65.7:53: i/o timeout`, engine.ErrRegistryName},
		{`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on [::1]:53: read udp [::1]:50512->[::1]:53: read: connection refused`, engine.ErrRegistryName},
		{`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: Temporary failure in name resolution`, engine.ErrRegistryName},
		{`failed to resolve reference "docker.io/library/debian:12": failed to do request: Head "https://registry-1.docker.io/v2/library/debian/manifests/12": dial tcp: lookup registry-1.docker.io: no such host`, engine.ErrRegistryName},
		{`Get "http://127.0.0.1:5000/v2/x/manifests/1": no basic auth credentials`, engine.ErrImageDenied},
		{`Head "https://ghcr.io/v2/x/y/manifests/1": unauthorized`, engine.ErrImageDenied},
		{`Head "https://ghcr.io/v2/x/y/manifests/1": denied`, engine.ErrImageDenied},
		{`pull access denied for nosuch/image, repository does not exist or may require 'docker login': denied: requested access to the resource is denied`, engine.ErrImageDenied},
		{`unauthorized: incorrect username or password`, engine.ErrImageDenied},
		{`failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://ghcr.io/token: 403 Forbidden`, engine.ErrImageDenied},
		{`manifest for debian:nosuch not found: manifest unknown: manifest unknown`, engine.ErrImageNotFound},
		{`manifest unknown: manifest unknown`, engine.ErrImageNotFound},
		{`name unknown: repository name not known to registry`, engine.ErrImageNotFound},
		{`docker.io/library/debian:nosuch: not found`, engine.ErrImageNotFound},
		{`no matching manifest for linux/riscv64 in the manifest list entries`, engine.ErrImageNotFound},
		{`Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)`, engine.ErrRegistryTimeout},
		{`Get "https://registry-1.docker.io/v2/": context deadline exceeded`, engine.ErrRegistryTimeout},
		{`Get "https://registry-1.docker.io/v2/": net/http: TLS handshake timeout`, engine.ErrRegistryTimeout},
		{`Get "https://10.0.0.1/v2/": dial tcp 10.0.0.1:443: connect: no route to host`, engine.ErrRegistryTimeout},
		{`Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused`, engine.ErrRegistryTimeout},
		{`Get "https://registry-1.docker.io/v2/": dial tcp 44.205.64.79:443: i/o timeout`, engine.ErrRegistryTimeout},
		{`toomanyrequests: You have reached your pull rate limit.`, engine.ErrRegistryTimeout},
		{`received unexpected HTTP status: 503 Service Unavailable`, engine.ErrRegistryTimeout},
		{`Get "https://10.255.255.1/v2/": x509: cannot validate certificate for 10.255.255.1 because it doesn't contain any IP SANs`, nil},
		{`write /var/lib/docker/tmp/GetImageBlob1: no space left on device`, nil},
	} {
		cause := errors.New(test.message)
		got := classifyPull(cause, "")
		require.ErrorIs(t, got, cause, "the cause is kept")
		for _, kind := range []error{engine.ErrImageDenied, engine.ErrImageNotFound, engine.ErrRegistryName, engine.ErrRegistryTimeout} {
			require.Equal(t, kind == test.want, errors.Is(got, kind), "%s: %v", test.message, got)
		}
	}
	require.NoError(t, classifyPull(nil, ""))
	require.ErrorIs(t, classifyPull(context.Canceled, ""), context.Canceled)
	require.ErrorIs(t, classifyPull(errdefs.ErrUnauthenticated.WithMessage("x"), ""), engine.ErrImageDenied)
	require.ErrorIs(t, classifyPull(errdefs.ErrNotFound.WithMessage("x"), ""), engine.ErrImageNotFound)
	require.ErrorIs(t, classifyPull(errdefs.ErrUnavailable.WithMessage("x"), ""), engine.ErrRegistryTimeout)
	require.ErrorIs(t, classifyPull(errors.New("docker.io/denied/timeout:1: not found"), "denied/timeout"), engine.ErrImageNotFound)
}
