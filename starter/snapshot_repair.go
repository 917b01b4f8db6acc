package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
	"holdfast/storage"
)

func (p *program) snapshotRepairCommand() *cli.Command {
	return &cli.Command{
		Name: "repair", Usage: "copy between the stores of one repository until all hold what one has",
		Description: "Name every store with a --repo of its own; a directory or prefix that is still empty becomes a copy.\n" +
			"What is stored is copied as it is, encrypted, and compared with its name on the way; a damaged copy that a\n" +
			"listing shows is replaced. With --read-data every copy is read, and every damaged one replaced from a store\n" +
			"whose copy is what its name says; the damaged one stays until the good one is written. Nothing is removed.\n" +
			"Cut, it goes on where it was. A lock keeps prunes away meanwhile, restic's too; backups go on.",
		Flags:  repositoryFlags(outputFlag(), &cli.BoolFlag{Name: "read-data", Usage: "read everything on every store, to find the damage that no listing shows"}),
		Action: p.snapshotRepair,
	}
}

func (p *program) snapshotRepair(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	repos := c.StringSlice("repo")
	if len(repos) == 1 {
		return usage("repair: one store has nobody to be compared with").withMend("name each store of the repository with a --repo of its own")
	}
	for _, repo := range repos {
		if err := checkStoreAddress("--repo", repo); err != nil {
			return err
		}
	}
	if _, err := readPassword(c.String("password-file")); len(repos) > 0 && err != nil {
		return err
	}
	for _, repo := range repos {
		if err := makeDirectoryStore(repo); err != nil {
			return err
		}
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return err
	}
	defer repository.close()
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	readData := c.Bool("read-data")
	report, err := repository.Repair(c.Context, snapshot.RepairOptions{ReadData: readData, Progress: func(now storage.RepairProgress) {
		show.Update(status{key: "repairing", quiet: true, done: int64(now.Done), total: int64(now.Total),
			text: fmt.Sprintf("repairing: %s of %s objects, %s copied", count(int64(now.Done)), count(int64(now.Total)), size(now.Bytes))})
	}})
	show.Close()
	if asJSON {
		if printErr := printJSON(p.stdout, report); printErr != nil && err == nil {
			err = printErr
		}
	} else {
		for _, repo := range sortedKeys(report.Copied) {
			p.say("%s lacked %s objects: %s were copied to it", repo, count(int64(report.Copied[repo])), size(report.Bytes[repo]))
		}
		if report.Replaced > 0 {
			p.say("%s of these took the place of damaged ones", count(int64(report.Replaced)))
		}
		for _, key := range report.Lost {
			p.say("error: %s: no store has a good copy", key)
		}
		for _, key := range report.Conflicts {
			p.say("error: %s: the stores hold different objects", key)
		}
	}
	if err != nil {
		return explainSnapshot(repos[0], err)
	}
	if !asJSON {
		how := ""
		if readData {
			how = ", and every copy of them was read"
		}
		p.say("all %s stores hold the same %s objects%s", count(int64(len(repos))), count(int64(report.Objects)), how)
	}
	return nil
}
