package devstack_test

import (
	"encoding/json"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
)

// requireWebUIDecodes does what a person's browser does: it opens the login address, comes to the namespace's workflows,
// and from there asks the codec endpoint that the Web UI names. That must be on the same origin: to another one the Web
// UI sends no cookie (seen in a browser with version 2.42).
func requireWebUIDecodes(t *testing.T, file devstack.StackFile) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar}
	do := func(method, address, body, origin string) *http.Response {
		request, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
		require.NoError(t, err)
		if origin != "" {
			request.Header.Set("Origin", origin)
		}
		response, err := browser.Do(request)
		require.NoError(t, err)
		t.Cleanup(func() { response.Body.Close() })
		return response
	}

	var settings struct{ Codec struct{ Endpoint string } }
	require.NoError(t, json.NewDecoder(do(http.MethodGet, file.UIURL+"/api/v1/settings", "", "").Body).Decode(&settings))
	require.Truef(t, strings.HasPrefix(settings.Codec.Endpoint, "/"), "%q is a path of the Web UI's own origin", settings.Codec.Endpoint)
	decode := func(origin string) int {
		return do(http.MethodPost, file.UIURL+settings.Codec.Endpoint+"/decode", `{"payloads":[]}`, origin).StatusCode
	}
	require.Equal(t, http.StatusUnauthorized, decode(file.UIURL), "before the login")
	landed := do(http.MethodGet, file.LoginURL(), "", "")
	require.Equal(t, http.StatusOK, landed.StatusCode)
	require.Equal(t, file.UIURL+"/namespaces/"+file.Namespace+"/workflows", landed.Request.URL.String())
	require.Equal(t, http.StatusOK, decode(file.UIURL))
	require.Equal(t, http.StatusOK, decode(strings.Replace(file.UIURL, "127.0.0.1", "localhost", 1)))
	require.Equal(t, http.StatusForbidden, decode("http://elsewhere.example"))
}
