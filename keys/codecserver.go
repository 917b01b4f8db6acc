package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"go.temporal.io/sdk/converter"
)

// CodecCookie is the name of the cookie that /login sets.
const CodecCookie = "holdfast_codec"

// minCodecToken is the shortest token that is taken: it guards all payloads, and nothing limits how fast one can guess.
const minCodecToken = 20

// CodecServerOptions configures CodecHandler.
type CodecServerOptions struct {
	// AllowedOrigins are the Web UI's origins, such as "http://localhost:8233": scheme, host and port, no path. Browsers
	// on other origins are refused.
	AllowedOrigins []string
	// Token is what a caller must show; at least 20 characters.
	Token string
	// UIURL is where /login sends the browser; default: the first of AllowedOrigins. With neither it just says that it worked.
	UIURL string
	// MaxBodyBytes bounds a request; default 32 MiB (the Web UI sends a page of history at a time).
	MaxBodyBytes int64
}

func (o CodecServerOptions) applyDefaults() CodecServerOptions {
	if o.MaxBodyBytes <= 0 {
		o.MaxBodyBytes = 32 << 20
	}
	if o.UIURL == "" && len(o.AllowedOrigins) > 0 {
		o.UIURL = o.AllowedOrigins[0]
	}
	return o
}

// CodecHandler is the codec endpoint with which Temporal's Web UI and command line read and write encrypted payloads:
// POST …/encode and …/decode, as they define it. A caller shows the token as "Authorization: Bearer <token>"
// (temporal --codec-endpoint URL --codec-auth "Bearer <token>"), or has the cookie that GET /login?token=<token> sets.
//
// For the Web UI use WebUIHandler. The cookie is SameSite=Strict and holds a value derived from the token, not the
// token. Browsers send it to every port of that host: on a machine that several people share, serve this on a host name
// of its own.
func CodecHandler(codec converter.PayloadCodec, options CodecServerOptions) (http.Handler, error) {
	options = options.applyDefaults()
	if len(options.Token) < minCodecToken {
		return nil, fmt.Errorf("making the codec endpoint: its token must have at least %d characters", minCodecToken)
	}
	for _, origin := range options.AllowedOrigins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			return nil, fmt.Errorf("making the codec endpoint: %q is not an origin (scheme://host:port)", origin)
		}
	}
	if options.UIURL != "" {
		if u, err := url.Parse(options.UIURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, errors.New("making the codec endpoint: the Web UI's URL must be http or https")
		}
	}
	return &codecServer{options: options, codec: converter.NewPayloadCodecHTTPHandler(codec)}, nil
}

type codecServer struct {
	options CodecServerOptions
	codec   http.Handler
}

// ServeHTTP implements http.Handler.
func (s *codecServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// What is answered here is secret, or says who may see it: no cache may keep it, no page may embed it.
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer") // the login URL holds the token
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case r.URL.Path == "/login":
		s.login(w, r)
	case strings.HasSuffix(r.URL.Path, "/encode"), strings.HasSuffix(r.URL.Path, "/decode"):
		s.serveCodec(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *codecServer) serveCodec(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin != "" {
		// Also without CORS headers a browser would send a simple request: the origin is refused, not only not allowed.
		if !slices.Contains(s.options.AllowedOrigins, origin) {
			http.Error(w, "this origin is not allowed", http.StatusForbidden)
			return
		}
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Set("Access-Control-Allow-Credentials", "true")
	}
	switch r.Method {
	case http.MethodOptions:
		if origin == "" {
			http.Error(w, "a preflight request has an origin", http.StatusBadRequest)
			return
		}
		w.Header().Set("Access-Control-Allow-Methods", "POST, OPTIONS")
		w.Header().Set("Access-Control-Allow-Headers", "Authorization, Authorization-Extras, Content-Type, X-Namespace")
		w.Header().Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "POST, OPTIONS")
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	// A cookie counts only with an origin that was checked above: browsers always send one with such a POST.
	if !s.hasBearer(r) && !(origin != "" && s.hasCookie(r)) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "log in first: open /login?token=… of this endpoint, or send the token as a bearer", http.StatusUnauthorized)
		return
	}
	if r.ContentLength > s.options.MaxBodyBytes {
		http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, s.options.MaxBodyBytes)
	s.codec.ServeHTTP(w, r)
}

func (s *codecServer) login(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	if !sameSecret(r.URL.Query().Get("token"), s.options.Token) {
		http.Error(w, "wrong token", http.StatusUnauthorized)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name:     CodecCookie,
		Value:    s.cookieValue(),
		Path:     "/",
		HttpOnly: true,
		Secure:   r.TLS != nil,
		SameSite: http.SameSiteStrictMode,
	})
	if s.options.UIURL == "" {
		fmt.Fprintln(w, "Logged in.")
		return
	}
	http.Redirect(w, r, s.options.UIURL, http.StatusSeeOther)
}

func (s *codecServer) hasBearer(r *http.Request) bool {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return ok && strings.EqualFold(scheme, "Bearer") && sameSecret(strings.TrimSpace(token), s.options.Token)
}

func (s *codecServer) hasCookie(r *http.Request) bool {
	cookie, err := r.Cookie(CodecCookie)
	return err == nil && sameSecret(cookie.Value, s.cookieValue())
}

func (s *codecServer) cookieValue() string {
	mac := hmac.New(sha256.New, []byte(s.options.Token))
	mac.Write([]byte("holdfast codec cookie v1"))
	return hex.EncodeToString(mac.Sum(nil))
}

// sameSecret compares in a time that shows neither the content nor the length.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
