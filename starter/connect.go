package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"

	"holdfast/devstack"
	"holdfast/keys"
	"holdfast/storage/resolver"
	"holdfast/worker"
)

// dialWithin bounds how long a person waits to hear that Temporal cannot be reached.
const dialWithin = 8 * time.Second

// newRequestID makes the id that makes a request safe to repeat.
func newRequestID() string { return uuid.NewString() }

// loadProfile is what Temporal's own variables and profiles say, with our flags over it.
func loadProfile(c *cli.Context) (envconfig.ClientConfigProfile, error) {
	profile, err := envconfig.LoadClientConfigProfile(envconfig.LoadClientConfigProfileOptions{ConfigFileProfile: c.String(flagTemporalProfile)})
	if err != nil {
		return profile, usage("reading Temporal's client configuration: %w", err)
	}
	if c.IsSet(flagTemporalAddress) {
		profile.Address = c.String(flagTemporalAddress)
	}
	if c.IsSet(flagTemporalNamespace) {
		profile.Namespace = c.String(flagTemporalNamespace)
	}
	return profile, nil
}

// profileRequest leaves a remote codec out: payloads are decoded here, with the deployment's own key.
func profileRequest() envconfig.ToClientOptionsRequest { return envconfig.ToClientOptionsRequest{} }

// temporalTarget says where Temporal is (flags, then TEMPORAL_* variables and profiles, then the one-machine stack) and
// which file holds the payload codec's key.
func temporalTarget(c *cli.Context, s settings) (target client.Options, codecKey string, err error) {
	profile, err := loadProfile(c)
	if err != nil {
		return target, "", err
	}
	codecKey = s.CodecKey
	if profile.Address == "" || codecKey == "" {
		stack, stackErr := devstack.LoadStack(s.StateDir)
		switch {
		case stackErr == nil:
			if profile.Address == "" {
				profile.Address = stack.TemporalAddress
				if profile.Namespace == "" {
					profile.Namespace = stack.Namespace
				}
			}
			if codecKey == "" {
				codecKey = stack.CodecKey
			}
		case profile.Address == "":
			if !errors.Is(stackErr, devstack.ErrNoStack) {
				return target, "", fail(exitFailed, "finding the one-machine stack: %w", stackErr)
			}
			return target, "", usage("it is not known where Temporal is: TEMPORAL_ADDRESS is not set, and no one-machine stack runs on %s", s.StateDir).
				withMend("start everything on this machine with `holdfast dev` in another terminal, or set TEMPORAL_ADDRESS (and HOLDFAST_CODEC_KEY) to a deployment's")
		}
	}
	if codecKey == "" {
		return target, "", usage("the payload codec's key is not known, without which nothing in Temporal can be read and nothing may be written").
			withMend("name the key file with --%s or HOLDFAST_CODEC_KEY; `holdfast dev` makes one for its own stack", flagCodecKey)
	}
	target, err = profile.ToClientOptions(profileRequest())
	if err != nil {
		return target, "", usage("Temporal's client configuration: %w", err)
	}
	return target, codecKey, nil
}

// clientOptions are temporalTarget's with the converters that make payloads and failures readable.
func clientOptions(c *cli.Context, s settings) (client.Options, error) {
	options, codecKey, err := temporalTarget(c, s)
	if err != nil {
		return options, err
	}
	codec, err := openCodec(codecKey)
	if err != nil {
		return options, err
	}
	options.DataConverter = keys.DataConverter(codec)
	options.FailureConverter = keys.FailureConverter(options.DataConverter)
	options.Logger = log.NewStructuredLogger(slog.New(slog.DiscardHandler))
	options.Identity = s.Owner + "@holdfast"
	return options, nil
}

func openCodec(path string) (converter.PayloadCodec, error) {
	key, err := keys.LoadCodecKey(path)
	if err != nil {
		return nil, fail(exitFailed, "reading the payload codec's key: %w", err).
			withMend("copy the key file of the deployment to this machine (mode 0600) and name it with --%s", flagCodecKey)
	}
	codec, err := keys.NewCodec(key)
	if err != nil {
		return nil, fmt.Errorf("making the payload codec: %w", err)
	}
	return codec, nil
}

// connectTemporal dials Temporal and says within seconds when it is not there.
func connectTemporal(ctx context.Context, c *cli.Context, s settings) (control, error) {
	options, err := clientOptions(c, s)
	if err != nil {
		return nil, err
	}
	d, err := findDeployment(s)
	if err != nil {
		return nil, err
	}
	names := resolver.New(resolver.Options{Servers: d.DNS, Private: d.PrivateZones, Logger: slog.New(slog.DiscardHandler)})
	dialled, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	options.ConnectionOptions.GetSystemInfoTimeout = dialWithin
	temporalClient, err := client.DialContext(dialled, worker.DialThrough(options, names.DialContext))
	if err != nil {
		_ = names.Close() // nothing was learned
		return nil, unreachable(fmt.Errorf("%s: %w", options.HostPort, err))
	}
	return &temporalControl{client: temporalClient, data: options.DataConverter, failures: options.FailureConverter, names: names}, nil
}

// stackRecipient is the control side's public key as the one-machine stack knows it; empty when it does not.
func stackRecipient(stateDir string) string {
	stack, err := devstack.LoadStack(stateDir)
	if err != nil {
		return ""
	}
	return stack.ControlRecipient
}
