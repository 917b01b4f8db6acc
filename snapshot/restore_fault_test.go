package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// The context may end at any moment: there is no target, and the error says why.
func TestRestoreCancelled(t *testing.T) {
	hook := &getHook{Provider: storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, hook))
	id := c.snapshot(c.someTree())
	target := filepath.Join(t.TempDir(), "target")
	loads := 0
	hook.set(func() { loads++ })
	_, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
	must(t, err)
	must(t, os.RemoveAll(target))
	if loads < 5 {
		t.Errorf("only %d reads: the test proves little", loads)
	}
	cause := errors.New("stopped by the test")
	for at := range loads {
		ctx, cancel := context.WithCancelCause(t.Context())
		seen := 0
		hook.set(func() {
			if seen++; seen > at {
				cancel(cause)
			}
		})
		_, err := c.repository.Restore(ctx, id, target, RestoreOptions{})
		if seen <= at { // what was read the first time is remembered
			must(t, err)
			must(t, os.RemoveAll(target))
		} else if !errors.Is(err, cause) {
			t.Errorf("at read %d: %v", at, err)
		}
		cancel(nil)
		if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("at read %d the target is there: %v", at, err)
		}
	}
	hook.set(nil)
	_, err = c.repository.Restore(t.Context(), id, target, RestoreOptions{})
	must(t, err)
	requireOnly(t, target)
}

// getHook is a provider that calls before every read, from one goroutine at a time.
type getHook struct {
	storage.Provider
	mutex  sync.Mutex
	before func()
}

func (h *getHook) set(before func()) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.before = before
}

func (h *getHook) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	h.mutex.Lock()
	if h.before != nil {
		h.before()
	}
	h.mutex.Unlock()
	return h.Provider.Get(ctx, key, offset, length)
}

// The verification is not an ornament: what the disk gives back wrong, in content, in length or in kind, is found.
// invariant 5
func TestRestoreVerifiesWhatIsOnDisk(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	zeros := c.fileNode("zeros", strings.Repeat("\x00", 100_000))
	aligned := c.fileNode("aligned", strings.Repeat("x", 1<<16))
	id := c.snapshot(c.tree(aligned, dirNode("dir", c.someTree()), zeros))
	for name, spoil := range map[string]func(dir string) error{
		"a byte changed": func(dir string) error {
			file, err := os.OpenFile(dir+"/dir/big", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.WriteAt(bytes.Repeat([]byte{'!'}, 30), 777_777)
			return err
		},
		"a small file changed":  func(dir string) error { return os.WriteFile(dir+"/dir/small", []byte("a small fil!"), 0o600) },
		"cut short":             func(dir string) error { return os.Truncate(dir+"/dir/big", 999_999) },
		"longer":                func(dir string) error { return os.Truncate(dir+"/dir/empty", 1) },
		"something more":        func(dir string) error { return os.WriteFile(dir+"/dir/more", nil, 0o600) },
		"gone":                  func(dir string) error { return os.Remove(dir + "/dir/small") },
		"a part lost to a hole": func(dir string) error { return punch(dir+"/dir/big", 400_000) },
		"a blob lost to a hole": func(dir string) error { return punch(dir+"/aligned", 1<<16) },
		"a hole filled": func(dir string) error {
			file, err := os.OpenFile(dir+"/zeros", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.WriteAt([]byte{1}, 50_000)
			return err
		},
		"another kind": func(dir string) error {
			if err := os.Remove(dir + "/dir/dir/link"); err != nil {
				return err
			}
			return os.WriteFile(dir+"/dir/dir/link", nil, 0o600)
		},
		"a link instead": func(dir string) error {
			if err := os.Rename(dir+"/dir/small", dir+"/elsewhere"); err != nil {
				return err
			}
			return os.Symlink("../elsewhere", dir+"/dir/small")
		},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "target")
			created, err := newTarget(target, false)
			must(t, err)
			stored, err := c.repository.resolveSnapshot(t.Context(), id)
			must(t, err)
			s := newRestorer(c.repository, created, RestoreOptions{}, defaultMaxEntries)
			dir := created.temporary()
			spoilt := false
			switch wrote := map[string]string{
				"a byte changed": "dir/big", "a small file changed": "dir/small", "a part lost to a hole": "dir/big",
				"a blob lost to a hole": "aligned", "a hole filled": "zeros",
			}[name]; {
			case wrote == "": // seen at the end
				s.beforeFinish = func() { spoilt = true; must(t, spoil(dir)) }
			default: // between the writing and the reading back
				var mutex sync.Mutex
				s.wrote = func(path string) {
					mutex.Lock()
					defer mutex.Unlock()
					if path == wrote {
						spoilt = true
						must(t, spoil(dir))
					}
				}
			}
			err = created.finish(s.run(t.Context(), stored, ""))
			if err == nil || !spoilt {
				t.Errorf("not found (spoilt %v)", spoilt)
			}
			requireNothing(t, target)
		})
	}
}

func punch(path string, length int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, length)
}

// kill -9 in the middle leaves no target; the next restore removes what was left and succeeds. invariant 5
func TestRestoreKilled(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_KILLED"); base != "" {
		restoreUntilKilled(t, base, os.Getenv("SNAPSHOT_TEST_MOMENT"))
		return
	}
	for _, moment := range []string{"writing", "verified"} {
		t.Run(moment, func(t *testing.T) {
			base := t.TempDir()
			provider := openDirectory(t, filepath.Join(base, "repository"))
			c := newCrafter(t, newTestRepository(t, storage.PolicyAll, provider))
			id := c.snapshot(c.someTree())
			target := filepath.Join(base, "restored", "target")
			must(t, os.Mkdir(filepath.Dir(target), 0o755))
			command := exec.Command("/proc/self/exe", "-test.run=^TestRestoreKilled$", "-test.v")
			command.Env = append(os.Environ(), "SNAPSHOT_TEST_KILLED="+base, "SNAPSHOT_TEST_MOMENT="+moment)
			out, err := command.StdoutPipe()
			must(t, err)
			command.Stderr = os.Stderr
			must(t, command.Start())
			timer := time.AfterFunc(time.Minute, func() { command.Process.Kill() })
			defer timer.Stop()
			lines := bufio.NewScanner(out)
			for ready := false; !ready; ready = lines.Text() == "READY" {
				if !lines.Scan() {
					t.Fatal("the child ended by itself")
				}
			}
			must(t, command.Process.Kill())
			_ = command.Wait() // says that it was killed
			if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target is there: %v", err)
			}
			left, err := os.ReadDir(filepath.Dir(target))
			must(t, err)
			if len(left) != 1 {
				t.Errorf("the killed restore should have left its directory: %v", left)
			}
			_, err = c.repository.Restore(t.Context(), id, target, RestoreOptions{})
			must(t, err)
			if left, _ = os.ReadDir(filepath.Dir(target)); len(left) != 1 || left[0].Name() != "target" {
				t.Errorf("left: %v", left)
			}
			if content, err := os.ReadFile(target + "/small"); err != nil || string(content) != "a small file" {
				t.Errorf("%q, %v", content, err)
			}
		})
	}
}

func restoreUntilKilled(t *testing.T, base, moment string) {
	provider := openDirectory(t, filepath.Join(base, "repository"))
	r, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, provider), testPassword, testOptions())
	must(t, err)
	wait := func() {
		fmt.Println("READY")
		select {}
	}
	target := filepath.Join(base, "restored", "target")
	options := RestoreOptions{}
	if moment == "verified" {
		options.Prepare = func(string) error { wait(); return nil }
	} else {
		options.wrote = func(string) { wait() }
	}
	_, err = r.Restore(t.Context(), "latest", target, options)
	t.Errorf("went on: %v", err)
}

// A full disk is ErrLocalSpace; nothing is left, and what else is on that disk is untouched.
func TestRestoreDiskFull(t *testing.T) {
	requireRoot(t)
	c := newCrafter(t, memoryRepository(t))
	id := c.snapshot(c.someTree())
	for name, options := range map[string]string{"bytes": "size=512k", "inodes": "size=16m,nr_inodes=6"} {
		t.Run(name, func(t *testing.T) {
			mount := mountTmpfs(t, options)
			content := sha256.Sum256([]byte("theirs"))
			must(t, os.WriteFile(mount+"/theirs", content[:], 0o600))
			before := treeRecords(t, mount)
			target := filepath.Join(mount, "target")
			_, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
			if !errors.Is(err, ErrLocalSpace) {
				t.Errorf("got %v, want ErrLocalSpace", err)
			}
			requireNothing(t, target)
			after := treeRecords(t, mount)
			delete(before, ".") // its times tell that something came and went
			delete(after, ".")
			if !maps.Equal(before, after) {
				t.Errorf("changed: %v", after)
			}
		})
	}
}
