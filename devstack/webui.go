package devstack

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"

	"go.temporal.io/sdk/converter"

	"holdfast/keys"
)

// codecPath is where the Web UI's front answers for the payload codec: /codec/login, /codec/encode and /codec/decode.
const codecPath = "/codec"

// listenWebUI takes the address at which people open the Web UI. The port is the one that was asked for, or a free one.
func (s *Stack) listenWebUI() (net.Listener, error) {
	port := s.options.Temporal.UIPort
	if s.options.External != nil {
		port = 0 // that server has a Web UI of its own, elsewhere: this one only decodes
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &PortError{Purpose: "Temporal's Web UI", Address: address, Err: err}
	}
	return listener, nil
}

// serveWebUI answers on the listener: the Web UI of the stack's own server, and the codec endpoint that lets it show
// payloads. Both are one origin, since a browser then sends the login's cookie to the codec endpoint by itself. With
// two origins the Web UI asks without it: its own settings say so and a person's cannot change them, only replace them.
func (s *Stack) serveWebUI(listener net.Listener, codec converter.PayloadCodec) error {
	options := keys.CodecServerOptions{Token: s.file.CodecToken}
	mux := http.NewServeMux()
	if s.temporal != nil && s.temporal.UIURL() != "" {
		behind, err := url.Parse(s.temporal.UIURL())
		if err != nil {
			return fmt.Errorf("finding Temporal's Web UI: %w", err)
		}
		origin := "http://" + listener.Addr().String()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		options.AllowedOrigins = []string{origin, "http://localhost:" + port}
		options.UIURL = origin + "/namespaces/" + url.PathEscape(s.temporal.Namespace()) + "/workflows"
		s.file.UIURL = origin
		mux.Handle("/", webUIProxy(behind))
	}
	handler, err := keys.CodecHandler(codec, options)
	if err != nil {
		return err
	}
	mux.Handle(codecPath+"/", http.StripPrefix(codecPath, handler))
	s.webUI = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	s.watching.Go(func() {
		if err := s.webUI.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.tell(Event{Kind: EventDied, Component: "web ui", Err: err})
		}
	})
	return nil
}

// webUIProxy hands requests to the server's Web UI as the browser sent them, its Host included, which the UI compares
// with where a request came from.
func webUIProxy(behind *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(behind)
			r.Out.Host = r.In.Host
			dropCookie(r.Out, keys.CodecCookie) // what opens payloads is nothing to Temporal
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "Temporal's Web UI does not answer now; it comes back with the server: "+err.Error(), http.StatusBadGateway)
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
