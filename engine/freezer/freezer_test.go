package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

var container = strings.Repeat("0af1", 16)

// machine is a pretended /proc and cgroup file system.
type machine struct {
	t    *testing.T
	root string
	list []*mountinfo.Info
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, root: t.TempDir()}
	m.process("self", "0::/agent\n")
	return m
}

func (m *machine) process(pid, cgroups string) {
	dir := filepath.Join(m.root, "proc", pid)
	require.NoError(m.t, os.MkdirAll(dir, 0o755))
	require.NoError(m.t, os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroups), 0o644))
}

func (m *machine) mount(kind, root, options string) string {
	point := filepath.Join(m.root, fmt.Sprint("mount", len(m.list)))
	m.list = append(m.list, &mountinfo.Info{FSType: kind, Root: root, Mountpoint: point, VFSOptions: options})
	return point
}

// group makes a cgroup in a mount; its control file has a state.
func (m *machine) group(dir, file, state string) string {
	require.NoError(m.t, os.MkdirAll(dir, 0o755))
	require.NoError(m.t, os.WriteFile(filepath.Join(dir, file), []byte(state), 0o644))
	return dir
}

func (m *machine) view() View {
	return View{Proc: filepath.Join(m.root, "proc"), Mounts: func() ([]*mountinfo.Info, error) { return m.list, nil }}
}

func TestFind(t *testing.T) {
	ours := "holdfast-aaaaaaaaaaaaaaaaaaaaaaaaaa.1." + strings.Repeat("b", 24)
	cases := map[string]struct {
		cgroups, name string
		make          func(m *machine) string
	}{
		"v1": {"5:freezer:/docker/" + container + "\n0::/\n", container, func(m *machine) string {
			m.group(filepath.Join(m.mount("cgroup", "/", "rw,memory"), "docker", container), "memory.usage", "")
			return m.group(filepath.Join(m.mount("cgroup", "/", "rw,freezer"), "docker", container), "freezer.state", "THAWED\n")
		}},
		"v2, a systemd scope, and a process in a cgroup below": {"0::/system.slice/docker-" + container + ".scope/init.scope\n", container, func(m *machine) string {
			return m.group(filepath.Join(m.mount("cgroup2", "/", "rw"), "system.slice", "docker-"+container+".scope"), "cgroup.freeze", "0\n")
		}},
		"both, v2 without a freezer": {"7:freezer,cpu:/hf/" + container + "\n0::/hf/" + container + "\n", container, func(m *machine) string {
			require.NoError(m.t, os.MkdirAll(filepath.Join(m.mount("cgroup2", "/", "rw"), "hf", container), 0o755))
			return m.group(filepath.Join(m.mount("cgroup", "/", "rw,cpu,freezer"), "hf", container), "freezer.state", "THAWED\n")
		}},
		"a mount of a part": {"5:freezer:/outer/" + ours + "\n", ours, func(m *machine) string {
			m.mount("cgroup", "/other", "rw,freezer")
			return m.group(filepath.Join(m.mount("cgroup", "/outer", "rw,freezer"), ours), "freezer.state", "THAWED\n")
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.process("4711", c.cgroups)
			m.process("12", "5:freezer:/\n0::/system.slice\n")
			want := c.make(m)
			found, err := m.view().Find(c.name, strings.Repeat("f", 64))
			require.NoError(t, err)
			require.Len(t, found, 1, "nothing runs in the other")
			require.Equal(t, want, found[c.name].Dir())
		})
	}
}

// What would freeze more than one instance is refused, and the machine's first process is never a reason to freeze anything.
func TestFindRefuses(t *testing.T) {
	m := newMachine(t)
	root := m.mount("cgroup", "/", "rw,freezer")
	m.group(root, "freezer.state", "THAWED\n")
	m.group(filepath.Join(root, "docker", container), "freezer.state", "THAWED\n")
	m.process("0", "5:freezer:/docker/"+container+"\n")
	m.process("1", "5:freezer:/docker/"+container+"\n")
	m.process("50", "5:freezer:/\n")
	found, err := m.view().Find(container)
	require.NoError(t, err)
	require.Empty(t, found)
	for _, name := range []string{"", "/", ".", "docker", container[:12], "holdfast-", "holdfast-x", "../" + container, strings.ToUpper(container) + "0"} {
		_, err := m.view().Find(name)
		require.ErrorIs(t, err, ErrRefused, "%q", name)
	}
	m.process("60", "5:freezer:/docker/"+container+"\n")
	m.process("self", "5:freezer:/docker/"+container+"/agent\n")
	_, err = m.view().Find(container)
	require.ErrorIs(t, err, ErrRefused, "it would stop itself")
	require.ErrorIs(t, Group{}.Freeze(t.Context()), ErrRefused)
	require.ErrorIs(t, Group{}.Thaw(), ErrRefused)
	require.ErrorIs(t, Group{}.Kill(), ErrRefused)
}

// Only what stands still is killed, by its numbers: none is 1 or less, and what runs could have ended and left its number to another.
func TestKillRefuses(t *testing.T) {
	m := newMachine(t)
	group := Group{dir: m.group(filepath.Join(m.root, "g"), "freezer.state", "THAWED\n")}
	m.group(group.dir, "cgroup.procs", "1\n")
	require.ErrorIs(t, group.Kill(), ErrRefused)
	m.group(group.dir, "freezer.state", "FROZEN\n")
	for _, procs := range []string{"0\n", "1\n", "-1\n", "all\n"} {
		m.group(group.dir, "cgroup.procs", procs)
		require.ErrorIs(t, group.Kill(), ErrRefused, "%q", procs)
	}
	m.group(group.dir, "cgroup.procs", "")
	require.NoError(t, group.Kill())
}

// It is frozen when the kernel says so, not when it was asked.
func TestFreezeWaitsForTheKernel(t *testing.T) {
	m := newMachine(t)
	group := Group{dir: m.group(filepath.Join(m.root, "g"), "cgroup.freeze", "0\n"), unified: true}
	m.group(group.dir, "cgroup.events", "populated 1\nfrozen 0\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time"))
	require.ErrorContains(t, group.Freeze(ctx), "does not stand still yet")
	data, err := os.ReadFile(filepath.Join(group.dir, "cgroup.freeze"))
	require.NoError(t, err)
	require.Equal(t, "1", string(data)[:1])
	m.group(group.dir, "cgroup.events", "populated 1\nfrozen 1\n")
	require.NoError(t, group.Freeze(t.Context()))
	require.NoError(t, group.Thaw())
}
