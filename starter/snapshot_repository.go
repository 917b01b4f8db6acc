package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
	"holdfast/storage"
)

// opened is a repository with what has to be closed after it.
type opened struct {
	*snapshot.Repository
	mirror *storage.Mirror
	close  func()
}

// openRepository opens what --repo and --password-file name. With create, a repository (and, on a file system, its
// directory) is made when there is none.
func (p *program) openRepository(c *cli.Context, create bool) (*opened, error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(snapshot.GCPercent)
	}
	repos := c.StringSlice("repo")
	if len(repos) == 0 {
		return nil, usage("%s: --repo is missing", c.Command.Name).withMend("name the repository: --repo gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or file:///DIRECTORY")
	}
	for _, repo := range repos {
		if err := checkStoreAddress("--repo", repo); err != nil {
			return nil, err
		}
	}
	password, err := readPassword(c.String("password-file"))
	if err != nil {
		return nil, err
	}
	s, err := loadSettings(c)
	if err != nil {
		return nil, err
	}
	policy := storage.PolicyAll // a person who names two means two
	if s.Policy != "" {
		if policy, err = storage.ParsePolicy(s.Policy); err != nil {
			return nil, usage("--%s: %w", flagPolicy, err)
		}
	}
	if create {
		for _, repo := range repos {
			if err := makeDirectoryStore(repo); err != nil {
				return nil, err
			}
		}
	}
	providers, closeAll, err := openStores(c.Context, repos, s)
	if err != nil {
		return nil, err
	}
	mirror, err := storage.NewMirror(providers, storage.MirrorOptions{Policy: policy})
	if err != nil {
		closeAll()
		return nil, usage("--repo: %w", err)
	}
	open := snapshot.Open
	if create {
		open = snapshot.OpenOrCreate
	}
	repository, err := open(c.Context, mirror, password, snapshot.Options{})
	if err != nil {
		_ = mirror.Close()
		closeAll()
		return nil, explainSnapshot(repos[0], err)
	}
	return &opened{Repository: repository, mirror: mirror, close: func() {
		_ = repository.Close()
		_ = mirror.Close()
		closeAll()
	}}, nil
}

// readPassword reads a password as restic does: the file's content without the space around it.
func readPassword(path string) ([]byte, error) {
	if path == "" {
		return nil, usage("--password-file is missing").
			withMend("name a file with the repository's password; `holdfast key show NAME` prints a workspace's")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("--password-file: %w", err)
	}
	password := bytes.TrimSpace(content)
	if len(password) == 0 {
		return nil, usage("--password-file: %s is empty", path).withMend("there is no default password: write one into the file, for example with `openssl rand -base64 32`")
	}
	return password, nil
}

// makeDirectoryStore makes a repository's own directory, as `restic init` does, but not the one that it lies in: that
// one being absent is a disk that is not mounted or a typing mistake.
func makeDirectoryStore(repo string) error {
	parsed, err := url.Parse(repo)
	if err != nil || parsed.Scheme != "file" {
		return nil
	}
	err = os.Mkdir(filepath.FromSlash(parsed.Path), 0o700)
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fail(exitNotFound, "making the repository %s: %w", repo, err).withSafe("nothing was changed").
			withMend("make or mount %s first", filepath.Dir(parsed.Path))
	default:
		return fail(exitFailed, "making the repository %s: %w", repo, err).withSafe("nothing was changed").
			withMend("make %s writable for this user", filepath.Dir(parsed.Path))
	}
}

// explainSnapshot turns the engine's errors into failures with their mends.
func explainSnapshot(repo string, err error) error {
	var known *failure
	if err == nil || errors.As(err, &known) {
		return err
	}
	switch {
	case errors.Is(err, snapshot.ErrNoRepository):
		return fail(exitNotFound, "%s: %w", repo, err).withMend("check the address; `holdfast snapshot backup` makes a repository")
	case errors.Is(err, snapshot.ErrWrongPassword):
		return fail(exitFailed, "%s: %w", repo, err).withSafe("nothing was changed").
			withMend("name the right --password-file; `holdfast key show NAME` prints a workspace's password to an operator")
	case errors.Is(err, snapshot.ErrNoSnapshot):
		return fail(exitNotFound, "%s: %w", repo, err).withMend("`holdfast snapshot list --repo %s …` lists them", repo)
	case errors.Is(err, snapshot.ErrNoPath):
		return fail(exitNotFound, "%s: %w", repo, err).withMend("`holdfast snapshot ls --repo %s … SNAPSHOT` lists the paths", repo)
	case errors.Is(err, snapshot.ErrSourceMissing):
		return fail(exitUsage, "%w", err).withSafe("nothing was changed")
	case errors.Is(err, snapshot.ErrTargetExists):
		return fail(exitRefused, "%w", err).withSafe("nothing was changed").withMend("name a --target that does not exist: a restore never writes into what is there")
	case errors.Is(err, snapshot.ErrLocalSpace):
		return fail(exitFailed, "%w", err).withSafe("the repository is as it was, and nothing partial was left at the target").withMend("make room on this machine's disk")
	case errors.Is(err, snapshot.ErrLocked):
		return fail(exitRefused, "%s: %w", repo, err).withSafe("nothing was changed").withMend("wait until the other program has ended; `restic unlock` removes the lock of one that died")
	case errors.Is(err, snapshot.ErrOtherRepository):
		return fail(exitRefused, "%w", err).withSafe("nothing was written").withMend("name stores of one repository; a new copy begins in an empty directory or prefix")
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrNotStoredWhole):
		return fail(exitFailed, "%s: %w", repo, err).withSafe("what else is stored can still be read").
			withMend("`holdfast snapshot check --read-data` names all that is damaged; `holdfast snapshot repair` copies it from another store, if one has it")
	case errors.Is(err, storage.ErrInvalid), errors.Is(err, storage.ErrBucketNotFound), errors.Is(err, storage.ErrPermission), errors.Is(err, storage.ErrNoSpace):
		return explainStore(repo, err)
	case errors.Is(err, context.Canceled), errors.Is(err, errInterrupted):
		return fail(exitFailed, "interrupted").withSafe("nothing was damaged: what was stored is used by the next run, what was partly restored is gone")
	default:
		return fail(exitFailed, "%s: %w", repo, err).withMend("run it again: what is stored already is not sent again")
	}
}
