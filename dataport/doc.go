// Package dataport is how bytes reach and leave a node without passing through Temporal: the agent's HTTPS endpoint
// (Server) and its client (Client), for exec, shell, logs, download and upload.
//
// Trust is built from three parts, none of which is a certificate authority:
//
//   - The server makes its own certificate; its fingerprint is announced when the node registers, and the client
//     accepts that certificate and no other. Only TLS 1.3 is spoken.
//   - Every request carries a token signed by the control side's ed25519 key. It names the workspace, the instance, the
//     node and one verb, and lives for minutes. Whoever holds it may do just that.
//   - What the node needs to answer from the object store (a repository's password) travels inside the token, sealed to
//     the node's own key, so that the client who carries it cannot read it.
//
// # Protocol
//
// A client sends GET /v1/<verb> with "Upgrade: holdfast-stream/1" and "Authorization: Bearer <token>". A refusal is an
// ordinary HTTP answer with a JSON body {"code", "message"}. After 101 both sides send frames, each a type (1 byte), a
// length (4 bytes, big endian) and that many bytes:
//
//	client → server  'q' request (JSON, once, first)   'i' input: stdin or the uploaded tar   'e' end of the input
//	                 'w' terminal size (JSON)          'p' ping
//	server → client  'b' begin (JSON, download only)   'o' stdout, log or tar bytes   '2' stderr
//	                 'c' credit: so many bytes of input may follow (4 bytes)
//	                 'n' notice (text, exec and shell only, when the request asks for them)
//	                 'r' result (JSON)   'x' error (JSON)   'p' ping
//
// A notice is for the person at the terminal and no part of what the command prints.
//
// Exactly one 'r' or 'x' ends a stream that went well or badly; a connection that ends without either was cut, and is
// always an error (ErrCut) on the side that notices, never a short success. Input is sent against credit, so that the
// server never stops reading: it notices a client that went away while a command ignores its input. Output has no
// credit: a reader that is slow slows the command down, as a pipe does. Both sides ping, so that a peer that has
// vanished without a word is noticed while nothing else is said.
package dataport
