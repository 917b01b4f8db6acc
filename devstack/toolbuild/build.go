// Package toolbuild builds the programs that Holdfast runs but does not link: the nested modules below tools/ pin their
// versions. A program is built once for a version, whoever asks, and kept in the user's cache directory.
package toolbuild

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoSource says that there is nothing to build from: no checkout of Holdfast with its tools/ was found.
var ErrNoSource = errors.New("no source to build it from")

// Options says what to build.
type Options struct {
	// Name is the program's, and the directory's below tools/: "versitygw".
	Name string
	// Package is the main package: "github.com/versity/versitygw/cmd/versitygw".
	Package string
	// Version is the module version that the caller expects, such as "v1.8.0". When the nested module pins another
	// one, Build fails. Empty: the pinned one, which then needs the source also when the program was built before.
	Version string
	// Tags are build tags, separated by commas. Changing them alone builds nothing anew: they belong to a version.
	Tags string
	// Dir is the nested module's directory. Empty: tools/<Name> of the checkout that this program was compiled from, or
	// of the one that the working directory is in.
	Dir string
	// CacheDir is where programs are kept, as <CacheDir>/<Version>/<Name>. Empty: holdfast/tools in os.UserCacheDir.
	CacheDir string
	// Progress is told, a line at a time, what takes long: the wait for another process, the download, the compiling.
	// Nil: nobody.
	Progress io.Writer
	// Install says what a person without the source can do, as the end of the error: "install versitygw v1.8.0 …".
	Install string
}

func (o *Options) applyDefaults() error {
	if o.Name == "" || o.Package == "" || o.Name != filepath.Base(o.Name) {
		return fmt.Errorf("a tool needs a name and a package, not %q and %q", o.Name, o.Package)
	}
	if o.CacheDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("finding the cache directory: %w", err)
		}
		o.CacheDir = filepath.Join(cache, "holdfast", "tools")
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Install == "" {
		o.Install = fmt.Sprintf("install %s (%s) and put it on the PATH, or run from a checkout of Holdfast", o.Name, o.Package)
	}
	return nil
}

// Build returns the path of the program, after building it when that has not been done yet. Several processes may call
// it at once: one builds, the others wait for it.
func Build(ctx context.Context, options Options) (string, error) {
	if err := options.applyDefaults(); err != nil {
		return "", err
	}
	if options.Version != "" {
		if path := options.path(); isProgram(path) {
			return path, nil
		}
	}
	if err := options.findSource(); err != nil {
		return "", fmt.Errorf("%s: %w", options.Name, err)
	}
	path := options.path()
	if isProgram(path) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("making the cache for %s: %w", options.Name, err)
	}
	unlock, err := options.lock(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("waiting to build %s: %w", options.Name, err)
	}
	defer unlock()
	if isProgram(path) {
		return path, nil // the one that we waited for has built it
	}
	if err := options.build(ctx, path); err != nil {
		return "", fmt.Errorf("building %s %s: %w", options.Name, options.Version, err)
	}
	return path, nil
}

func (o *Options) path() string { return filepath.Join(o.CacheDir, o.Version, o.Name) }

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() > 0 && info.Mode()&0o111 != 0
}

// lock takes the lock that processes share; it goes with its holder, however that ends.
func (o *Options) lock(ctx context.Context, path string) (func(), error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, file.Close())
		}
		if !told {
			told = true
			o.say("waiting for another process that builds %s %s", o.Name, o.Version)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (o *Options) say(format string, args ...any) {
	_, _ = fmt.Fprintf(o.Progress, format+"\n", args...) // a progress line that cannot be shown stops nothing
}

// build compiles into a name of its own and renames: nobody ever runs half a program.
func (o *Options) build(ctx context.Context, path string) (err error) {
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("the go command is needed to build it: %w; %s", err, o.Install)
	}
	temp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	defer func() { _ = os.Remove(temp) }() // gone already when all went well
	began := time.Now()
	o.say("building %s %s from source: once for this version, minutes when nothing of it was built before", o.Name, o.Version)
	if err := o.run(ctx, "downloading", began, "list", "-deps", "-mod=readonly", "-tags", o.Tags, "-f", "{{.ImportPath}}", o.Package); err != nil {
		return err
	}
	err = o.run(ctx, "compiling", began, "build", "-v", "-mod=readonly", "-buildvcs=false", "-tags", o.Tags, "-ldflags", "-s -w", "-o", temp, o.Package)
	if err != nil {
		return err
	}
	file, err := os.Open(temp)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", temp, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	o.say("built %s in %s", path, time.Since(began).Round(time.Second))
	return nil
}

// run runs one go command in the nested module and shows how far it is every few seconds.
func (o *Options) run(ctx context.Context, doing string, began time.Time, args ...string) error {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = o.Dir
	// The nested module's own go.mod decides, not a workspace or a vendor directory around it.
	command.Env = append(os.Environ(), "GOWORK=off", "GO111MODULE=on")
	// The compilers are children of go: all of them go when it is given up.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = 5 * time.Second
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()
	command.Stdout, command.Stderr = writer, writer
	if err := command.Start(); err != nil {
		return errors.Join(err, writer.Close())
	}
	if err := writer.Close(); err != nil { // ours; the child has its own
		return err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(reader)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
	}()
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	var last []string
	count := 0
	for open := true; open; {
		select {
		case line, ok := <-lines:
			if open = ok; !ok {
				break
			}
			count++
			if last = append(last, line); len(last) > 20 {
				last = last[1:]
			}
		case <-ticker.C:
			what := ""
			if doing == "compiling" {
				what = fmt.Sprintf(", %d packages", count)
			}
			o.say("%s %s %s: %s%s", doing, o.Name, o.Version, time.Since(began).Round(time.Second), what)
		}
	}
	if err := command.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go %s: %w:\n%s", args[0], err, strings.Join(last, "\n"))
	}
	return nil
}
