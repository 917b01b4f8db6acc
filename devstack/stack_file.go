package devstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

const (
	stackFileName    = "stack.json"
	stackLockName    = "lock"
	stackFileVersion = 1
)

// StackFile describes a stack that runs: what its children and the command need in order to find everything. It lies
// in the stack's directory as stack.json, mode 0600, since it holds the codec endpoint's token. The keys themselves
// are in files of their own.
type StackFile struct {
	Version int       `json:"version"`
	PID     int       `json:"pid"`     // of the process that runs the stack
	Started time.Time `json:"started"` // when that began
	DataDir string    `json:"data_dir"`

	TemporalAddress string `json:"temporal_address"` // host:port
	Namespace       string `json:"namespace"`
	UIURL           string `json:"ui_url,omitempty"` // Temporal's Web UI

	CodecKey      string `json:"codec_key"`                // path of the payload codec's key
	CodecEndpoint string `json:"codec_endpoint,omitempty"` // where the Web UI decodes payloads
	CodecToken    string `json:"codec_token,omitempty"`    // what that endpoint asks for
	MasterKey     string `json:"master_key"`               // URL for keys.OpenMaster; for the control worker and operators only
	// ControlRecipient is the control side's public key. It is empty until SetControlRecipient is told.
	ControlRecipient string `json:"control_recipient,omitempty"`

	Stores      []string `json:"stores"` // provider URLs of the policy, in the order in which they are read
	Policy      string   `json:"policy"`
	GCSEndpoint string   `json:"gcs_endpoint,omitempty"` // where gs:// is, if not at Google
	DNS         []string `json:"dns,omitempty"`          // servers that storage names are asked of, host:port

	Engine string   `json:"engine,omitempty"` // docker or process; empty lets the agents choose
	Nodes  []string `json:"nodes"`
	// Metrics are loopback addresses, host:port, on which the roles may serve metrics, by "control" and the names of nodes.
	Metrics map[string]string `json:"metrics,omitempty"`
}

// LoginURL is what a person opens once so that the Web UI may decode payloads; empty when there is no codec endpoint.
// It contains the token.
func (f StackFile) LoginURL() string {
	if f.CodecEndpoint == "" {
		return ""
	}
	return f.CodecEndpoint + "/login?token=" + f.CodecToken
}

// ErrNoStack means that no stack runs on the directory. Such an error also is fs.ErrNotExist.
var ErrNoStack = errors.New("no one-machine stack runs")

type noStackError struct{ problem string }

func (e *noStackError) Error() string {
	return e.problem + ": start one with `holdfast dev` in another terminal, or set TEMPORAL_ADDRESS to reach another deployment"
}

func (e *noStackError) Is(target error) bool { return target == ErrNoStack || target == fs.ErrNotExist }

// LoadStack reads the description of the stack that runs on a directory. When none does, the error is ErrNoStack and
// says which case it is; a file that is damaged or of another version is another error.
func LoadStack(dir string) (StackFile, error) {
	path := filepath.Join(dir, stackFileName)
	file, err := readStackFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return StackFile{}, &noStackError{fmt.Sprintf("no one-machine stack runs on %s", dir)}
	}
	if err != nil {
		return StackFile{}, err
	}
	// The lock says whether the stack lives, however it ended.
	lives, err := isLocked(filepath.Join(dir, stackLockName))
	switch {
	case err != nil:
		return StackFile{}, fmt.Errorf("finding out whether the stack runs: %w", err)
	case !lives:
		return StackFile{}, &noStackError{fmt.Sprintf("the one-machine stack on %s, started at %s as process %d, has ended without cleaning up (was it killed?)",
			dir, file.Started.Local().Format(time.DateTime), file.PID)}
	}
	return file, nil
}

func readStackFile(path string) (StackFile, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return StackFile{}, fmt.Errorf("reading the stack's description: %w", err)
	}
	var file StackFile
	if err := json.Unmarshal(content, &file); err != nil {
		return StackFile{}, fmt.Errorf("the stack's description %s is damaged (%w): stop `holdfast dev` and start it again", path, err)
	}
	if file.Version != stackFileVersion {
		return StackFile{}, fmt.Errorf("the stack's description %s has version %d and this program reads %d: run the `holdfast` that started the stack, or stop the stack and start it with this one",
			path, file.Version, stackFileVersion)
	}
	return file, nil
}

func (f StackFile) write() error {
	content, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("describing the stack: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(f.DataDir, stackFileName), append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("describing the stack: %w", err)
	}
	return nil
}

// DefaultDir is where the one-machine stack keeps everything unless a flag says otherwise: holdfast/dev below XDG's
// state directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "holdfast", "dev"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a place for the stack: %w", err)
	}
	return filepath.Join(home, ".local", "state", "holdfast", "dev"), nil
}
