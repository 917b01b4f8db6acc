package main

import (
	"context"
	"errors"
	"net/url"
	"path"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/catalog"
	"holdfast/snapshot"
	"holdfast/storage"
)

func (p *program) snapshotForgetCommand() *cli.Command {
	flags := []cli.Flag{&cli.IntFlag{Name: "keep-last", Usage: "keep the newest `N` snapshots; -1 keeps all"}}
	for _, period := range []string{"hour", "day", "week", "month", "year"} {
		flags = append(flags, &cli.IntFlag{Name: "keep-" + adverb(period), Usage: "keep the newest of each of the last `N` " + period + "s that have one; -1 of all"})
	}
	flags = append(flags, &cli.StringFlag{Name: "keep-within", Usage: "keep what is at most this `AGE` older than the newest, such as 1y5m7d2h"})
	for _, period := range []string{"hour", "day", "week", "month", "year"} {
		flags = append(flags, &cli.StringFlag{Name: "keep-within-" + adverb(period), Usage: "of what is at most this `AGE` old, keep the newest of each " + period})
	}
	flags = append(flags,
		&cli.StringSliceFlag{Name: "keep-tag", Usage: "keep what has all of these `TAG[,TAG]`; repeatable"},
		&cli.StringSliceFlag{Name: "host", Usage: "consider only snapshots of this host `NAME`; repeatable"},
		&cli.StringSliceFlag{Name: "path", Usage: "consider only snapshots of this `PATH`; repeatable"},
		&cli.StringSliceFlag{Name: "tag", Usage: "consider only what has all of these `TAG[,TAG]`; repeatable"},
		&cli.StringFlag{Name: "group-by", Value: "host,paths", Usage: "apply the policy to each group of the same `FIELDS`: host, paths, tags; empty for one group"},
	)
	return &cli.Command{
		Name: "forget", Usage: "remove snapshots that a policy does not keep, or that are named; prune then removes their content", ArgsUsage: "[SNAPSHOT…]",
		Flags: repositoryFlags(append(flags, maintenanceFlags()...)...), Action: p.snapshotForget,
	}
}

// adverb is what restic calls a policy for a period.
func adverb(period string) string {
	if period == "day" {
		return "daily"
	}
	return period + "ly"
}

// maintenanceFlags are those of everything that removes something from a repository.
func maintenanceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only say what would be done"},
		&cli.DurationFlag{Name: "retry-lock", Usage: "wait up to `DURATION` for others to end their work"},
		outputFlag(),
	}
}

func (p *program) snapshotForget(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	options := snapshot.ForgetOptions{
		Snapshots: c.Args().Slice(), Hosts: c.StringSlice("host"), Paths: c.StringSlice("path"), Tags: tagLists(c.StringSlice("tag")),
		GroupBy: fieldList(c.String("group-by")), DryRun: c.Bool("dry-run"), LockWait: c.Duration("retry-lock"),
	}
	if options.Keep, err = keepPolicy(c); err != nil {
		return err
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	if options.Protect, err = p.catalogued(c); err != nil {
		return err
	}
	report, err := repository.Forget(c.Context, options)
	if err != nil && report == nil {
		return explainForget(c, err)
	}
	if asJSON {
		if err := printJSON(p.stdout, report); err != nil {
			return err
		}
	} else {
		p.sayForgotten(report)
	}
	return explainForget(c, err)
}

func keepPolicy(c *cli.Context) (snapshot.KeepPolicy, error) {
	k := snapshot.KeepPolicy{
		Last: c.Int("keep-last"), Hourly: c.Int("keep-hourly"), Daily: c.Int("keep-daily"), Weekly: c.Int("keep-weekly"),
		Monthly: c.Int("keep-monthly"), Yearly: c.Int("keep-yearly"), Tags: tagLists(c.StringSlice("keep-tag")),
	}
	for name, age := range map[string]*snapshot.Age{
		"keep-within": &k.Within, "keep-within-hourly": &k.WithinHourly, "keep-within-daily": &k.WithinDaily,
		"keep-within-weekly": &k.WithinWeekly, "keep-within-monthly": &k.WithinMonthly, "keep-within-yearly": &k.WithinYearly,
	} {
		if !c.IsSet(name) {
			continue
		}
		var err error
		if *age, err = snapshot.ParseAge(c.String(name)); err != nil {
			return k, usage("--%s: %w", name, err)
		}
	}
	return k, nil
}

// tagLists reads TAG[,TAG] of each value.
func tagLists(values []string) (lists [][]string) {
	for _, value := range values {
		lists = append(lists, fieldList(value))
	}
	return lists
}

// fieldList splits at commas; an empty text is an empty list, and not nil.
func fieldList(text string) []string {
	return strings.FieldsFunc(text, func(c rune) bool { return c == ',' })
}

func (p *program) sayForgotten(report *snapshot.ForgetReport) {
	kept, gone := 0, 0
	rows := [][]string{}
	row := func(info snapshot.Info, what, why string) {
		rows = append(rows, []string{info.ID[:min(8, len(info.ID))], info.Time.UTC().Format("2006-01-02 15:04:05"), info.Hostname, orDash(strings.Join(info.Tags, ",")), what, orDash(why)})
	}
	for _, group := range report.Groups {
		for _, s := range group.Keep {
			row(s.Info, "keep", strings.Join(s.Reasons, ", "))
			kept++
		}
		for _, info := range group.Remove {
			row(info, "remove", "")
			gone++
		}
	}
	renderTable(p.stdout, []column{{name: "snapshot"}, {name: "time (UTC)"}, {name: "host", flexible: true, least: 8},
		{name: "tags", flexible: true, least: 6}, {name: "what"}, {name: "why", flexible: true, least: 12}}, rows)
	if report.DryRun {
		p.say("%s snapshots would be removed, %s stay", count(int64(gone)), count(int64(kept)))
		return
	}
	p.say("%s of %s snapshots removed; `holdfast snapshot prune` removes what nothing needs any more", count(int64(report.Removed)), count(int64(kept+gone)))
}

func explainForget(c *cli.Context, err error) error {
	switch {
	case errors.Is(err, snapshot.ErrProtected):
		return fail(exitRefused, "%w", err).withSafe("nothing was changed").
			withMend("the newest snapshot of a directory, its newest final one, and what a workspace's catalog names always stay")
	case errors.Is(err, storage.ErrInvalid):
		return usage("%w", err).withMend("say what to keep, for example --keep-daily 7 --keep-weekly 4, or name snapshots")
	}
	return explainSnapshot(c.StringSlice("repo")[0], err)
}

// catalogued are the snapshots that a deployment's catalog names, when a repository is a workspace's own: its head, the
// base of its newest instance, and every commit. Without them a workspace could not start, so nothing is known means
// nothing is forgotten (invariants 3 and 4).
func (p *program) catalogued(c *cli.Context) ([]string, error) {
	var parents []string
	id := ""
	for _, repo := range c.StringSlice("repo") {
		if parent, of, ok := deploymentStore(repo); ok {
			parents, id = append(parents, parent), of
		}
	}
	if len(parents) == 0 {
		return nil, nil
	}
	s, err := loadSettings(c)
	if err != nil {
		return nil, err
	}
	providers, closeAll, err := openStores(c.Context, parents, s)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	return cataloguedIn(c.Context, providers, id)
}

func cataloguedIn(ctx context.Context, providers []storage.Provider, id string) ([]string, error) {
	refuse := func(store, why string) error {
		return fail(exitFailed, "this is the repository of workspace %s, and %s cannot say which snapshots it needs: %s", id, store, why).
			withSafe("nothing was changed").withMend("try again when the store can be read")
	}
	deployed := catalog.New(providers, storage.PolicyAll)
	var names []string
	for _, answer := range deployed.ReadHead(ctx, id).Providers {
		if answer.Error != "" {
			return nil, refuse(answer.Provider, answer.Error)
		}
		if answer.Head != nil {
			names = append(names, answer.Head.Snapshot)
		}
		if answer.Base != "" {
			names = append(names, answer.Base)
		}
	}
	commits, _, failed := deployed.Commits(ctx, id)
	for _, store := range sortedKeys(failed) {
		return nil, refuse(store, failed[store].Error())
	}
	for _, commit := range commits {
		names = append(names, commit.Snapshot)
	}
	return names, nil
}

// deploymentStore splits the address of a workspace's repository, …/workspaces/<id>, into that of the deployment's store
// and the workspace's id.
func deploymentStore(repo string) (store, id string, ok bool) {
	parsed, err := url.Parse(repo)
	if err != nil {
		return "", "", false
	}
	clean := strings.TrimRight(parsed.Path, "/")
	above, id := path.Split(clean)
	above = strings.TrimRight(above, "/")
	if path.Base(above) != "workspaces" || id == "" {
		return "", "", false
	}
	parsed.Path, parsed.RawPath = path.Dir(above), ""
	if parsed.Scheme != "file" && parsed.Path == "/" {
		parsed.Path = "" // the bucket itself
	}
	return parsed.String(), id, true
}
