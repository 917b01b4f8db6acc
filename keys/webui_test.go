package keys

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// What opens payloads stays with the codec endpoint; the server behind the Web UI's front gets the other cookies, and
// the address that the browser asked for.
func TestWebUIProxy(t *testing.T) {
	var seen *http.Request
	behind := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r }))
	address, err := url.Parse(behind.URL)
	require.NoError(t, err)
	proxy := webUIProxy(address)

	request := httptest.NewRequest(http.MethodGet, "http://localhost:8233/api/v1/settings", nil)
	request.AddCookie(&http.Cookie{Name: "_csrf", Value: "1"})
	request.AddCookie(&http.Cookie{Name: CodecCookie, Value: "secret"})
	answer := httptest.NewRecorder()
	proxy.ServeHTTP(answer, request)
	require.Equal(t, http.StatusOK, answer.Code)
	require.Equal(t, "_csrf=1", seen.Header.Get("Cookie"))
	require.Equal(t, "localhost:8233", seen.Host)

	behind.Close()
	answer = httptest.NewRecorder()
	proxy.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusBadGateway, answer.Code)
	require.Contains(t, answer.Body.String(), "does not answer now")
}
