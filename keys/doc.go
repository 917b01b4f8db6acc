// Package keys holds every secret that Holdfast makes: the master key, the repositories' passwords, the nodes' and the
// control side's identities, and the key of the Temporal payload codec.
//
// Who may read what:
//
//   - The master key (Master) wraps the control identity and the repositories' passwords. Only control workers and an
//     operator's `holdfast key` open it; no agent ever does.
//   - A repository's password is unwrapped by the control side and sealed to the one node that needs it (SealTo); only
//     that node's identity opens it (NodeIdentity.Open).
//   - The control identity (Control) opens what people send to the control side, such as environment values, and signs
//     the data port's tokens. It is kept in the catalog, wrapped by the master key.
//   - The codec key (CodecKey) keeps payloads, failure messages and stack traces unreadable in Temporal's database. It is
//     a key of its own, since every agent needs it.
//
// Whatever is wrapped or sealed carries its purpose inside, and is opened only for that purpose, so that one kind of
// secret can never be passed off as another. No type here prints its secret, in any format.
package keys

// The purposes that Holdfast's own parts wrap and seal for. A purpose is any short text; these are shared so that the
// two sides cannot spell one differently.
const (
	PurposeRepositoryPassword = "repository-password"
	PurposeControlIdentity    = "control-identity"
	PurposeWorkspaceSecrets   = "workspace secrets" // environment values and a git URL with its token
)
