package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"

	"holdfast/devstack"
)

// settings is holdfast.yaml: what flags and HOLDFAST_* variables do not say. Every field has a flag or a variable of
// the same name. Connection settings for Temporal are Temporal's own (TEMPORAL_* variables and its profiles).
type settings struct {
	StateDir         string   `yaml:"state_dir"`         // where `holdfast dev` keeps everything
	CodecKey         string   `yaml:"codec_key"`         // path of the payload codec's key file
	ControlRecipient string   `yaml:"control_recipient"` // the control side's public key, to which secrets are sealed
	Owner            string   `yaml:"owner"`             // whose workspaces are made, and who asks
	Stores           []string `yaml:"stores"`            // the providers of the policy, for doctor, key and the control worker
	Policy           string   `yaml:"policy"`            // any, all or quorum N
	MasterKey        string   `yaml:"master_key"`        // a key file's path or a gocloud.dev/secrets URL
	DNS              []string `yaml:"dns"`               // DNS servers that storage names are asked of
	PrivateZones     []string `yaml:"private_zones"`     // zones that public DNS servers are never asked about
	GCSEndpoint      string   `yaml:"gcs_endpoint"`      // where gs:// is, if not at Google
	CAFile           string   `yaml:"ca_file"`           // PEM file of authorities that are trusted of stores beside the system's
	Engine           string   `yaml:"engine"`            // auto, docker or process
	DoubleWrite      *int     `yaml:"double_write"`      // percentage of workspaces whose snapshots are written to all stores
	MetricsAddress   string   `yaml:"metrics_address"`   // host:port on which a worker serves /metrics; empty: none
	SharedVolumes    string   `yaml:"shared_volumes"`    // where a node has a directory that several nodes mount
	PauseAfter       string   `yaml:"pause_after"`       // how long a node may reach nothing before it pauses its workspaces
	SnapshotEvery    string   `yaml:"snapshot_every"`    // how often new workspaces are snapshotted while they run, or off
}

// Names of the global flags that settings come from.
const (
	flagConfig            = "config"
	flagStateDir          = "state-dir"
	flagCodecKey          = "codec-key"
	flagControlRecipient  = "control-recipient"
	flagStore             = "store"
	flagPolicy            = "policy"
	flagMasterKey         = "master-key"
	flagDNS               = "dns"
	flagGCSEndpoint       = "gcs-endpoint"
	flagCAFile            = "ca-file"
	flagOwner             = "owner"
	flagTemporalAddress   = "temporal-address"
	flagTemporalNamespace = "temporal-namespace"
	flagTemporalProfile   = "temporal-profile"
	flagMetricsAddress    = "metrics-address"
	flagDoubleWrite       = "double-write"
	flagPauseAfter        = "pause-after"
	flagVersion           = "version"
	flagSharedVolumes     = "shared-volumes"
)

// globalFlags stand before the command's name.
func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagConfig, EnvVars: []string{"HOLDFAST_CONFIG"}, Usage: "settings `FILE` (default: ./holdfast.yaml, then holdfast/holdfast.yaml of your configuration directory)"},
		&cli.StringFlag{Name: flagStateDir, EnvVars: []string{"HOLDFAST_STATE_DIR"}, Usage: "`DIR` of the one-machine stack"},
		&cli.StringFlag{Name: flagTemporalAddress, Usage: "`HOST:PORT` of Temporal (default: TEMPORAL_ADDRESS, else the stack's)"},
		&cli.StringFlag{Name: flagTemporalNamespace, Usage: "Temporal `NAMESPACE` (default: TEMPORAL_NAMESPACE, else the stack's)"},
		&cli.StringFlag{Name: flagTemporalProfile, Usage: "Temporal client `PROFILE` (default: TEMPORAL_PROFILE)"},
		&cli.StringFlag{Name: flagCodecKey, EnvVars: []string{"HOLDFAST_CODEC_KEY"}, Usage: "key `FILE` of the payload codec (default: the stack's)"},
		&cli.StringFlag{Name: flagControlRecipient, EnvVars: []string{"HOLDFAST_CONTROL_RECIPIENT"}, Usage: "the control side's public `KEY` (default: the stack's)"},
		&cli.StringSliceFlag{Name: flagStore, EnvVars: []string{"HOLDFAST_STORE"}, Usage: "provider `URL` of the policy, repeatable; a list in the variable (default: the stack's)"},
		&cli.StringFlag{Name: flagPolicy, EnvVars: []string{"HOLDFAST_POLICY"}, Usage: "`POLICY` of the stores: any, all or quorum N (default: the stack's)"},
		&cli.StringFlag{Name: flagMasterKey, EnvVars: []string{"HOLDFAST_MASTER_KEY"}, Usage: "master key `FILE` or URL, for operators (default: the stack's)"},
		&cli.StringSliceFlag{Name: flagDNS, EnvVars: []string{"HOLDFAST_DNS"}, Usage: "DNS `SERVER` that storage names are asked of, repeatable; a list in the variable (default: the stack's, else the system's and public ones)"},
		&cli.StringFlag{Name: flagGCSEndpoint, EnvVars: []string{"HOLDFAST_GCS_ENDPOINT"}, Usage: "`URL` of gs://, if not at Google"},
		&cli.StringFlag{Name: flagCAFile, EnvVars: []string{"HOLDFAST_CA_FILE"}, Usage: "PEM `FILE` of certificate authorities that are trusted of stores beside the system's"},
	}
}

// loadSettings reads holdfast.yaml and lays variables and flags over it.
func loadSettings(c *cli.Context) (settings, error) {
	var s settings
	path, named := c.String(flagConfig), c.String(flagConfig) != ""
	if !named {
		path = defaultSettingsFile()
	}
	if path != "" {
		data, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !named:
		case err != nil:
			return s, usage("reading settings: %w", err)
		default:
			decoder := yaml.NewDecoder(bytes.NewReader(data))
			decoder.KnownFields(true) // a misspelled setting must not be a silent default
			if err := decoder.Decode(&s); err != nil && !errors.Is(err, io.EOF) {
				return s, usage("settings %s: %w", path, err)
			}
		}
	}
	for name, field := range map[string]*string{
		flagStateDir: &s.StateDir, flagCodecKey: &s.CodecKey, flagControlRecipient: &s.ControlRecipient,
		flagPolicy: &s.Policy, flagMasterKey: &s.MasterKey, flagOwner: &s.Owner, flagGCSEndpoint: &s.GCSEndpoint, flagCAFile: &s.CAFile,
	} {
		if c.IsSet(name) {
			*field = c.String(name)
		}
	}
	if c.IsSet(flagStore) {
		s.Stores = splitLists(c.StringSlice(flagStore))
	}
	if c.IsSet(flagDNS) {
		s.DNS = splitLists(c.StringSlice(flagDNS))
	}
	if s.Owner == "" {
		s.Owner = os.Getenv("HOLDFAST_OWNER")
	}
	if every := os.Getenv("HOLDFAST_SNAPSHOT_EVERY"); every != "" {
		s.SnapshotEvery = every
	}
	if s.Owner == "" {
		s.Owner = currentUser()
	}
	if s.StateDir == "" {
		dir, err := devstack.DefaultDir()
		if err != nil {
			return s, usage("finding the state directory: %w", err).withMend("name one with --%s", flagStateDir)
		}
		s.StateDir = dir
	}
	return s, nil
}

// splitLists lets one variable hold several items, separated by commas or spaces; none of these items contains any.
func splitLists(items []string) []string {
	var all []string
	for _, item := range items {
		all = append(all, strings.FieldsFunc(item, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return all
}

func defaultSettingsFile() string {
	if _, err := os.Stat("holdfast.yaml"); err == nil {
		return "holdfast.yaml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "holdfast", "holdfast.yaml")
}

// currentUser is who asks, for the record; the environment decides where there is no user database.
func currentUser() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	if name := os.Getenv("USER"); name != "" {
		return name
	}
	return fmt.Sprintf("uid-%d", os.Getuid())
}
