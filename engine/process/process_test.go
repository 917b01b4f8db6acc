package process_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/engine"
	"holdfast/engine/enginetest"
	"holdfast/engine/process"
)

// TestMain is also the supervisor and the init of the instances that the tests make.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine-supervise" {
		os.Exit(process.Supervise(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "test-agent" {
		os.Exit(process.AgentMain(os.Args[2]))
	}
	goleak.VerifyTestMain(m)
}

// requireTool skips a test that needs what is not here, unless it must not be skipped.
func requireTool(t *testing.T, name string, have bool) {
	t.Helper()
	if have {
		return
	}
	for required := range strings.SplitSeq(os.Getenv("HOLDFAST_REQUIRE"), ",") {
		if required == name {
			t.Fatalf("%s is required and not here", name)
		}
	}
	t.Skipf("needs %s", name)
}

func factory(t *testing.T, change func(*process.Options)) enginetest.Factory {
	root := t.TempDir()
	return enginetest.Factory{Private: true, CountsFiles: true, OtherOwners: os.Geteuid() == 0, Open: func(t *testing.T) engine.Engine {
		options := process.Options{Root: root}
		if change != nil {
			change(&options)
		}
		opened, err := process.New(options)
		require.NoError(t, err)
		return opened
	}}
}

func TestConformance(t *testing.T) {
	requireTool(t, "root", os.Geteuid() == 0)
	enginetest.Run(t, factory(t, nil))
}

func TestConformanceWithoutNamespaces(t *testing.T) {
	plain := factory(t, func(o *process.Options) { o.NoNamespaces = true })
	plain.Private = false
	enginetest.Run(t, plain)
}

func TestConformanceWithNothing(t *testing.T) {
	bare := factory(t, func(o *process.Options) { o.NoNamespaces, o.NoCgroups = true, true })
	bare.Private, bare.SameOutput = false, true
	enginetest.Run(t, bare)
}

func TestConformanceWithoutCgroups(t *testing.T) {
	requireTool(t, "root", os.Geteuid() == 0)
	plain := factory(t, func(o *process.Options) { o.NoCgroups = true })
	plain.SameOutput = true
	enginetest.Run(t, plain)
}

// userNamespaces says whether the kernel lets this user make the namespaces that the engine wants.
func userNamespaces() bool {
	probe := exec.Command("/bin/true")
	probe.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
	}
	return probe.Run() == nil
}

// TestConformanceAsNobody runs the suite in a child that is not root.
func TestConformanceAsNobody(t *testing.T) {
	requireTool(t, "root", os.Geteuid() == 0)
	dir, err := os.MkdirTemp("", "holdfast-nobody-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	temporary := filepath.Join(dir, "tmp")
	require.NoError(t, os.Mkdir(temporary, 0o700))
	require.NoError(t, os.Chown(temporary, 65534, 65534))
	// A copy: that user cannot enter the directory where the test was built.
	program, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	binary := filepath.Join(dir, "test")
	require.NoError(t, os.WriteFile(binary, program, 0o755))
	child := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run=^TestAsNobodyChild$", "-test.timeout=9m")
	child.Dir = temporary
	child.Env = []string{"TMPDIR=" + temporary, "HOME=" + temporary, "PATH=" + os.Getenv("PATH"), "HOLDFAST_TEST_NOBODY=1"}
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := child.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Contains(t, string(output), "--- PASS: TestAsNobodyChild", "%s", output)
	t.Logf("user namespaces: %v", strings.Contains(string(output), "private: true"))
}

// TestAsNobodyChild is the child of TestConformanceAsNobody.
func TestAsNobodyChild(t *testing.T) {
	if os.Getenv("HOLDFAST_TEST_NOBODY") == "" {
		t.Skip("only as the child of TestConformanceAsNobody")
	}
	require.NotZero(t, os.Geteuid())
	t.Run("Full", func(t *testing.T) {
		full := factory(t, nil)
		full.Private = userNamespaces()
		t.Logf("private: %v", full.Private)
		enginetest.Run(t, full)
	})
	t.Run("Bare", func(t *testing.T) {
		bare := factory(t, func(o *process.Options) { o.NoNamespaces = true })
		bare.Private, bare.SameOutput = false, true
		enginetest.Run(t, bare)
	})
}
