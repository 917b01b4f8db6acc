package keys

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"

	"go.temporal.io/sdk/converter"
)

// CodecPath is where WebUIHandler answers for the codec. The Web UI's server is told this path as its codec endpoint
// (TEMPORAL_CODEC_ENDPOINT, or --ui-codec-endpoint of the dev server): without a host it is right under whatever name
// and port the Web UI was opened with.
const CodecPath = "/codec"

// WebUIHandler serves Temporal's Web UI, which is at behind, together with the codec endpoint on CodecPath, as one
// origin: a browser then sends the login's cookie to the codec endpoint by itself. Between two origins the Web UI (2.42)
// asks without it unless its server was started with TEMPORAL_CODEC_INCLUDE_CREDENTIALS=true; the switch in the
// browser's own settings counts only for an endpoint that was typed in there too. With behind nil only the codec answers.
func WebUIHandler(codec converter.PayloadCodec, options CodecServerOptions, behind *url.URL) (http.Handler, error) {
	codecHandler, err := CodecHandler(codec, options)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(CodecPath+"/", http.StripPrefix(CodecPath, codecHandler))
	if behind == nil {
		return mux, nil
	}
	if behind.Host == "" || (behind.Scheme != "http" && behind.Scheme != "https") {
		return nil, errors.New("serving the Web UI: its URL must be http or https, with a host")
	}
	mux.Handle("/", webUIProxy(behind))
	return mux, nil
}

// webUIProxy hands requests on as the browser sent them, its Host included, which the Web UI compares with where a
// request came from.
func webUIProxy(behind *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(behind)
			r.SetXForwarded()
			r.Out.Host = r.In.Host
			dropCookie(r.Out, CodecCookie) // what opens payloads is nothing to Temporal
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("Temporal's Web UI does not answer now: %v", err), http.StatusBadGateway)
		},
	}
}

func dropCookie(r *http.Request, name string) {
	cookies := r.Cookies()
	r.Header.Del("Cookie")
	for _, cookie := range cookies {
		if cookie.Name != name {
			r.AddCookie(cookie)
		}
	}
}
