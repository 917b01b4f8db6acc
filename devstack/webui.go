package devstack

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.temporal.io/sdk/converter"

	"holdfast/keys"
)

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

// serveWebUI answers on the listener: the Web UI of the stack's own server, and the codec that lets it show payloads.
func (s *Stack) serveWebUI(listener net.Listener, codec converter.PayloadCodec) error {
	options := keys.CodecServerOptions{Token: s.file.CodecToken}
	var behind *url.URL
	if s.temporal != nil && s.temporal.UIURL() != "" {
		var err error
		if behind, err = url.Parse(s.temporal.UIURL()); err != nil {
			return fmt.Errorf("finding Temporal's Web UI: %w", err)
		}
		origin := "http://" + listener.Addr().String()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		options.AllowedOrigins = []string{origin, "http://localhost:" + port}
		options.UIURL = origin + "/namespaces/" + url.PathEscape(s.temporal.Namespace()) + "/workflows"
		s.file.UIURL = origin
	}
	handler, err := keys.WebUIHandler(codec, options, behind)
	if err != nil {
		return err
	}
	s.webUI = &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	s.watching.Go(func() {
		if err := s.webUI.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.tell(Event{Kind: EventDied, Component: "web ui", Err: err})
		}
	})
	return nil
}
