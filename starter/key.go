package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/keys"
	"holdfast/storage"
	"holdfast/workspace"
)

func (p *program) keyCommand() *cli.Command {
	return &cli.Command{Name: "key", Usage: "handle keys, as an operator who has the master key", Subcommands: []*cli.Command{
		{Name: "show", Usage: "print the password of a workspace's repository, for restic", ArgsUsage: "NAME",
			Description: "Opens the stores and the master key itself and needs no Temporal. The password alone goes to standard output;\n" +
				"how to use it with restic goes to standard error.",
			Action: p.keyShow},
		{Name: "create-master", Usage: "make a new master key in a FILE of mode 0600, for --" + flagMasterKey + " localkey:///FILE", ArgsUsage: "FILE",
			Description: "One for a deployment. A file that is there is never touched. Whoever loses it loses every backup: copy it to another place.",
			Action:      func(c *cli.Context) error { return p.keyCreate(c, keys.CreateLocalKey) }},
		{Name: "create-codec", Usage: "make a new key of the payload codec in a FILE of mode 0600, for --" + flagCodecKey, ArgsUsage: "FILE",
			Description: "One for a deployment: copy the file to every control worker, node and operator. A file that is there is never touched.",
			Action:      func(c *cli.Context) error { return p.keyCreate(c, keys.CreateCodecKey) }},
	}}
}

// keyCreate makes a key file, and refuses when there is one: a key that was replaced is a key that was lost.
func (p *program) keyCreate(c *cli.Context, create func(path string) (created bool, err error)) error {
	given, err := arguments(c, "FILE")
	if err != nil {
		return err
	}
	created, err := create(given[0])
	switch {
	case err != nil:
		return fail(exitFailed, "%w", err)
	case !created:
		return fail(exitRefused, "%s is there already: it stays as it is", given[0]).withMend("name a file that does not exist; to give a key to another machine, copy its file")
	}
	fmt.Fprintf(p.stdout, "made %s: copy it to another place now\n", given[0])
	return nil
}

// keyShow gives an operator what stock restic needs to read a workspace's repository without anything of Holdfast.
func (p *program) keyShow(c *cli.Context) error {
	name, err := workspaceName(c)
	if err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	d, err := findDeployment(s)
	if err != nil {
		return err
	}
	if err := d.requireStores(); err != nil {
		return err
	}
	masterURL, err := d.masterKeyURL()
	if err != nil {
		return err
	}
	master, err := keys.OpenMaster(c.Context, masterURL)
	if err != nil {
		return fail(exitFailed, "%w", err).withMend("name the right master key with --%s or HOLDFAST_MASTER_KEY", flagMasterKey)
	}
	defer master.Close()
	entries, closeAll, err := d.openCatalog(c.Context)
	if err != nil {
		return err
	}
	defer closeAll()
	id, err := entries.FindID(c.Context, name)
	if err != nil {
		if errors.Is(err, storage.ErrNotFound) {
			return fail(exitNotFound, "the catalog has no workspace %q: %w", name, err).withMend("`holdfast list` shows the workspaces there are")
		}
		return fail(exitFailed, "finding workspace %q in the catalog: %w", name, err)
	}
	wrapped, err := entries.Password(c.Context, id)
	if err != nil {
		return fail(exitFailed, "reading the wrapped password of workspace %q: %w", name, err)
	}
	password, err := master.Unwrap(c.Context, keys.PurposeRepositoryPassword, wrapped.Wrapped)
	if err != nil {
		return fail(exitFailed, "opening the password of workspace %q: %w", name, err).
			withMend("it was wrapped by master key %s and this one is %s: name the right one with --%s", wrapped.MasterKey, master.ID(), flagMasterKey)
	}
	for _, store := range d.Stores {
		fmt.Fprintln(p.stderr, "# restic -r "+resticRepository(store, id)+" snapshots")
	}
	if d.GCSEndpoint != "" {
		fmt.Fprintln(p.stderr, "# (gs:// of this deployment is at "+d.GCSEndpoint+", which restic does not reach; use another store)")
	}
	_, err = fmt.Fprintln(p.stdout, string(password))
	return err
}

// resticRepository is how restic names a workspace's repository on a store.
func resticRepository(store, id string) string {
	path := workspace.RepositoryPrefix(id)
	scheme, rest, _ := strings.Cut(store, "://")
	rest, query, _ := strings.Cut(rest, "?")
	rest = strings.TrimSuffix(rest, "/")
	switch scheme {
	case "gs":
		bucket, prefix, _ := strings.Cut(rest, "/")
		return "gs:" + bucket + ":/" + strings.TrimPrefix(prefix+"/"+path, "/")
	case "s3":
		server := "s3.amazonaws.com"
		if values, err := url.ParseQuery(query); err == nil && values.Get("endpoint") != "" {
			server = strings.TrimSuffix(values.Get("endpoint"), "/")
		}
		return "s3:" + server + "/" + rest + "/" + path
	case "file":
		return rest + "/" + path
	default:
		return store + "/" + path
	}
}
