package keys

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	codecToken = "planted-codec-token-0123456789"
	uiOrigin   = "http://localhost:8233"
)

func codecEndpoint(t *testing.T, adjust func(*CodecServerOptions)) (*httptest.Server, converter.PayloadCodec) {
	t.Helper()
	codec := newCodec(t, NewCodecKey())
	options := CodecServerOptions{AllowedOrigins: []string{uiOrigin}, Token: codecToken}
	if adjust != nil {
		adjust(&options)
	}
	handler, err := CodecHandler(codec, options)
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server, codec
}

// ask sends what Temporal's Web UI and command line send.
func ask(t *testing.T, client *http.Client, url string, payloads []*commonpb.Payload, header map[string]string) (int, []*commonpb.Payload, http.Header) {
	t.Helper()
	body, err := protojson.Marshal(&commonpb.Payloads{Payloads: payloads})
	require.NoError(t, err)
	request, err := http.NewRequest(http.MethodPost, url, strings.NewReader(string(body)))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Namespace", "default")
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NotContains(t, string(answer), codecToken)
	if response.StatusCode != http.StatusOK {
		return response.StatusCode, nil, response.Header
	}
	var out commonpb.Payloads
	require.NoError(t, protojson.Unmarshal(answer, &out))
	return response.StatusCode, out.Payloads, response.Header
}

func plainPayload() []*commonpb.Payload {
	return []*commonpb.Payload{{Metadata: map[string][]byte{"encoding": []byte("json/plain")}, Data: []byte(`{"a":1}`)}}
}

func TestCodecEndpointWithBearer(t *testing.T) {
	server, codec := codecEndpoint(t, nil)
	bearer := map[string]string{"Authorization": "Bearer " + codecToken}
	status, encoded, header := ask(t, server.Client(), server.URL+"/encode", plainPayload(), bearer)
	require.Equal(t, 200, status)
	require.Equal(t, "no-store", header.Get("Cache-Control"))
	require.Equal(t, CodecEncoding, string(encoded[0].Metadata["encoding"]))
	_, err := codec.Decode(encoded)
	require.NoError(t, err)
	status, decoded, _ := ask(t, server.Client(), server.URL+"/any/prefix/decode", encoded, bearer)
	require.Equal(t, 200, status)
	require.Equal(t, `{"a":1}`, string(decoded[0].Data))

	// The SDK's own client, which the temporal command line uses too.
	remote := converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{
		Endpoint: server.URL,
		ModifyRequest: func(r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+codecToken)
			return nil
		}})
	out, err := remote.Decode(encoded)
	require.NoError(t, err)
	require.Equal(t, `{"a":1}`, string(out[0].Data))
}

func TestCodecEndpointRefuses(t *testing.T) {
	server, codec := codecEndpoint(t, nil)
	encoded, err := codec.Encode(plainPayload())
	require.NoError(t, err)
	for name, test := range map[string]struct {
		header map[string]string
		want   int
	}{
		"nothing":                      {nil, 401},
		"wrong token":                  {map[string]string{"Authorization": "Bearer " + codecToken + "x"}, 401},
		"part of the token":            {map[string]string{"Authorization": "Bearer " + codecToken[:10]}, 401},
		"empty token":                  {map[string]string{"Authorization": "Bearer "}, 401},
		"basic":                        {map[string]string{"Authorization": "Basic " + codecToken}, 401},
		"the token as a cookie":        {map[string]string{"Cookie": CodecCookie + "=" + codecToken, "Origin": uiOrigin}, 401},
		"wrong cookie":                 {map[string]string{"Cookie": CodecCookie + "=00", "Origin": uiOrigin}, 401},
		"other origin, right token":    {map[string]string{"Authorization": "Bearer " + codecToken, "Origin": "http://evil.example"}, 403},
		"other port of the UI's host":  {map[string]string{"Authorization": "Bearer " + codecToken, "Origin": "http://localhost:8234"}, 403},
		"null origin":                  {map[string]string{"Authorization": "Bearer " + codecToken, "Origin": "null"}, 403},
		"an origin that begins alike":  {map[string]string{"Authorization": "Bearer " + codecToken, "Origin": uiOrigin + ".evil.example"}, 403},
		"the UI's origin, right token": {map[string]string{"Authorization": "Bearer " + codecToken, "Origin": uiOrigin}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/encode", "/decode"} {
				status, _, header := ask(t, server.Client(), server.URL+path, encoded, test.header)
				require.Equal(t, test.want, status)
				if test.want == 403 {
					require.Empty(t, header.Get("Access-Control-Allow-Origin"))
				}
			}
		})
	}
}

func TestCodecLoginFromTheBrowser(t *testing.T) {
	server, codec := codecEndpoint(t, nil)
	encoded, err := codec.Encode(plainPayload())
	require.NoError(t, err)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar, Transport: server.Client().Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

	response, err := browser.Get(server.URL + "/login?token=wrong")
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, 401, response.StatusCode)
	require.Empty(t, response.Cookies())

	response, err = browser.Get(server.URL + "/login?token=" + url.QueryEscape(codecToken))
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, 303, response.StatusCode)
	require.Equal(t, uiOrigin, response.Header.Get("Location"))
	require.Equal(t, "no-referrer", response.Header.Get("Referrer-Policy"))
	cookie := response.Cookies()[0]
	require.True(t, cookie.HttpOnly)
	require.Equal(t, http.SameSiteStrictMode, cookie.SameSite)
	require.NotContains(t, cookie.Value, codecToken)

	// The UI's page asks with the cookie.
	status, decoded, header := ask(t, browser, server.URL+"/decode", encoded, map[string]string{"Origin": uiOrigin})
	require.Equal(t, 200, status)
	require.Equal(t, `{"a":1}`, string(decoded[0].Data))
	require.Equal(t, uiOrigin, header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "true", header.Get("Access-Control-Allow-Credentials"))
	require.Contains(t, header.Values("Vary"), "Origin")

	// Another page with the same cookie does not, and neither does a request without an origin.
	status, _, _ = ask(t, browser, server.URL+"/decode", encoded, map[string]string{"Origin": "http://localhost:9999"})
	require.Equal(t, 403, status)
	status, _, _ = ask(t, browser, server.URL+"/decode", encoded, nil)
	require.Equal(t, 401, status)
}

func TestCodecPreflight(t *testing.T) {
	server, _ := codecEndpoint(t, nil)
	preflight := func(origin string) *http.Response {
		request, err := http.NewRequest(http.MethodOptions, server.URL+"/decode", nil)
		require.NoError(t, err)
		if origin != "" {
			request.Header.Set("Origin", origin)
		}
		request.Header.Set("Access-Control-Request-Method", "POST")
		request.Header.Set("Access-Control-Request-Headers", "content-type,x-namespace")
		response, err := server.Client().Do(request)
		require.NoError(t, err)
		response.Body.Close()
		return response
	}
	response := preflight(uiOrigin) // a browser sends no credentials with it
	require.Equal(t, 204, response.StatusCode)
	require.Equal(t, uiOrigin, response.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "true", response.Header.Get("Access-Control-Allow-Credentials"))
	require.Contains(t, response.Header.Get("Access-Control-Allow-Methods"), "POST")
	for _, name := range []string{"Authorization", "Content-Type", "X-Namespace"} {
		require.Contains(t, response.Header.Get("Access-Control-Allow-Headers"), name)
	}
	response = preflight("http://evil.example")
	require.Equal(t, 403, response.StatusCode)
	require.Empty(t, response.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, 400, preflight("").StatusCode)
}

func TestCodecEndpointBounds(t *testing.T) {
	server, _ := codecEndpoint(t, func(o *CodecServerOptions) { o.MaxBodyBytes = 1000 })
	bearer := "Bearer " + codecToken
	for name, test := range map[string]struct {
		method, path string
		body         func() *strings.Reader
		chunked      bool
		want         int
	}{
		"too large":            {"POST", "/decode", func() *strings.Reader { return strings.NewReader(strings.Repeat(" ", 1001)) }, false, 413},
		"too large, by chunks": {"POST", "/decode", func() *strings.Reader { return strings.NewReader(strings.Repeat(" ", 1001)) }, true, 400},
		"not JSON":             {"POST", "/decode", func() *strings.Reader { return strings.NewReader("{") }, false, 400},
		"get":                  {"GET", "/decode", func() *strings.Reader { return strings.NewReader("") }, false, 405},
		"other path":           {"POST", "/", func() *strings.Reader { return strings.NewReader("") }, false, 404},
		"login by post":        {"POST", "/login", func() *strings.Reader { return strings.NewReader("") }, false, 405},
	} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequest(test.method, server.URL+test.path, test.body())
			require.NoError(t, err)
			if test.chunked {
				request.ContentLength = -1
			}
			request.Header.Set("Authorization", bearer)
			response, err := server.Client().Do(request)
			require.NoError(t, err)
			response.Body.Close()
			require.Equal(t, test.want, response.StatusCode)
		})
	}
	// A payload of another key is an error, not its ciphertext.
	foreign, err := newCodec(t, NewCodecKey()).Encode(plainPayload())
	require.NoError(t, err)
	status, _, _ := ask(t, server.Client(), server.URL+"/decode", foreign, map[string]string{"Authorization": bearer})
	require.Equal(t, 400, status)
}

func TestCodecHandlerRefusesBadOptions(t *testing.T) {
	codec := newCodec(t, NewCodecKey())
	for name, options := range map[string]CodecServerOptions{
		"no token":     {},
		"short token":  {Token: "short"},
		"star":         {Token: codecToken, AllowedOrigins: []string{"*"}},
		"with a path":  {Token: codecToken, AllowedOrigins: []string{uiOrigin + "/"}},
		"no scheme":    {Token: codecToken, AllowedOrigins: []string{"localhost:8233"}},
		"script as UI": {Token: codecToken, UIURL: "javascript:alert(1)"},
	} {
		_, err := CodecHandler(codec, options)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), codecToken)
	}
}
