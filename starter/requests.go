package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"holdfast/keys"
	"holdfast/workspace"
)

// startPlan is `holdfast start` as read from flags.
type startPlan struct {
	request workspace.StartRequest
	spec    workspace.Spec
	secrets workspace.Secrets
	// describes is set when flags say what the workspace is made of, which only a new one takes (and an image any).
	describes []string
	image     bool
	// policies are how flags change the way it is looked after, which a stopped one takes too.
	policies []func(*workspace.Spec)
	fromDir  string // absolute
}

func startFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "image", Usage: "container `IMAGE` (default: the engine's)"},
		&cli.StringFlag{Name: "from-dir", Usage: "begin with the content of this `DIR`"},
		&cli.StringFlag{Name: "from-git", Usage: "begin with a clone of this git `URL`"},
		&cli.StringFlag{Name: "from-snapshot", Usage: "begin with another workspace's snapshot: `WORKSPACE[@SNAPSHOT]`"},
		&cli.StringSliceFlag{Name: "env", Usage: "environment `NAME=VALUE`, or NAME to take it from here; repeatable"},
		&cli.StringSliceFlag{Name: "env-file", Usage: "read environment from `FILE` (NAME=VALUE lines); repeatable"},
		&cli.StringFlag{Name: flagSnapshotEvery, Usage: "snapshot it this often while it runs: a `TIME` from 10s to 24h, or off (default: 5m; a stopped one keeps what it has)"},
		&cli.StringFlag{Name: flagRetention, Usage: "which of those snapshots are kept: a `LIST` such as last=12,hourly=24,daily=14 (the default; a stopped one keeps what it has), or none: nothing is ever forgotten"},
		&cli.StringSliceFlag{Name: flagHook, Usage: "run a command in it: `HOOK` is WHEN[,timeout=30s][,on-error=continue|fail]:COMMAND, WHEN one of pre-stop, pre-snapshot, post-snapshot; repeatable; none takes all away"},
		&cli.StringFlag{Name: flagIdleStop, Usage: "stop it, through a backup, when nobody is connected and nothing works in it for this `TIME`, from 1m to 2160h, such as 2h (default: off; a stopped one keeps what it has)"},
		&cli.StringFlag{Name: flagLifetime, Usage: "stop it, through a backup, this `TIME` after its start, used or not, from 1m to 2160h, such as 72h (default: off; a stopped one keeps what it has)"},
		&cli.StringFlag{Name: flagHours, Usage: "stop it, through a backup, outside of these `HOURS`, once it has not been used for 15 min: such as \"Mon-Fri 08:00-20:00, Sat 10:00-14:00 Europe/Berlin\" (default: off; a stopped one keeps what it has)"},
		&cli.DurationFlag{Name: flagStopGrace, Usage: "`TIME` from SIGTERM to SIGKILL when it is stopped (0 means 10s)"},
		&cli.StringFlag{Name: "volume", Value: string(workspace.VolumeLocal), Usage: "`KIND` of its volume: local (the node's disk) or shared (a directory that several nodes mount: another node goes on with the same files when its node is lost)"},
		&cli.StringFlag{Name: "volume-size", Usage: "room that the node must have, such as `10GB`"},
		&cli.StringFlag{Name: "node", Usage: "only on this `NODE`"},
		&cli.StringFlag{Name: "not-node", Usage: "not on this `NODE` (to move a workspace: stop, then start)"},
		&cli.StringFlag{Name: "accept-version", Usage: "go back in time to this `SNAPSHOT`, which the refusal named"},
		&cli.StringFlag{Name: flagOwner, EnvVars: []string{"HOLDFAST_OWNER"}, Usage: "whose workspace it is, when it is new (`NAME`; default: you)"},
	}
}

// planStart turns flags into a request and refuses what cannot be right before anything is sent.
func planStart(c *cli.Context, s settings, lookup func(string) (string, bool)) (startPlan, error) {
	plan := startPlan{request: workspace.StartRequest{
		Subject: s.Owner, Node: c.String("node"), NotNode: c.String("not-node"), AcceptVersion: c.String("accept-version"),
	}}
	plan.spec.Volume.Kind = workspace.VolumeKind(c.String("volume"))
	if c.IsSet("volume") {
		plan.describes = append(plan.describes, "--volume")
	}
	for field, node := range map[string]string{"--node": plan.request.Node, "--not-node": plan.request.NotNode} {
		if node != "" {
			if err := workspace.ValidateName(field, node); err != nil {
				return plan, usage("%w", err)
			}
		}
	}
	if plan.request.Node != "" && plan.request.Node == plan.request.NotNode {
		return plan, usage("--node and --not-node both name %s", plan.request.Node)
	}
	if err := checkSnapshotFlag("accept-version", plan.request.AcceptVersion); err != nil {
		return plan, err
	}
	if err := plan.readSource(c); err != nil {
		return plan, err
	}
	plan.spec.Image = c.String("image")
	plan.image = c.IsSet("image")
	if text := c.String("volume-size"); text != "" {
		bytes, err := parseVolumeSize(text)
		if err != nil {
			return plan, err
		}
		plan.spec.Volume.SizeBytes = bytes
		plan.describes = append(plan.describes, "--volume-size")
	}
	if err := plan.readEnvironment(c, lookup); err != nil {
		return plan, err
	}
	if err := plan.readPolicies(c, s); err != nil {
		return plan, err
	}
	if err := plan.spec.Validate(); err != nil {
		return plan, usage("%w", err)
	}
	return plan, nil
}

// parseVolumeSize reads a size as people write it, such as 500MB or 1.5GB, in powers of 1000.
func parseVolumeSize(text string) (int64, error) {
	bytes, err := units.FromHumanSize(text)
	if err != nil || bytes <= 0 {
		return 0, usage("--volume-size %q: want a size such as 500MB or 10GB", text)
	}
	return bytes, nil
}

func (plan *startPlan) readSource(c *cli.Context) error {
	var given []string
	for _, flag := range []string{"from-dir", "from-git", "from-snapshot"} {
		if c.IsSet(flag) {
			given = append(given, "--"+flag)
		}
	}
	switch {
	case len(given) == 0:
		return nil
	case len(given) > 1:
		return usage("%s exclude each other", strings.Join(given, " and "))
	}
	source := &plan.request.Source
	switch given[0] {
	case "--from-dir":
		dir, err := readableDirectory("--from-dir", c.String("from-dir"))
		if err != nil {
			return err
		}
		plan.fromDir = dir
		*source = workspace.Source{Kind: workspace.SourceUpload, Describe: dir}
	case "--from-git":
		address := c.String("from-git")
		describe, err := describeGit(address)
		if err != nil {
			return err
		}
		plan.secrets.GitURL = address
		*source = workspace.Source{Kind: workspace.SourceGit, Describe: describe}
	case "--from-snapshot":
		origin, snapshot, _ := strings.Cut(c.String("from-snapshot"), "@")
		*source = workspace.Source{Kind: workspace.SourceSnapshot, Workspace: origin, Snapshot: snapshot,
			Describe: strings.TrimSuffix(origin+"@"+workspace.Short(snapshot), "@")}
	}
	if err := checkSnapshotFlag("from-snapshot", source.Snapshot); err != nil {
		return err
	}
	checked := *source
	checked.Snapshot = "" // completed when the command is connected
	if err := checked.Validate(); err != nil {
		return usage("%s: %w", given[0], err)
	}
	return nil
}

// readableDirectory is the whole path of a directory that can be opened; what is wrong with it names the flag that gave it.
func readableDirectory(flag, path string) (string, error) {
	dir, err := filepath.Abs(path)
	if err != nil {
		return "", usage("%s: %w", flag, err)
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return "", usage("%s: %w", flag, err)
	case !info.IsDir():
		return "", usage("%s: %s is not a directory", flag, dir)
	}
	opened, err := os.Open(dir)
	if err != nil {
		return "", usage("%s: %w", flag, err)
	}
	return dir, opened.Close()
}

// scpLike is git's short form of an ssh address: user@host:path.
var scpLike = regexp.MustCompile(`^([A-Za-z0-9_.-]+@)?[A-Za-z0-9_.-]+:[^/].*$`)

// describeGit is a git URL without its credentials; parameters go too, since tokens hide there.
func describeGit(address string) (string, error) {
	parsed, err := url.Parse(address)
	if err == nil && parsed.Scheme != "" && parsed.Host != "" {
		switch parsed.Scheme {
		case "http", "https", "ssh", "git", "file":
		default:
			return "", usage("--from-git: scheme %q: want https, ssh, git, http or file", parsed.Scheme)
		}
		return (&url.URL{Scheme: parsed.Scheme, Host: parsed.Host, Path: parsed.Path}).String(), nil
	}
	if err == nil && parsed.Scheme == "file" && strings.HasPrefix(parsed.Path, "/") {
		return "file://" + parsed.Path, nil
	}
	if scpLike.MatchString(address) {
		return address, nil
	}
	// The address is not repeated: it may hold a password.
	return "", usage("--from-git: want a URL such as https://host/path.git, or user@host:path")
}

// readEnvironment gathers --env-file and --env, later ones over earlier ones. Values appear in no message.
func (plan *startPlan) readEnvironment(c *cli.Context, lookup func(string) (string, bool)) error {
	environment := map[string]string{}
	set := func(where, line string) error {
		name, value, found := strings.Cut(line, "=")
		if err := workspace.ValidateVariable(name); err != nil {
			return usage("%s: %w", where, err)
		}
		if !found {
			if value, found = lookup(name); !found {
				return usage("%s: %s has no value and is not set here", where, name)
			}
		}
		environment[name] = value
		return nil
	}
	for _, path := range c.StringSlice("env-file") {
		if err := eachLine(path, set); err != nil {
			return err
		}
	}
	for _, pair := range c.StringSlice("env") {
		if err := set("--env", pair); err != nil {
			return err
		}
	}
	if len(environment) == 0 {
		return nil
	}
	plan.describes = append(plan.describes, "--env")
	plan.secrets.Environment = environment
	for name := range environment {
		plan.spec.Environment = append(plan.spec.Environment, name)
	}
	slices.Sort(plan.spec.Environment)
	if err := plan.secrets.Validate(); err != nil {
		return usage("%w", err)
	}
	return nil
}

// eachLine reads an environment file as Docker does: NAME=VALUE or NAME a line, # begins a comment.
func eachLine(path string, set func(where, line string) error) error {
	file, err := os.Open(path)
	if err != nil {
		return usage("--env-file: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := set(fmt.Sprintf("%s line %d", path, number), line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return usage("--env-file %s: %w", path, err)
	}
	return nil
}

// seal encrypts what only the node may read to the control side's public key, so that it enters no history readable.
func (plan *startPlan) seal(recipient string) error {
	if len(plan.secrets.Environment) == 0 && plan.secrets.GitURL == "" {
		return nil
	}
	if recipient == "" {
		return usage("the control side's public key is not known, without which environment values and git addresses cannot be sent").
			withMend("name it with --%s or HOLDFAST_CONTROL_RECIPIENT; `holdfast dev` knows it once its control worker runs", flagControlRecipient)
	}
	plain, err := json.Marshal(plan.secrets)
	if err != nil {
		return fmt.Errorf("encoding secrets: %w", err)
	}
	plan.request.Secrets, err = keys.SealTo(recipient, plain, keys.PurposeWorkspaceSecrets)
	if err != nil {
		return fail(exitUsage, "sealing secrets to the control side: %w", err).withMend("check --%s", flagControlRecipient)
	}
	return nil
}

// adapt fits the plan to what is there: a new workspace gets a whole specification, one that has content keeps its own.
func (plan *startPlan) adapt(name string, existing *workspace.State) error {
	if existing == nil || existing.Incomplete || existing.Phase == workspace.Deleted {
		plan.request.Spec = &plan.spec
		if existing == nil || existing.Phase == workspace.Deleted || plan.request.Source.Kind != workspace.SourceEmpty {
			return nil
		}
		// A first start that failed is tried again as it was asked for; half of a new description would quietly drop
		// where the content was to come from.
		described := len(plan.describes) > 0 || plan.image || len(plan.policies) > 0
		switch {
		case existing.Source.Kind == workspace.SourceUpload, existing.Source.Kind != workspace.SourceEmpty && described:
			return fail(exitRefused, "workspace %q has not got its first content yet, which was to come from %s", name, existing.Source.Describe).
				withSafe("nothing was changed").
				withMend("say --from-dir, --from-git or --from-snapshot again, with the other flags")
		case !described:
			plan.request.Spec, plan.request.Source = nil, existing.Source
		}
		return nil
	}
	if len(plan.describes) > 0 {
		return fail(exitRefused, "workspace %q exists: %s is for new workspaces", name, strings.Join(plan.describes, " and ")).
			withSafe("nothing was changed").
			withMend("start it without, or make a new one with `holdfast start OTHER --from-snapshot %s`", name)
	}
	if plan.image || len(plan.policies) > 0 {
		spec := existing.Spec
		if plan.image {
			spec.Image = plan.spec.Image
		}
		for _, change := range plan.policies {
			change(&spec)
		}
		plan.request.Spec = &spec
	}
	return nil
}
