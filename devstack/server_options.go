package devstack

import (
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"

	"holdfast/workspace"
)

// DefaultNamespace is the Temporal namespace that Holdfast uses on one machine.
const DefaultNamespace = "holdfast"

// TemporalOptions configures StartTemporal.
type TemporalOptions struct {
	// Binary is the `temporal` program; FindTemporal finds it. Required.
	Binary string
	// Dir holds the database, whose name contains the server's version. It is made (mode 0700) when it is absent. With
	// none, a temporary directory is used and removed when the server is stopped with Close.
	Dir string
	// Namespace is made when it is absent. Default: DefaultNamespace.
	Namespace string
	// Host is the loopback address to listen on; others are refused, since the dev server lets everyone in. Default
	// 127.0.0.1.
	Host string
	// Port and UIPort are the server's and the Web UI's; 0 picks a free one, which Restart uses again.
	Port, UIPort int
	// Headless runs no Web UI.
	Headless bool
	// CodecEndpoint is what the Web UI's pages call to decode payloads (keys.CodecHandler): a URL, or a path on the Web
	// UI's own host and port. Default: none.
	CodecEndpoint string
	// SearchAttributes are registered in the namespace. Default: SearchAttributes().
	SearchAttributes map[string]enumspb.IndexedValueType
	// DynamicConfig is added to the settings that were measured; a value is JSON, as the dev server wants it.
	DynamicConfig map[string]string
	// Fast gives durability against a power cut away for speed; for tests. The death of the process loses nothing.
	Fast bool
	// Log takes what the server prints (warnings and errors, as JSON lines). Default: nowhere.
	Log io.Writer
	// Progress is told what a person should know, such as that an old database cannot be used. Default: nobody.
	Progress func(string)
	// ReadyTimeout bounds how long the server may take until it is usable. Default 60 s.
	ReadyTimeout time.Duration
	// Grace is how long Stop waits before it kills. Default 10 s.
	Grace time.Duration

	started func(*Temporal, *childRun) // told about every run that became usable
}

// SearchAttributes are those that Holdfast sets, with their types.
func SearchAttributes() map[string]enumspb.IndexedValueType {
	return map[string]enumspb.IndexedValueType{
		workspace.AttributeKind:         enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		workspace.AttributeState:        enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		workspace.AttributeCluster:      enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		workspace.AttributeOwner:        enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		workspace.AttributeLastSnapshot: enumspb.INDEXED_VALUE_TYPE_DATETIME,
	}
}

// measuredConfig are the settings without which a step of a workflow takes 135 ms instead of 21, a timer of 0.3 s takes
// 1 s, and 50 workflows at once wait seconds for each other; with one history shard there is nobody to spare.
func measuredConfig() map[string]string {
	return map[string]string{
		"history.transferProcessorMaxPollRPS":        "1000",
		"history.timerProcessorMaxPollRPS":           "1000",
		"history.visibilityProcessorMaxPollRPS":      "200",
		"history.outboundProcessorMaxPollRPS":        "200",
		"history.timerProcessorMaxTimeShift":         `"10ms"`,
		"matching.numTaskqueueReadPartitions":        "1",
		"matching.numTaskqueueWritePartitions":       "1",
		"frontend.enableServerVersionCheck":          "false", // it would report to the makers
		"frontend.enableCancelWorkerPollsOnShutdown": "true",
	}
}

func (o TemporalOptions) withDefaults() (TemporalOptions, error) {
	if o.Binary == "" {
		return o, fmt.Errorf("no temporal program was given")
	}
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if ip := net.ParseIP(o.Host); ip == nil || !ip.IsLoopback() {
		return o, fmt.Errorf("%q is not a loopback address: the dev server lets everyone in who reaches it", o.Host)
	}
	if err := o.checkPorts(); err != nil {
		return o, err
	}
	if o.SearchAttributes == nil {
		o.SearchAttributes = SearchAttributes()
	}
	if o.ReadyTimeout <= 0 {
		o.ReadyTimeout = 60 * time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o, nil
}

func (o TemporalOptions) checkPorts() error {
	for _, port := range []int{o.Port, o.UIPort} {
		if port < 0 || port > 65535 {
			return fmt.Errorf("%d is not a port: want 1 to 65535, or 0 for a free one", port)
		}
	}
	return nil
}

// arguments is the server's command line.
func (o TemporalOptions) arguments(database string, port, uiPort int) []string {
	synchronous := "NORMAL"
	if o.Fast {
		synchronous = "OFF"
	}
	args := []string{
		"server", "start-dev",
		"--ip", o.Host, "--port", strconv.Itoa(port),
		"--namespace", o.Namespace,
		"--db-filename", database,
		"--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=" + synchronous,
		"--log-level", "warn", "--log-format", "json",
	}
	if o.Headless {
		args = append(args, "--headless")
	} else {
		args = append(args, "--ui-ip", o.Host, "--ui-port", strconv.Itoa(uiPort))
		if o.CodecEndpoint != "" {
			args = append(args, "--ui-codec-endpoint", o.CodecEndpoint)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.SearchAttributes)) {
		args = append(args, "--search-attribute", name+"="+o.SearchAttributes[name].String())
	}
	config := measuredConfig()
	maps.Copy(config, o.DynamicConfig)
	for _, key := range slices.Sorted(maps.Keys(config)) {
		args = append(args, "--dynamic-config-value", key+"="+config[key])
	}
	return args
}

// environment is this process's without what would change the server: settings for clients (TEMPORAL_ADDRESS may name a
// real cluster) and for tracing (the server would send its traces out).
func (o TemporalOptions) environment() []string {
	var env []string
	for _, setting := range os.Environ() {
		if !strings.HasPrefix(setting, "TEMPORAL_") && !strings.HasPrefix(setting, "OTEL_") {
			env = append(env, setting)
		}
	}
	return append(env, "TEMPORAL_VERSION_CHECK_DISABLED=1")
}
