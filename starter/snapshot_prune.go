package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
)

func (p *program) snapshotPruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "remove what no snapshot needs", Flags: repositoryFlags(append([]cli.Flag{
			&cli.StringFlag{Name: "max-unused", Value: "5%", Usage: "leave at most this `LIMIT` of unneeded bytes in packs: a share, a size (K, M, G, T), or unlimited"},
			&cli.StringFlag{Name: "max-repack-size", Usage: "write packs of at most this `SIZE` together anew (K, M, G, T)"},
			&cli.DurationFlag{Name: "grace", Value: snapshot.DefaultPruneGrace, Usage: "leave packs that are younger than `DURATION` alone: an interrupted backup may go on with them"},
		}, maintenanceFlags()...)...), Action: p.snapshotPrune,
	}
}

func (p *program) snapshotPrune(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	defer show.Close()
	options := snapshot.PruneOptions{Grace: c.Duration("grace"), DryRun: c.Bool("dry-run"), LockWait: c.Duration("retry-lock"), Progress: shown(show, "pruning")}
	if options.Grace <= 0 {
		options.Grace = -1 * time.Second
	}
	if options.MaxUnused, err = snapshot.ParseMaxUnused(c.String("max-unused")); err != nil {
		return usage("--max-unused: %w", err)
	}
	if text := c.String("max-repack-size"); text != "" {
		if options.MaxRepack, err = snapshot.ParseSize(text); err != nil || options.MaxRepack == 0 {
			return usage("--max-repack-size %q: want a size above 0, such as 500M", text).withMend("--max-unused unlimited writes nothing anew")
		}
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	report, err := repository.Prune(c.Context, options)
	show.Close()
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		return printJSON(p.stdout, report)
	}
	p.say("%s snapshots need %s; %s in %s packs are not needed", count(int64(report.Snapshots)), size(report.UsedBytes), size(report.UnusedBytes), count(report.Packs))
	switch {
	case report.DryRun:
		p.say("packs of %s would be written anew, %s that are not needed would stay (%s packs are too young)", size(report.BytesRepacked), size(report.UnusedLeft), count(report.PacksYoung))
	case report.IndexesWritten == 0:
		p.say("nothing to do; %s that are not needed stay (%s packs are too young)", size(report.UnusedLeft), count(report.PacksYoung))
	default:
		p.say("removed %s packs and wrote %s anew as %s: %s less; %s that are not needed stay (%s packs are too young); %.1f s", count(report.PacksRemoved),
			count(report.PacksRepacked), count(report.PacksWritten), size(report.BytesRemoved-report.BytesWritten), size(report.UnusedLeft), count(report.PacksYoung), report.Seconds)
	}
	return nil
}

func (p *program) snapshotRebuildIndexCommand() *cli.Command {
	return &cli.Command{
		Name: "rebuild-index", Usage: "make the index anew from what the packs say of themselves; removes no pack",
		Flags: repositoryFlags(maintenanceFlags()...), Action: p.snapshotRebuildIndex,
	}
}

func (p *program) snapshotRebuildIndex(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	report, err := repository.RebuildIndex(c.Context, snapshot.RebuildIndexOptions{DryRun: c.Bool("dry-run"), LockWait: c.Duration("retry-lock"), Progress: shown(show, "reading packs")})
	show.Close()
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		if err := printJSON(p.stdout, report); err != nil {
			return err
		}
	} else {
		p.sayRebuilt(report)
	}
	if n := len(report.Damaged) + len(report.Missing); n > 0 {
		return fail(exitFailed, "%s packs are damaged or missing", count(int64(n))).withSafe("all others are indexed").
			withMend("`holdfast snapshot check --read-data` names the snapshots that need them; `holdfast snapshot repair` copies it from another store, if one has it")
	}
	return nil
}

func (p *program) sayRebuilt(report *snapshot.RebuildIndexReport) {
	for _, id := range report.Added {
		p.say("pack %s was in no index", id)
	}
	for _, id := range report.Corrected {
		p.say("pack %s holds something else than the index said", id)
	}
	for _, id := range report.Missing {
		p.say("error: pack %s is missing", id)
	}
	for _, id := range sortedKeys(report.Damaged) {
		p.say("error: pack %s: %s", id, report.Damaged[id])
	}
	for _, id := range sortedKeys(report.DamagedIndexes) {
		p.say("index %s could not be read: %s", id, report.DamagedIndexes[id])
	}
	switch {
	case report.DryRun:
		p.say("an index of %s packs and %s blobs would be written where the old one is not right", count(report.Packs), count(report.Blobs))
	case report.IndexesWritten == 0:
		p.say("the index was right: %s packs, %s blobs", count(report.Packs), count(report.Blobs))
	default:
		p.say("the index was written anew: %s packs, %s blobs, in %s files instead of %s; %.1f s", count(report.Packs), count(report.Blobs),
			count(int64(report.IndexesWritten)), count(int64(report.IndexesBefore)), report.Seconds)
	}
}
