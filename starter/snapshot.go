package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
)

// repositoryFlags name a repository as restic does: an address and a file with the password.
func repositoryFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "repo", Aliases: []string{"r"}, Usage: "repository `URL` (gs://, s3://, file:///DIR as restic -r DIR); repeat it for a mirror"},
		&cli.StringFlag{Name: "password-file", Aliases: []string{"p"}, Usage: "`FILE` with the repository's password"},
	}, more...)
}

func (p *program) snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "the backup engine alone, on any repository of restic's format",
		Subcommands: []*cli.Command{
			{Name: "backup", Usage: "back a directory up; makes the repository when there is none", ArgsUsage: "DIR",
				Flags: repositoryFlags(append([]cli.Flag{
					&cli.StringSliceFlag{Name: "tag", Usage: "`TAG` of the snapshot; repeatable"},
					&cli.StringFlag{Name: "host", Usage: "host `NAME` that the snapshot records (default: this one's)"},
					&cli.StringSliceFlag{Name: "exclude", Usage: "leave out what this `PATTERN` names, as in a " + snapshot.IgnoreFile + " at the top; repeatable"},
					outputFlag(),
				}, stateFlags()...)...), Action: p.snapshotBackup},
			{Name: "restore", Usage: "restore a snapshot into a new directory", ArgsUsage: "SNAPSHOT|latest",
				Flags: repositoryFlags(append([]cli.Flag{
					&cli.StringFlag{Name: "target", Aliases: []string{"t"}, Usage: "the new `DIR`; it must not exist"},
					&cli.StringFlag{Name: "path", Usage: "only this file or directory `PATH` of the snapshot"},
					outputFlag(),
				}, stateFlags()...)...), Action: p.snapshotRestore},
			p.snapshotCheckCommand(),
			{Name: "list", Usage: "list the snapshots of a repository", Flags: repositoryFlags(outputFlag()), Action: p.snapshotList},
			{Name: "ls", Usage: "list the files of a snapshot", ArgsUsage: "SNAPSHOT|latest [PATH]", Flags: repositoryFlags(outputFlag()), Action: p.snapshotLs},
			{Name: "dump", Usage: "write a file of a snapshot, or a directory as a tar stream, to standard output", ArgsUsage: "SNAPSHOT|latest PATH",
				Flags: repositoryFlags(), Action: p.snapshotDump},
			p.snapshotForgetCommand(), p.snapshotPruneCommand(), p.snapshotRebuildIndexCommand(), p.snapshotRepairCommand(),
		},
	}
}

// shown adapts the engine's progress to ours.
func shown(show progress, doing string) func(snapshot.Progress) {
	return func(now snapshot.Progress) {
		text := fmt.Sprintf("%s: %s files, %s", doing, count(now.Files), size(now.Bytes))
		if now.TotalBytes > 0 {
			text = fmt.Sprintf("%s: %s of %s files, %s of %s", doing, count(now.Files), count(now.TotalFiles), size(now.Bytes), size(now.TotalBytes))
		}
		if now.BytesUploaded > 0 {
			text += ", " + size(now.BytesUploaded) + " stored"
		}
		show.Update(status{key: doing, quiet: true, text: text, done: now.Bytes, total: now.TotalBytes})
	}
}

func (p *program) snapshotBackup(c *cli.Context) error {
	given, err := arguments(c, "DIR")
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(given[0])
	if err != nil {
		return usage("backup: %w", err)
	}
	if info, err := os.Stat(dir); err != nil {
		return usage("backup: %w", err)
	} else if !info.IsDir() {
		return usage("backup: %s is not a directory", dir)
	}
	if err := snapshot.ValidateExcludes(c.StringSlice("exclude")); err != nil {
		return usage("--exclude: %w", err)
	}
	repository, err := p.openRepository(c, true)
	if err != nil {
		return err
	}
	defer repository.close()
	state, err := stateFile(c, p.now(), repository.ID(), c.String("host"), dir)
	if err != nil {
		return err
	}
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	result, err := repository.Backup(c.Context, dir, snapshot.BackupOptions{
		Tags: c.StringSlice("tag"), Hostname: c.String("host"), Excludes: c.StringSlice("exclude"), StateFile: state,
		Progress: shown(show, "backing up"),
	})
	show.Close()
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		if err := printJSON(p.stdout, result); err != nil {
			return err
		}
	} else {
		p.say("snapshot %s: %s files, %s directories, %s; %s were new, %s stored in %s packs; %.1f s", result.Snapshot, count(result.Files),
			count(result.Dirs), size(result.Bytes), size(result.BytesAdded), size(result.BytesUploaded), count(result.PacksUploaded), result.Seconds)
		p.sayExcluded("excluded", result.Excluded)
	}
	return leftOut(result)
}

// leftOut is the failure with exitOwed when a backup lacks something or a store of the mirror is behind.
func leftOut(result *snapshot.BackupResult) error {
	var parts []string
	if len(result.Owed) > 0 {
		parts = append(parts, "still owed to "+strings.Join(result.Owed, ", "))
	}
	if n := len(result.Omissions); n > 0 {
		text := fmt.Sprintf("%s things are not in it as they were", count(int64(n)))
		for i, omission := range result.Omissions {
			if i == 20 {
				text += fmt.Sprintf("\n  and %s more", count(int64(n-i)))
				break
			}
			text += fmt.Sprintf("\n  %s (%s: %s)", omission.Path, omission.Kind, omission.Reason)
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return nil
	}
	return fail(exitOwed, "snapshot %s is stored, but %s", result.Snapshot[:min(8, len(result.Snapshot))], strings.Join(parts, "; and "))
}

func (p *program) snapshotRestore(c *cli.Context) error {
	given, err := arguments(c, "SNAPSHOT")
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if c.String("target") == "" {
		return usage("restore: --target is missing").withMend("name a directory that does not exist yet: --target DIR")
	}
	target, err := filepath.Abs(c.String("target"))
	if err != nil {
		return usage("--target: %w", err)
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	// For backups of the new directory: they need not read what was verified just now.
	state, err := stateFile(c, p.now(), repository.ID(), "", target)
	if err != nil {
		return err
	}
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	restored, err := repository.Restore(c.Context, given[0], target, snapshot.RestoreOptions{
		Path: c.String("path"), StateFile: state, Progress: shown(show, "restoring"),
	})
	show.Close()
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		if err := printJSON(p.stdout, restored); err != nil {
			return err
		}
	} else {
		p.say("snapshot %s is in %s: %s files, %s directories, %s; %.1f s", restored.Snapshot[:min(8, len(restored.Snapshot))], target,
			count(restored.Files), count(restored.Dirs), size(restored.Bytes), restored.Seconds)
		if restored.Reused > 0 {
			p.say("%s of it were there already from an attempt that was cut, and were not fetched again", size(restored.Reused))
		}
		for _, store := range sortedKeys(restored.Fallbacks) {
			p.say("%s objects were missing or damaged on %s and came from another store", count(restored.Fallbacks[store]), store)
		}
		p.sayExcluded("excluded when this snapshot was made", restored.Excluded)
	}
	if n := len(restored.Warnings); n > 0 {
		shownWarnings := restored.Warnings[:min(n, 20)]
		text := strings.Join(shownWarnings, "\n  ")
		if n > len(shownWarnings) {
			text += fmt.Sprintf("\n  and %s more", count(int64(n-len(shownWarnings))))
		}
		return fail(exitOwed, "all content is restored, but some metadata could not be set\n  %s", text).
			withMend("restore as root to set owners and devices too")
	}
	return nil
}

func (p *program) snapshotList(c *cli.Context) error {
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
	infos, err := repository.Snapshots(c.Context)
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		return printJSON(p.stdout, listOf(infos))
	}
	rows := make([][]string, 0, len(infos))
	for _, info := range infos {
		rows = append(rows, []string{info.ID[:min(8, len(info.ID))], info.Time.UTC().Format("2006-01-02 15:04:05"), info.Hostname, orDash(strings.Join(info.Tags, ",")), strings.Join(info.Paths, ",")})
	}
	renderTable(p.stdout, []column{{name: "snapshot"}, {name: "time (UTC)"}, {name: "host", flexible: true, least: 8},
		{name: "tags", flexible: true, least: 6}, {name: "paths", flexible: true, least: 16}}, rows)
	return nil
}

func (p *program) snapshotLs(c *cli.Context) error {
	given := c.Args().Slice()
	if len(given) < 1 || len(given) > 2 {
		return usage("ls: want a snapshot and perhaps a path").withMend("usage: %s %s", c.Command.HelpName, c.Command.ArgsUsage)
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	path := ""
	if len(given) == 2 {
		path = given[1]
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	entries := []snapshot.Entry{}
	err = repository.List(c.Context, given[0], path, true, func(entry snapshot.Entry) error {
		if asJSON {
			entries = append(entries, entry)
			return nil
		}
		_, err := fmt.Fprintln(p.stdout, entryLine(entry))
		return err
	})
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		return printJSON(p.stdout, entries)
	}
	return nil
}

// entryLine is a file as `ls -l` would show it.
func entryLine(entry snapshot.Entry) string {
	kind := map[string]string{"dir": "d", "symlink": "l", "dev": "b", "chardev": "c", "fifo": "p", "socket": "s"}[entry.Type]
	if kind == "" {
		kind = "-"
	}
	line := fmt.Sprintf("%s%04o %5d %5d %12d %s %s", kind, entry.Mode, entry.UID, entry.GID, entry.Size,
		entry.ModTime.UTC().Format("2006-01-02 15:04:05"), entry.Path)
	if entry.LinkTarget != "" {
		line += " -> " + entry.LinkTarget
	}
	return line
}

func (p *program) snapshotDump(c *cli.Context) error {
	given, err := arguments(c, "SNAPSHOT", "PATH")
	if err != nil {
		return err
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	repo := c.StringSlice("repo")[0]
	if p.stdoutTerminal {
		file := false
		err := repository.List(c.Context, given[0], given[1], false, func(entry snapshot.Entry) error {
			file = file || entry.Type == "file" && strings.Trim(entry.Path, "/") == strings.Trim(filepath.ToSlash(filepath.Clean(given[1])), "/")
			return nil
		})
		if err != nil {
			return explainSnapshot(repo, err)
		}
		if !file {
			return usage("dump: a tar stream does not belong on a terminal").withMend("pipe it: … | tar -x -C DIR")
		}
	}
	if err := repository.Dump(c.Context, given[0], given[1], p.stdout, snapshot.DumpOptions{}); err != nil {
		return explainSnapshot(repo, err)
	}
	return nil
}
