package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"

	"holdfast/catalog"
	"holdfast/devstack"
	"holdfast/keys"
	"holdfast/storage"
	"holdfast/storage/resolver"
)

// deployment is where a deployment keeps things, for the commands that work without Temporal: an operator's settings,
// filled up from the one-machine stack's description when none of them names a store.
type deployment struct {
	settings
	stack *devstack.StackFile // nil when none runs
}

func findDeployment(s settings) (deployment, error) {
	d := deployment{settings: s}
	stack, err := devstack.LoadStack(s.StateDir)
	switch {
	case errors.Is(err, devstack.ErrNoStack):
		return d, nil
	case err != nil:
		return d, fail(exitFailed, "finding the one-machine stack: %w", err)
	}
	d.stack = &stack
	if d.CodecKey == "" {
		d.CodecKey = stack.CodecKey
	}
	if d.ControlRecipient == "" {
		d.ControlRecipient = stack.ControlRecipient
	}
	// The stores, how they are found and what opens them belong together: a mixture of two deployments is never meant.
	if len(d.Stores) == 0 {
		d.Stores = stack.Stores
		if d.Policy == "" {
			d.Policy = stack.Policy
		}
		if d.GCSEndpoint == "" {
			d.GCSEndpoint = stack.GCSEndpoint
		}
		if len(d.DNS) == 0 {
			d.DNS = stack.DNS
		}
		if d.MasterKey == "" {
			d.MasterKey = stack.MasterKey
		}
	}
	if d.Engine == "" {
		d.Engine = stack.Engine
	}
	return d, nil
}

// masterKeyURL is the master key's URL; a plain path is a local key file.
func (d deployment) masterKeyURL() (string, error) {
	switch {
	case d.MasterKey == "":
		return "", usage("the master key is not known").
			withMend("name its file or URL with --%s or HOLDFAST_MASTER_KEY; it is only on control machines and with operators", flagMasterKey)
	case strings.Contains(d.MasterKey, "://"):
		return d.MasterKey, nil
	default:
		return keys.LocalKeyURL(d.MasterKey)
	}
}

// keyFile is the path of a local key's URL; empty for every other kind.
func keyFile(masterKey string) string {
	parsed, err := url.Parse(masterKey)
	if err == nil && parsed.Scheme == keys.SchemeLocalKey && filepath.IsAbs(parsed.Path) {
		return parsed.Path
	}
	return ""
}

func (d deployment) requireStores() error {
	if len(d.Stores) == 0 {
		return usage("no store is known").
			withMend("name the policy's stores with --%s (repeatable), HOLDFAST_STORE or holdfast.yaml; `holdfast dev` has stores of its own", flagStore)
	}
	return nil
}

// openStores opens providers as the settings say, through the resolver. The returned function closes all of them.
func openStores(ctx context.Context, addresses []string, s settings) ([]storage.Provider, func(), error) {
	quiet := slog.New(slog.DiscardHandler)
	names := resolver.New(resolver.Options{Servers: s.DNS, Private: s.PrivateZones, Logger: quiet})
	var providers []storage.Provider
	closeAll := func() {
		for _, provider := range providers {
			_ = provider.Close() // only read from, or written to with the answer already given
		}
		_ = names.Close()
	}
	for _, address := range addresses {
		provider, err := storage.Open(ctx, address, storage.OpenOptions{DialContext: names.DialContext, GCSEndpoint: s.GCSEndpoint, CAFile: s.CAFile, Logger: quiet})
		if err != nil {
			closeAll()
			return nil, nil, explainStore(address, err)
		}
		providers = append(providers, provider)
	}
	return providers, closeAll, nil
}

// openCatalog opens the deployment's catalog.
func (d deployment) openCatalog(ctx context.Context) (*catalog.Catalog, func(), error) {
	if err := d.requireStores(); err != nil {
		return nil, nil, err
	}
	policy, err := d.policy()
	if err != nil {
		return nil, nil, err
	}
	providers, closeAll, err := openStores(ctx, d.Stores, d.settings)
	if err != nil {
		return nil, nil, err
	}
	return catalog.New(providers, policy), closeAll, nil
}

func (d deployment) policy() (storage.Policy, error) {
	text := d.Policy
	if text == "" {
		text = storage.PolicyAny.String()
	}
	policy, err := storage.ParsePolicy(text)
	if err != nil {
		return policy, usage("--%s: %w", flagPolicy, err)
	}
	return policy, nil
}

// explainStore turns an object store's error into a failure with its mend.
func explainStore(address string, err error) *failure {
	var known *failure
	if errors.As(err, &known) {
		return known
	}
	switch {
	case errors.Is(err, storage.ErrInvalid):
		f := usage("store %s: %w", address, err)
		if filepath.IsAbs(address) {
			return f.withMend("a directory is written as a URL: %s", (&url.URL{Scheme: "file", Path: address}).String())
		}
		return f.withMend("want gs://BUCKET[/PREFIX], s3://BUCKET[/PREFIX] or file:///DIRECTORY")
	case errors.Is(err, storage.ErrBucketNotFound):
		return fail(exitNotFound, "store %s: %w", address, err).withSafe("nothing was changed").
			withMend("make the bucket or directory, or mount the disk that it is on; check the address for a typing mistake")
	case errors.Is(err, storage.ErrPermission):
		return fail(exitFailed, "store %s: %w", address, err).withSafe("nothing was changed").
			withMend("check the credentials of this user and what they may do there")
	case errors.Is(err, storage.ErrNoSpace):
		return fail(exitFailed, "store %s: %w", address, err).withSafe("what was stored before is whole").withMend("make room in the store")
	default:
		return fail(exitFailed, "store %s: %w", address, err).withMend("see that the store and the network to it are up; `holdfast doctor` looks at stores and DNS servers one by one")
	}
}

// checkStoreAddress refuses what cannot be a store's address before anything is opened.
func checkStoreAddress(flag, address string) error {
	if filepath.IsAbs(address) {
		return usage("%s %s: a plain path is not a store's address", flag, address).
			withMend("a directory is written as a URL: %s", (&url.URL{Scheme: "file", Path: filepath.Clean(address)}).String())
	}
	parsed, err := url.Parse(address)
	if err != nil || parsed.Scheme == "" {
		return usage("%s %q: want gs://BUCKET[/PREFIX], s3://BUCKET[/PREFIX] or file:///DIRECTORY", flag, address)
	}
	if parsed.User != nil {
		return usage("%s: a store's address holds no credentials", flag).withMend("give them in the environment, as the cloud's own tools take them")
	}
	if parsed.Scheme == "file" && (parsed.Host != "" || parsed.Path == "") {
		return usage("%s %q: want three slashes and an absolute path, such as file:///srv/backup", flag, address)
	}
	return nil
}
