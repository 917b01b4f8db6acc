package testsuite_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// envBecome names the program that this test binary becomes without the capabilities by which root reads everything.
const envBecome = "TESTSUITE_BECOME"

// init and not TestMain: the process has to be another before anything of a test runs.
func init() {
	program := os.Getenv(envBecome)
	if program == "" {
		return
	}
	fmt.Fprintln(os.Stderr, become(program))
	os.Exit(1)
}

// become returns only when it failed.
func become(program string) error {
	runtime.LockOSThread() // capabilities are a thread's; exec keeps those of the thread that calls it
	for _, capability := range []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil && os.Geteuid() == 0 {
			return fmt.Errorf("dropping capability %d: %w", capability, err)
		}
	}
	if err := os.Unsetenv(envBecome); err != nil {
		return err
	}
	return fmt.Errorf("becoming %s: %w", program, syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ()))
}

// TestUnreadableFilesKeepTheContent is A14 and invariant 1: a snapshot that lacks something is stored and names it, the
// content stays on its node, a start goes on with all of it, and only who accepts the list lets it go. The agents run
// without the rights of root over files, as they may in production.
func TestUnreadableFilesKeepTheContent(t *testing.T) {
	t.Parallel()
	product := stack.Binary(t)
	self, err := os.Executable()
	require.NoError(t, err)
	s := stack.New(t, "all", "process", func(options *devstack.StackOptions) {
		options.Binary = self
		plain := options.Roles
		through := func(command devstack.Command) devstack.Command {
			command.Env = append(command.Env, envBecome+"="+product)
			return command
		}
		options.Roles = devstack.Roles{
			Storage: func(f devstack.StackFile, dir, listen, bucket string) devstack.Command {
				return through(plain.Storage(f, dir, listen, bucket))
			},
			Control: func(f devstack.StackFile) devstack.Command { return through(plain.Control(f)) },
			Node: func(f devstack.StackFile, node, dir string) devstack.Command {
				return through(plain.Node(f, node, dir))
			},
		}
	})
	stack.Must(t, s, 0, nil, "start", "web")
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "mkdir locked; echo inside > locked/file; echo secret > closed; echo open > open; chmod 000 closed locked")
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content) // this test reads everything
	if r := stack.CLI(t, s, "exec", "web", "--", "cat", "closed"); r.Code == 0 {
		devtest.Missing(t, "root", errors.New("the agent reads everything although it gave that up"))
	}

	stack.Must(t, s, 6, []string{"closed", "locked", "unreadable", "--accept-omissions", "kept on node"}, "stop", "web")
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Equal(t, workspace.ErrorOmissions, state.Block.Type)
	require.EqualValues(t, 2, state.Block.Omitted)
	named := map[string]bool{}
	for _, omission := range state.Block.Omissions {
		named[strings.TrimPrefix(omission.Path, "/")] = true
	}
	require.Equal(t, map[string]bool{"closed": true, "locked": true}, named)
	require.NotNil(t, state.Kept)
	require.EqualValues(t, 2, state.Head.Omitted, "the commit says what it lacks")
	stack.RequireSame(t, before, content) // invariant 1: nothing is removed

	// A snapshot that nobody has been told of cannot be accepted.
	stack.Must(t, s, 4, []string{"no list of omissions"}, "stop", "web", "--accept-omissions", strings.Repeat("0", 64))
	stack.RequireSame(t, before, content)

	// A start goes on with all of it.
	stack.Must(t, s, 0, []string{"going on with the content"}, "start", "web")
	_, again := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, again)

	// Stopped again, and this time the list is accepted.
	stack.Must(t, s, 6, []string{"closed"}, "stop", "web")
	state = stack.Show(t, s, "web")
	_, content = stack.ContentDir(t, s, "web")
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web", "--accept-omissions", state.Kept.Snapshot)
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	require.FileExists(t, filepath.Join(restored, "open"))
	// Only what was named is missing.
	for _, line := range strings.Split(strings.TrimSpace(stack.Differences(t, before, restored)), "\n") {
		require.Regexp(t, `closed|locked|^\.d\.\.t\.+ \./$`, line)
	}
}
