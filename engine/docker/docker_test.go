package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/engine"
	"holdfast/engine/enginetest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := removeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "removing the tests' image:", err)
		code = 1
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// hostRepository is the random name of the images that the tests make; a child without root is told it.
const hostRepository = "HOLDFAST_TEST_HOST_IMAGE"

// requireDocker skips a test on a machine without Docker, unless it must not be skipped.
func requireDocker(t *testing.T) {
	t.Helper()
	opened, err := New(Options{})
	require.NoError(t, err)
	defer opened.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err = opened.Info(ctx); err != nil {
		requireTool(t, "docker", err.Error())
	}
}

func requireTool(t *testing.T, name, reason string) {
	t.Helper()
	for required := range strings.SplitSeq(os.Getenv("HOLDFAST_REQUIRE"), ",") {
		if required == name {
			t.Fatalf("%s is required and not here: %s", name, reason)
		}
	}
	t.Skipf("needs %s: %s", name, reason)
}

func randomName(t *testing.T) string {
	t.Helper()
	var raw [6]byte
	_, err := rand.Read(raw[:])
	require.NoError(t, err)
	return hex.EncodeToString(raw[:])
}

// open makes an engine and sees to the removal of the images that it made, by their ids.
func open(t *testing.T, options Options) *Engine {
	t.Helper()
	opened, err := New(options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, opened.Close()) })
	return opened
}

func removeImage(t *testing.T, e *Engine, id string) {
	t.Helper()
	t.Cleanup(func() {
		require.NotEmpty(t, id)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := e.client.ImageRemove(ctx, id, image.RemoveOptions{Force: true})
		if errdefs.IsNotFound(err) { // the same image was made twice
			return
		}
		require.NoError(t, err)
	})
}

// shared is the host image of all tests that only need one; TestMain removes it.
var shared struct {
	once       sync.Once
	repository string
	image      engine.Image
	said       []string
	err        error
}

func madeImage(t *testing.T) (repository string, made engine.Image) {
	t.Helper()
	requireDocker(t)
	shared.once.Do(func() {
		shared.repository = "holdfast-test-" + randomName(t) + "/host"
		e := open(t, Options{HostImage: shared.repository, DefaultImage: "-"})
		shared.image, shared.err = e.PrepareImage(t.Context(), "", func(text string) { shared.said = append(shared.said, text) })
	})
	require.NoError(t, shared.err)
	require.True(t, shared.image.Made)
	require.True(t, strings.HasPrefix(shared.image.Reference, shared.repository+":"), shared.image.Reference)
	require.NotEmpty(t, shared.said, "making an image is said")
	return shared.repository, shared.image
}

func removeShared() error {
	if shared.image.ID == "" {
		return nil
	}
	e, err := New(Options{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = e.client.ImageRemove(ctx, shared.image.ID, image.RemoveOptions{Force: true})
	return errors.Join(err, e.Close())
}

func conformance(t *testing.T, repository string) {
	enginetest.Run(t, enginetest.Factory{Private: true, OtherOwners: os.Geteuid() == 0, Open: func(t *testing.T) engine.Engine {
		opened, err := New(Options{HostImage: repository, DefaultImage: "-"})
		require.NoError(t, err)
		return opened
	}})
}

func TestConformance(t *testing.T) {
	repository, _ := madeImage(t)
	conformance(t, repository)
}

// TestConformanceAsNobody runs the suite in a child that is not root but may use the engine's socket.
func TestConformanceAsNobody(t *testing.T) {
	repository, _ := madeImage(t)
	if os.Geteuid() != 0 {
		requireTool(t, "root", "the child must be given another user")
	}
	socket, err := os.Stat("/var/run/docker.sock")
	if err != nil {
		requireTool(t, "docker", err.Error())
	}
	group := socket.Sys().(*syscall.Stat_t).Gid
	runAsNobody(t, []uint32{group}, "TestAsNobodyChild", hostRepository+"="+repository)
}

// TestAsNobodyChild is the child of TestConformanceAsNobody.
func TestAsNobodyChild(t *testing.T) {
	repository := os.Getenv(hostRepository)
	if repository == "" {
		t.Skip("only as the child of TestConformanceAsNobody")
	}
	require.NotZero(t, os.Geteuid())
	conformance(t, repository)
}

// runAsNobody runs a test of this binary as uid 65534. The binary is copied: that user cannot enter where it was built.
func runAsNobody(t *testing.T, groups []uint32, test string, environment ...string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-nobody-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	temporary := filepath.Join(dir, "tmp")
	require.NoError(t, os.Mkdir(temporary, 0o700))
	require.NoError(t, os.Chown(temporary, 65534, 65534))
	source, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer source.Close()
	binary := filepath.Join(dir, "test")
	target, err := os.OpenFile(binary, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(target, source)
	require.NoError(t, err)
	require.NoError(t, target.Close())
	child := exec.CommandContext(t.Context(), binary, "-test.v", "-test.count=1", "-test.run=^"+test+"$", "-test.timeout=9m")
	child.Dir = temporary
	child.Env = append([]string{"TMPDIR=" + temporary, "HOME=" + temporary, "PATH=" + os.Getenv("PATH"), "HOLDFAST_REQUIRE=" + os.Getenv("HOLDFAST_REQUIRE")}, environment...)
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups}}
	output, err := child.CombinedOutput()
	require.NoError(t, err, "%s", output)
	require.Contains(t, string(output), "--- PASS: "+test, "%s", output)
	require.NotContains(t, string(output), "--- SKIP", "%s", output)
}

// TestSafeDefaults looks at what a process inside can do, not at what was asked for.
func TestSafeDefaults(t *testing.T) {
	repository, made := madeImage(t)
	e := open(t, Options{HostImage: repository, DefaultImage: "-"})
	content := t.TempDir()
	name := "holdfast-test-" + randomName(t)
	id, err := e.Create(t.Context(), engine.Spec{Name: name, Image: made.Reference, ContentDir: content, MemoryBytes: 64 << 20, CPUs: 0.5, PIDs: 77, Hostname: "inside"})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, e.Stop(context.Background(), id, 0))
		require.NoError(t, e.Remove(context.Background(), id))
	})
	require.NoError(t, e.Start(t.Context(), id))
	require.NoError(t, e.Ready(t.Context(), id))
	var out strings.Builder
	code, err := e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "grep -E '^(NoNewPrivs|CapEff|CapBnd|Seccomp):' /proc/self/status; hostname; cat /proc/1/comm; mknod /tmp/device b 8 0 || echo no device"}, Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Contains(t, out.String(), "NoNewPrivs:\t1")
	require.Contains(t, out.String(), "Seccomp:\t2")
	require.Contains(t, out.String(), "inside")
	require.Contains(t, out.String(), "docker-init")
	require.Contains(t, out.String(), "no device")
	if os.Geteuid() == 0 { // chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service
		require.Contains(t, out.String(), "CapEff:\t00000000000004fb")
		require.Contains(t, out.String(), "CapBnd:\t00000000000004fb")
	}
	found, err := e.client.ContainerInspect(t.Context(), id)
	require.NoError(t, err)
	require.EqualValues(t, 64<<20, found.HostConfig.Memory)
	require.EqualValues(t, 5e8, found.HostConfig.NanoCPUs)
	require.EqualValues(t, 77, *found.HostConfig.PidsLimit)
	require.False(t, found.HostConfig.Privileged)
	require.Equal(t, container.RestartPolicyDisabled, found.HostConfig.RestartPolicy.Name)
	require.Equal(t, "10m", found.HostConfig.LogConfig.Config["max-size"])

	// A bomb of processes hits its own limit.
	code, err = e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do sleep 30 & i=$((i+1)); done"}})
	require.NoError(t, err)
	require.NotZero(t, code)
}

// TestForeignContainersAreNotTouched makes a container that is not ours and tries everything on it.
func TestForeignContainersAreNotTouched(t *testing.T) {
	repository, made := madeImage(t)
	e := open(t, Options{HostImage: repository, DefaultImage: "-"})
	name := "holdfast-test-" + randomName(t)
	foreign, err := e.client.ContainerCreate(t.Context(), &container.Config{Image: made.Reference, Entrypoint: []string{"/bin/sleep", "600"}}, nil, nil, nil, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NotEmpty(t, foreign.ID)
		require.NoError(t, e.client.ContainerRemove(context.Background(), foreign.ID, container.RemoveOptions{Force: true}))
	})
	require.NoError(t, e.client.ContainerStart(t.Context(), foreign.ID, container.StartOptions{}))
	for _, id := range []string{foreign.ID, name} {
		require.ErrorIs(t, e.Stop(t.Context(), id, 0), engine.ErrNotFound)
		require.ErrorIs(t, e.Pause(t.Context(), id), engine.ErrNotFound)
		require.NoError(t, e.Remove(t.Context(), id), "what is not there for us needs no removal")
		_, err = e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"true"}})
		require.ErrorIs(t, err, engine.ErrNotFound)
	}
	list, err := e.List(t.Context(), nil)
	require.NoError(t, err)
	for _, one := range list {
		require.NotEqual(t, foreign.ID, one.ID)
	}
	_, err = e.Create(t.Context(), engine.Spec{Name: name, Image: made.Reference, ContentDir: t.TempDir()})
	require.ErrorIs(t, err, engine.ErrConflict)
	found, err := e.client.ContainerInspect(t.Context(), foreign.ID)
	require.NoError(t, err)
	require.True(t, found.State.Running)
}

// TestReadyNeedsTheContent replaces the content directory behind a running container's back (invariant 5's neighbour).
func TestReadyNeedsTheContent(t *testing.T) {
	repository, made := madeImage(t)
	e := open(t, Options{HostImage: repository, DefaultImage: "-"})
	content := filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.Mkdir(content, 0o755))
	id, err := e.Create(t.Context(), engine.Spec{Name: "holdfast-test-" + randomName(t), Image: made.Reference, ContentDir: content})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, e.Stop(context.Background(), id, 0))
		require.NoError(t, e.Remove(context.Background(), id))
	})
	require.NoError(t, e.Start(t.Context(), id))
	require.NoError(t, e.Ready(t.Context(), id))
	require.NoError(t, os.Rename(content, content+"-moved"))
	require.NoError(t, os.Mkdir(content, 0o755))
	// However long a probe takes here: Ready goes on until its context ends, and then says what the last one saw.
	for patience := 2 * time.Second; ; patience *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = e.Ready(ctx, id)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		if strings.Contains(err.Error(), "does not see its content") {
			break
		}
		require.Less(t, patience, time.Minute, "%v", err)
	}

	// Content that is gone when the container starts again is an error, and no empty directory is made in its place.
	require.NoError(t, e.Stop(t.Context(), id, time.Second))
	require.NoError(t, os.Remove(content))
	require.Error(t, e.Start(t.Context(), id))
	_, err = os.Stat(content)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestStopTellsEverything proves that the default command passes SIGTERM on and waits: a server begun by an exec saves.
func TestStopTellsEverything(t *testing.T) {
	repository, made := madeImage(t)
	e := open(t, Options{HostImage: repository, DefaultImage: "-"})
	content := t.TempDir()
	id, err := e.Create(t.Context(), engine.Spec{Name: "holdfast-test-" + randomName(t), Image: made.Reference, ContentDir: content})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, e.Stop(context.Background(), id, 0))
		require.NoError(t, e.Remove(context.Background(), id))
	})
	require.NoError(t, e.Start(t.Context(), id))
	require.NoError(t, e.Ready(t.Context(), id))
	code, err := e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"/bin/sh", "-c",
		"(setsid sh -c 'trap \"sleep 0.3; echo done > saved; exit\" TERM; touch armed; while :; do sleep 0.05; done' </dev/null >/dev/null 2>&1 &)"}})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(content, "armed")); return err == nil }, time.Minute, 20*time.Millisecond)
	require.NoError(t, e.Stop(t.Context(), id, 5*time.Minute))
	data, err := os.ReadFile(filepath.Join(content, "saved"))
	require.NoError(t, err)
	require.Equal(t, "done\n", string(data))
}

// TestUnavailable asks an engine that is not there.
func TestUnavailable(t *testing.T) {
	e := open(t, Options{Host: "unix://" + filepath.Join(t.TempDir(), "none.sock")})
	_, err := e.Info(t.Context())
	require.ErrorIs(t, err, engine.ErrUnavailable)
	_, err = e.PrepareImage(t.Context(), "", nil)
	require.ErrorIs(t, err, engine.ErrUnavailable)
	_, err = e.PrepareImage(t.Context(), "debian:12", nil)
	require.ErrorIs(t, err, engine.ErrUnavailable)
	_, err = e.List(t.Context(), nil)
	require.ErrorIs(t, err, engine.ErrUnavailable)
	_, err = e.Inspect(t.Context(), "some-"+strconv.Itoa(os.Getpid()))
	require.ErrorIs(t, err, engine.ErrUnavailable)
	require.ErrorIs(t, e.Remove(t.Context(), "some"), engine.ErrUnavailable, "not asked is not removed")
	_, err = e.Create(t.Context(), engine.Spec{Name: "name", Image: "image", ContentDir: t.TempDir()})
	require.ErrorIs(t, err, engine.ErrUnavailable)
}

// What the kernel counts in sum and by kind is counted once; a machine that counts nothing of a disk gives no entries.
func TestIOBytes(t *testing.T) {
	require.Zero(t, ioBytes(container.StatsResponse{}))
	var sample container.StatsResponse
	for op, value := range map[string]uint64{"Read": 1, "Write": 2, "Sync": 1, "Async": 2, "Discard": 0, "Total": 3} {
		sample.BlkioStats.IoServiceBytesRecursive = append(sample.BlkioStats.IoServiceBytesRecursive, container.BlkioStatEntry{Op: op, Value: value})
	}
	sample.BlkioStats.IoServiceBytesRecursive = append(sample.BlkioStats.IoServiceBytesRecursive,
		container.BlkioStatEntry{Op: "read", Value: 10}, container.BlkioStatEntry{Op: "write", Value: 20}) // cgroup v2
	sample.Networks = map[string]container.NetworkStats{"eth0": {RxBytes: 100, TxBytes: 200}, "eth1": {TxBytes: 1000}}
	require.EqualValues(t, 1333, ioBytes(sample))
}

func TestWorkCountsTheNetwork(t *testing.T) {
	repository, made := madeImage(t)
	e := open(t, Options{HostImage: repository, DefaultImage: "-"})
	id, err := e.Create(t.Context(), engine.Spec{
		Name: "holdfast-test-" + randomName(t), Image: made.Reference, ContentDir: t.TempDir(), Labels: map[string]string{engine.LabelNode: "test"},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, e.Stop(ctx, id, 0))
		require.NoError(t, e.Remove(ctx, id))
	})
	require.NoError(t, e.Start(t.Context(), id))
	require.NoError(t, e.Ready(t.Context(), id))
	found, err := e.client.ContainerInspect(t.Context(), id)
	require.NoError(t, err)
	gateway := found.NetworkSettings.Networks["bridge"].Gateway
	require.NotEmpty(t, gateway)
	before, err := e.Work(t.Context(), id)
	require.NoError(t, err)
	code, err := e.Exec(t.Context(), id, engine.ExecSpec{Command: []string{"bash", "-c",
		"for i in $(seq 100); do head -c 1000 /dev/zero > /dev/udp/" + gateway + "/9; done"}})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Eventually(t, func() bool {
		after, err := e.Work(t.Context(), id)
		return err == nil && after.IOBytes >= before.IOBytes+100_000
	}, time.Minute, 50*time.Millisecond)
}
