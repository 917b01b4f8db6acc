package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/keys"
)

// quiet is an engine that is only closed.
type quiet struct{ engine.Engine }

func (quiet) Close() error { return nil }

// Every refusal says which setting is wrong and what to give instead.
func TestConfigErrorsNameTheFieldAndTheMend(t *testing.T) {
	good := func(t *testing.T) Config {
		return Config{Stores: []string{fileURL(t.TempDir())}, CodecKey: filepath.Join(t.TempDir(), "codec.key"), Logger: slog.New(slog.DiscardHandler)}
	}
	node := func(change func(*NodeConfig)) func(*testing.T) error {
		return func(t *testing.T) error {
			config := NodeConfig{Config: good(t), Name: "node-1", DataDir: t.TempDir(), Engine: quiet{}}
			change(&config)
			return RunNode(t.Context(), config)
		}
	}
	control := func(change func(*ControlConfig)) func(*testing.T) error {
		return func(t *testing.T) error {
			path := filepath.Join(t.TempDir(), "master.key")
			_, err := keys.CreateLocalKey(path)
			require.NoError(t, err)
			master, err := keys.LocalKeyURL(path)
			require.NoError(t, err)
			config := ControlConfig{Config: good(t), MasterKey: master}
			change(&config)
			return RunControl(t.Context(), config)
		}
	}
	for name, test := range map[string]struct {
		run  func(*testing.T) error
		says []string
	}{
		"no stores":                       {node(func(c *NodeConfig) { c.Stores = nil }), []string{"node node-1", "stores", "gs://"}},
		"no codec key":                    {node(func(c *NodeConfig) { c.CodecKey = "" }), []string{"codec key"}},
		"a bad policy":                    {node(func(c *NodeConfig) { c.Policy = "some" }), []string{"policy", "some", "quorum"}},
		"too few stores":                  {node(func(c *NodeConfig) { c.Policy = "quorum 2" }), []string{"quorum 2", "add stores"}},
		"a bad store":                     {node(func(c *NodeConfig) { c.Stores = []string{"ftp://x"} }), []string{"ftp://x"}},
		"a bad name":                      {node(func(c *NodeConfig) { c.Name = "Node 1" }), []string{"node", "a-z"}},
		"no data directory":               {node(func(c *NodeConfig) { c.DataDir = "" }), []string{"data directory", "--data-dir"}},
		"a data directory that is a file": {node(func(c *NodeConfig) { c.DataDir = "/dev/null" }), []string{"data directory", "--data-dir"}},
		"no engine":                       {node(func(c *NodeConfig) { c.Engine = nil }), []string{"engine"}},
		"a negative reserve":              {node(func(c *NodeConfig) { c.Reserve = -1 }), []string{"reserve", "-1"}},
		"a negative pause-after":          {node(func(c *NodeConfig) { c.PauseAfter = -1 }), []string{"pause after", "2m0s"}},
		"control: no stores":              {control(func(c *ControlConfig) { c.Stores = nil }), []string{"control worker", "stores"}},
		"control: no master key":          {control(func(c *ControlConfig) { c.MasterKey = "" }), []string{"control worker", "master key"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.run(t)
			require.Error(t, err)
			for _, said := range test.says {
				require.ErrorContains(t, err, said)
			}
		})
	}
}

func fileURL(dir string) string { return (&url.URL{Scheme: "file", Path: dir}).String() }

// Another master key is named, and makes no second identity.
func TestControlIdentity(t *testing.T) {
	config := Config{Stores: []string{fileURL(t.TempDir()), fileURL(t.TempDir())}, CodecKey: "x", Logger: slog.New(slog.DiscardHandler)}
	config, err := config.applyDefaults()
	require.NoError(t, err)
	d, err := open(t.Context(), config)
	require.NoError(t, err)
	defer d.close()
	_, err = ControlRecipient(t.Context(), config)
	require.Error(t, err)
	var masters [2]*keys.Master
	for i := range masters {
		path := filepath.Join(t.TempDir(), "master.key")
		_, err := keys.CreateLocalKey(path)
		require.NoError(t, err)
		url, err := keys.LocalKeyURL(path)
		require.NoError(t, err)
		masters[i], err = keys.OpenMaster(t.Context(), url)
		require.NoError(t, err)
		defer masters[i].Close()
	}
	first, err := controlIdentity(t.Context(), d.catalog, masters[0])
	require.NoError(t, err)
	again, err := controlIdentity(t.Context(), d.catalog, masters[0])
	require.NoError(t, err)
	require.Equal(t, first.Recipient(), again.Recipient())
	recipient, err := ControlRecipient(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, first.Recipient(), recipient)
	_, err = controlIdentity(t.Context(), d.catalog, masters[1])
	require.ErrorIs(t, err, keys.ErrWrongKey)
	require.ErrorContains(t, err, masters[0].ID())
}

// invariant 6: one agent at a time on a data directory; a second one waits for it, as long as its context.
func TestDataDirectoryHasOneAgent(t *testing.T) {
	dir := t.TempDir()
	logger := slog.New(slog.DiscardHandler)
	release, name, err := holdDataDir(t.Context(), dir, logger)
	require.NoError(t, err)
	require.NotEmpty(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = holdDataDir(ctx, dir, logger)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	second := make(chan error, 1)
	go func() {
		release, again, err := holdDataDir(t.Context(), dir, logger)
		if err == nil {
			release()
			if again != name {
				err = fmt.Errorf("the lock of one directory was called %s and %s", name, again)
			}
		}
		second <- err
	}()
	select {
	case <-second:
		t.Fatal("two agents have one data directory")
	case <-time.After(50 * time.Millisecond):
	}
	release()
	require.NoError(t, <-second)
	// A copy of a directory, with everything in it, is another one.
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	release, other, err := holdDataDir(t.Context(), copied, logger)
	require.NoError(t, err)
	defer release()
	require.NotEqual(t, name, other)
}
