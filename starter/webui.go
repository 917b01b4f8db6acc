package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/keys"
)

func (p *program) webUICommand() *cli.Command {
	return &cli.Command{
		Name: "web-ui", Usage: "serve a deployment's Temporal Web UI with its payloads decoded",
		Description: "Stands before the Web UI and answers for the payload codec on " + keys.CodecPath + " of the same address. Start Temporal's\n" +
			"Web UI with TEMPORAL_CODEC_ENDPOINT=" + keys.CodecPath + ", and open it with the login address that is printed. Who has the\n" +
			"token reads everything but what is sealed to the nodes: serve it with TLS before it, on a host name of its own.\n" +
			"`holdfast dev` has this built in.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "behind", Required: true, Usage: "`URL` of Temporal's Web UI"},
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:8233", Usage: "`ADDRESS` to serve on"},
			&cli.StringFlag{Name: "url", Usage: "`URL` under which browsers reach it (default: http:// and the address)"},
			&cli.StringFlag{Name: "token-file", Required: true, Usage: "`FILE` with the token of the login, mode 0600; made when there is none"},
		},
		Action: p.webUI,
	}
}

func (p *program) webUI(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	behind, err := url.Parse(c.String("behind"))
	if err != nil || behind.Host == "" || (behind.Scheme != "http" && behind.Scheme != "https") {
		return usage("--behind %q: want the address of Temporal's Web UI, such as http://127.0.0.1:8080", c.String("behind"))
	}
	if s.CodecKey == "" {
		return usage("the payload codec's key is not known").withMend("name the deployment's key file with --%s or HOLDFAST_CODEC_KEY", flagCodecKey)
	}
	codec, err := openCodec(s.CodecKey)
	if err != nil {
		return err
	}
	token, err := keys.LoadOrCreateCodecToken(c.String("token-file"))
	if err != nil {
		return fail(exitFailed, "--token-file: %w", err)
	}
	listener, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return fail(exitFailed, "listening for the Web UI: %w", err).withMend("choose another address with --listen")
	}
	origin := strings.TrimSuffix(c.String("url"), "/")
	if origin == "" {
		origin = "http://" + listener.Addr().String()
	}
	handler, err := keys.WebUIHandler(codec, keys.CodecServerOptions{AllowedOrigins: []string{origin}, Token: token}, behind)
	if err != nil {
		return errors.Join(usage("--url: %w", err), listener.Close())
	}
	fmt.Fprintf(p.stderr, "serving %s; log in at %s%s/login?token=… with the token in %s\n", origin, origin, keys.CodecPath, c.String("token-file"))
	return serveUntil(c.Context, &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}, listener)
}

// serveUntil serves until the context ends, and then lets requests that run finish for a moment.
func serveUntil(ctx context.Context, server *http.Server, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the Web UI: %w", err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(ending)
}
