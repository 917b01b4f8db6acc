package dataport

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"holdfast/engine"
)

const upgradeProtocol = "holdfast-stream/1"

const pathPrefix = "/v1/"

// serve authorises a request, upgrades its connection and runs the stream.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	verb := Verb(strings.TrimPrefix(r.URL.Path, pathPrefix))
	if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, pathPrefix) || !strings.EqualFold(r.Header.Get("Upgrade"), upgradeProtocol) {
		s.refuse(w, r, verb, fmt.Errorf("%w: this is a Holdfast data port, it speaks %s", ErrInvalid, upgradeProtocol))
		return
	}
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		s.refuse(w, r, verb, fmt.Errorf("%w: there is none", ErrUnauthorized))
		return
	}
	claims, err := s.authorise(text, verb)
	if err != nil {
		s.refuse(w, r, verb, err)
		return
	}
	done, err := s.begin()
	if err != nil {
		s.refuse(w, r, verb, err)
		return
	}
	defer done()
	if verb.changes() {
		// Last of all, so that a refusal for another reason does not use the token up.
		if err := s.used.use(claims.Nonce, claims.Expires, s.options.Now()); err != nil {
			s.refuse(w, r, verb, err)
			return
		}
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, verb, fmt.Errorf("%w: %w", ErrInternal, err))
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(s.options.timing.open))
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+upgradeProtocol+"\r\n\r\n"); err != nil {
		return
	}
	frames := &frameConn{
		conn:    conn,
		r:       buffered.Reader,
		silence: s.options.timing.open, // until the request has been read
		stall:   s.options.timing.stall,
	}
	stream := &stream{server: s, frames: frames, claims: claims, remote: r.RemoteAddr, token: text}
	stream.run()
}

func (s *Server) authorise(text string, verb Verb) (Claims, error) {
	key, ok := s.options.VerifyKey()
	if !ok {
		return Claims{}, fmt.Errorf("%w: it has not been told the control side's key yet", ErrUnavailable)
	}
	claims, err := Verify(key, text, s.options.Now())
	if err != nil {
		return Claims{}, err
	}
	return claims, claims.Permits(s.options.Node, verb)
}

// refuse answers a request that does not become a stream.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, verb Verb, err error) {
	c := codeOf(err)
	s.options.Logger.Warn("data port: refused", "verb", printable(string(verb)), "remote", r.RemoteAddr, "code", c.name)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close")
	w.WriteHeader(c.status)
	json.NewEncoder(w).Encode(RemoteError{Code: c.name, Message: printable(err.Error())})
}

// streamRequest is the payload of the request frame; the verb says which part counts.
type streamRequest struct {
	Exec     *ExecRequest       `json:"exec,omitempty"`
	Logs     *engine.LogOptions `json:"logs,omitempty"`
	Hooks    bool               `json:"hooks,omitempty"` // with Logs: what the hooks printed instead
	Download *DownloadRequest   `json:"download,omitempty"`
	Notices  bool               `json:"notices,omitempty"` // with Exec: the client takes them, as older ones do not
}

// readRequest reads and checks the request frame.
func (s *stream) readRequest() (streamRequest, error) {
	kind, payload, err := s.frames.read()
	if err != nil {
		return streamRequest{}, fmt.Errorf("%w: before its request: %w", ErrCut, err)
	}
	if kind != frameRequest {
		return streamRequest{}, fmt.Errorf("%w: the request must come first", ErrInvalid)
	}
	var request streamRequest
	if err := json.Unmarshal(payload, &request); err != nil {
		// The cause is dropped: it can quote a value.
		return streamRequest{}, fmt.Errorf("%w: the request is not JSON of the right shape", ErrInvalid)
	}
	switch s.claims.Verb {
	case VerbExec, VerbShell:
		return request, checkExec(s.claims.Verb, request.Exec)
	case VerbLogs:
		if request.Logs == nil || request.Logs.Tail < 0 {
			return request, fmt.Errorf("%w: lines to show are 0 (all) or more", ErrInvalid)
		}
	case VerbDownload:
		if request.Download == nil {
			return request, fmt.Errorf("%w: nothing to download is named", ErrInvalid)
		}
		request.Download.Path, err = narrow(s.claims.Path, request.Download.Path)
		return request, err
	}
	return request, nil
}

func checkExec(verb Verb, request *ExecRequest) error {
	if request == nil || (verb == VerbExec && len(request.Command) == 0) {
		return fmt.Errorf("%w: there is no command", ErrInvalid)
	}
	for _, argument := range request.Command {
		if strings.ContainsRune(argument, 0) {
			return fmt.Errorf("%w: an argument holds a zero byte", ErrInvalid)
		}
	}
	for name, value := range request.Environment {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("%w: a variable has a name that cannot be set", ErrInvalid)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("%w: the value of variable %q holds a zero byte", ErrInvalid, name)
		}
	}
	return nil
}

// narrow returns the path that a download gives: what was asked for, within what is permitted.
func narrow(permitted, asked string) (string, error) {
	permitted, err := cleanPath(permitted)
	if err != nil {
		return "", err
	}
	asked, err = cleanPath(asked)
	if err != nil {
		return "", err
	}
	switch {
	case asked == "":
		return permitted, nil
	case permitted == "", asked == permitted, strings.HasPrefix(asked, permitted+"/"):
		return asked, nil
	}
	return "", fmt.Errorf("%w: the token permits %q only", ErrForbidden, permitted)
}

// cleanPath makes a relative path of the content canonical; "" is the content itself.
func cleanPath(p string) (string, error) {
	if strings.ContainsRune(p, 0) || strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("%w: a path is relative to the content", ErrInvalid)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: a path cannot go up with \"..\"", ErrInvalid)
		}
	}
	if p = path.Clean(p); p == "." {
		return "", nil
	}
	return p, nil
}

// closeWrite says that nothing more will be sent, and leaves reading open.
func closeWrite(conn any) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the peer may be gone, and then there is nobody to tell
	}
}
