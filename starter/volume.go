package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"holdfast/activities"
)

func (p *program) volumeCommand() *cli.Command {
	return &cli.Command{
		Name: "volume", Usage: "make shared volumes, for workspaces that survive their node",
		Subcommands: []*cli.Command{{
			Name: "make", ArgsUsage: "DIR", Usage: "make a shared volume of an empty directory that several nodes mount; once, on one of them",
			Description: "It writes a file with a random id. Agents that are started with --shared-volumes DIR use the directory only\n" +
				"while that file is there: a mount point on which nothing is mounted has none. One that is a volume stays as it is.",
			Action: p.makeVolume,
		}},
	}
}

func (p *program) makeVolume(c *cli.Context) error {
	if c.NArg() != 1 {
		return usage("want one directory, got %d arguments", c.NArg())
	}
	id, created, err := activities.MakeShared(c.Args().First())
	if err != nil {
		return fail(exitFailed, "%w", err).withMend("mount the file system that the nodes share there, and give a directory of it with nothing in it")
	}
	done := "is shared volume"
	if created {
		done = "is now shared volume"
	}
	_, err = fmt.Fprintf(p.stdout, "%s %s %s; give it to each agent with --%s\n", c.Args().First(), done, id, flagSharedVolumes)
	return err
}
