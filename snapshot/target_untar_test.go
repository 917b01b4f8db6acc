package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

// download hands out the directory as it is; upload puts the same there again, byte for byte and bit for bit.
func TestTarRoundTrip(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_TAR"); base != "" {
		tarRoundTrip(t, base)
		return
	}
	t.Run("self", func(t *testing.T) { tarRoundTrip(t, t.TempDir()) })
	t.Run("ordinary user", func(t *testing.T) { asNobody(t, "TestTarRoundTrip", "SNAPSHOT_TEST_TAR="+worldDir(t)) })
}

func tarRoundTrip(t *testing.T, base string) {
	source, target := filepath.Join(base, "source"), filepath.Join(base, "target")
	buildFidelityTree(t, source)
	if os.Geteuid() != 0 { // what it may not read, it cannot hand out
		must(t, os.Chmod(source+"/closed", 0o700))
		must(t, os.Chmod(source+"/closed/inner", 0o700))
		must(t, os.Chmod(source+"/unreadable", 0o400))
	}
	var archive bytes.Buffer
	omissions, err := TarDirectory(t.Context(), source, &archive)
	must(t, err)
	if len(omissions) > 0 {
		t.Errorf("omissions: %v", omissions)
	}
	packed := bytes.Clone(archive.Bytes())
	report, err := UntarDirectory(t.Context(), &archive, target, UntarOptions{Privileged: true})
	must(t, err)
	if len(report.Warnings) > 0 {
		t.Errorf("warnings: %v", report.Warnings)
	}
	compareTrees(t, source, target)
	requireHoles(t, target+"/sparse")
	if os.Geteuid() != 0 {
		return
	}
	// The same stream is good for GNU tar too.
	gnu := filepath.Join(base, "gnu")
	must(t, os.Mkdir(gnu, 0o755))
	command := exec.Command("tar", "-x", "--xattrs", "--xattrs-include=*", "-p", "--same-owner", "-C", gnu)
	command.Stdin = bytes.NewReader(packed)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	want, got := treeRecords(t, source), treeRecords(t, gnu)
	for _, records := range []map[string]string{want, got} { // GNU tar does not set attributes of links
		records["link"], _, _ = strings.Cut(records["link"], ` "trusted`)
	}
	compareRecords(t, want, got)
}

func requireHoles(t *testing.T, path string) {
	t.Helper()
	var stat unix.Stat_t
	must(t, unix.Stat(path, &stat))
	if stat.Blocks*512 >= stat.Size/10 {
		t.Errorf("%s: %d bytes allocated of %d: the holes are gone", path, stat.Blocks*512, stat.Size)
	}
}

func makeTar(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, header := range headers {
		if header.Mode == 0 {
			header.Mode = 0o755
		}
		content := header.Xattrs["content"] //nolint:staticcheck // only carries the content here
		header.Xattrs = nil                 //nolint:staticcheck // see above
		header.Size = int64(len(content))
		must(t, w.WriteHeader(&header))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return buffer.Bytes()
}

func tarFile(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Xattrs: map[string]string{"content": content}} //nolint:staticcheck // see makeTar
}

// A4/A6 uploads: no archive writes outside of its target, whatever it says.
func TestUntarHostileArchives(t *testing.T) {
	link := func(name, text string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: text}
	}
	hard := func(name, old string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: old}
	}
	for name, test := range map[string]struct {
		headers []tar.Header
		want    error
	}{
		"dot dot":                     {[]tar.Header{tarFile("../outside/evil", "x")}, ErrUnsafePath},
		"dot dot inside":              {[]tar.Header{tarFile("a/../../outside/evil", "x")}, ErrUnsafePath},
		"dot dot at the end":          {[]tar.Header{{Typeflag: tar.TypeDir, Name: "a/.."}}, ErrUnsafePath},
		"absolute":                    {[]tar.Header{tarFile("/tmp/evil", "x")}, ErrUnsafePath},
		"through a link":              {[]tar.Header{link("a", "../outside"), tarFile("a/evil", "x")}, ErrUnsafePath},
		"through an absolute link":    {[]tar.Header{link("a", "OUTSIDE"), tarFile("a/evil", "x")}, ErrUnsafePath},
		"through two links":           {[]tar.Header{link("b", ".."), link("a", "b/outside"), tarFile("a/evil", "x")}, ErrUnsafePath},
		"link replaces directory":     {[]tar.Header{{Typeflag: tar.TypeDir, Name: "a"}, link("a", "../outside"), tarFile("a/evil", "x")}, ErrDamaged},
		"directory over a link":       {[]tar.Header{link("a", "../outside"), {Typeflag: tar.TypeDir, Name: "a"}}, ErrUnsafePath},
		"file over a link":            {[]tar.Header{link("a", "../outside/file"), tarFile("a", "x")}, nil},
		"hard link to dot dot":        {[]tar.Header{hard("a", "../outside/file")}, ErrUnsafePath},
		"hard link to absolute":       {[]tar.Header{hard("a", "OUTSIDE/file")}, ErrUnsafePath},
		"hard link through a link":    {[]tar.Header{link("l", "../outside"), hard("a", "l/file")}, ErrUnsafePath},
		"write through a hard link":   {[]tar.Header{link("l", "../outside/file"), hard("a", "l"), tarFile("a", "x")}, nil},
		"mode through a link":         {[]tar.Header{link("l", "../outside/file")}, nil},
		"no name":                     {[]tar.Header{tarFile(".", "x")}, ErrUnsafePath},
		"the root as a link":          {[]tar.Header{link("./", "../outside")}, ErrUnsafePath},
		"deep":                        {[]tar.Header{tarFile(strings.Repeat("d/", maxDepth+1)+"f", "x")}, ErrLimitExceeded},
		"long name":                   {[]tar.Header{tarFile(strings.Repeat("n", 256), "x")}, ErrLimitExceeded},
		"too many bytes":              {[]tar.Header{tarFile("a", strings.Repeat("x", 600)), tarFile("b", strings.Repeat("x", 600))}, ErrLimitExceeded},
		"too many entries":            {[]tar.Header{tarFile("a/b/c/d/e/f/g/h/i/j/k", "x")}, ErrLimitExceeded},
		"hard link to what is not":    {[]tar.Header{hard("a", "b")}, os.ErrNotExist},
		"the same file twice":         {[]tar.Header{tarFile("a", "old"), tarFile("a", "x")}, nil},
		"a file where a directory is": {[]tar.Header{{Typeflag: tar.TypeDir, Name: "a"}, tarFile("a", "x")}, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			outside := filepath.Join(base, "outside")
			must(t, os.Mkdir(outside, 0o755))
			must(t, os.WriteFile(outside+"/file", []byte("theirs"), 0o640))
			before := treeRecords(t, outside)
			for i := range test.headers {
				test.headers[i].Linkname = strings.ReplaceAll(test.headers[i].Linkname, "OUTSIDE", outside)
			}
			target := filepath.Join(base, "target")
			options := UntarOptions{MaxBytes: 1000, MaxEntries: 10}
			if name == "deep" {
				options.MaxEntries = 100_000
			}
			_, err := UntarDirectory(t.Context(), bytes.NewReader(makeTar(t, test.headers...)), target, options)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err != nil {
				requireNothing(t, target)
			}
			if after := treeRecords(t, outside); !maps.Equal(before, after) {
				t.Errorf("outside was changed: %v", after)
			}
			if test.want == nil && name != "mode through a link" {
				if content, err := os.ReadFile(target + "/a"); err != nil || string(content) != "x" {
					t.Errorf("a: %q, %v", content, err)
				}
			}
		})
	}
}

func TestUntarLeavesOutWhatIsPrivileged(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	file := tarFile("a", "x")
	file.PAXRecords = map[string]string{paxXattr + "security.capability": "c", paxXattr + "trusted.x": "t"}
	archive := makeTar(t, file, tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8})
	report, err := UntarDirectory(t.Context(), bytes.NewReader(archive), target, UntarOptions{})
	must(t, err)
	if report.Files != 1 || len(report.Warnings) < 3 {
		t.Errorf("report: %+v", report)
	}
	if _, err := os.Lstat(target + "/disk"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the device: %v", err)
	}
}

// A stream that is cut anywhere, between two entries too, is never taken for the whole.
func TestUntarRefusesTruncatedStreams(t *testing.T) {
	whole := makeTar(t, tarFile("a", strings.Repeat("\x00", 1024)), tarFile("b", "second"), tar.Header{Typeflag: tar.TypeDir, Name: "c"})
	base := t.TempDir()
	target := filepath.Join(base, "target")
	for cut := 0; cut <= len(whole)-1024; cut += 128 {
		_, err := UntarDirectory(t.Context(), bytes.NewReader(whole[:cut]), target, UntarOptions{})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d of %d: %v, want ErrDamaged", cut, len(whole), err)
		}
	}
	broken := errors.New("the wire broke")
	stream := io.MultiReader(bytes.NewReader(whole[:1500]), iotest.ErrReader(broken))
	if _, err := UntarDirectory(t.Context(), stream, target, UntarOptions{}); !errors.Is(err, broken) {
		t.Errorf("a failing stream: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := UntarDirectory(ctx, bytes.NewReader(whole), target, UntarOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	requireNothing(t, target)
	_, err := UntarDirectory(t.Context(), bytes.NewReader(whole), target, UntarOptions{})
	must(t, err)
}

func TestTarNamesWhatItLacks(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_TAR_LACKS"); base != "" {
		source := filepath.Join(base, "source")
		must(t, os.MkdirAll(source+"/closed", 0o755))
		must(t, os.WriteFile(source+"/unreadable", []byte("x"), 0o000))
		must(t, os.WriteFile(source+"/fine", []byte("x"), 0o644))
		must(t, os.Chmod(source+"/closed", 0))
		var archive bytes.Buffer
		omissions, err := TarDirectory(t.Context(), source, &archive)
		must(t, err)
		kinds := map[string]OmissionKind{}
		for _, omission := range omissions {
			kinds[omission.Path] = omission.Kind
		}
		if want := map[string]OmissionKind{"closed": OmissionUnreadable, "unreadable": OmissionUnreadable}; !maps.Equal(kinds, want) {
			t.Errorf("omissions %v, want %v", omissions, want)
		}
		_, err = UntarDirectory(t.Context(), &archive, base+"/target", UntarOptions{})
		must(t, err)
		if _, err := os.Stat(base + "/target/fine"); err != nil {
			t.Error(err)
		}
		return
	}
	asNobody(t, "TestTarNamesWhatItLacks", "SNAPSHOT_TEST_TAR_LACKS="+worldDir(t))
	if _, err := TarDirectory(t.Context(), t.TempDir()+"/missing", io.Discard); !errors.Is(err, ErrSourceMissing) {
		t.Errorf("a missing directory: %v", err)
	}
}

// One thing of a directory comes as it would with all of them.
func TestTarFile(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(source+"/one", []byte("of several"), 0o640))
	must(t, os.WriteFile(source+"/other", []byte("x"), 0o644))
	must(t, os.Symlink("one", source+"/link"))
	must(t, os.Mkdir(source+"/dir", 0o755))
	for name, want := range map[string]tar.Header{
		"one":  {Name: "one", Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len("of several"))},
		"link": {Name: "link", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "one"},
	} {
		var archive bytes.Buffer
		omissions, err := TarFile(t.Context(), source, name, &archive)
		must(t, err)
		if len(omissions) > 0 {
			t.Errorf("omissions of %s: %v", name, omissions)
		}
		reader := tar.NewReader(&archive)
		header, err := reader.Next()
		must(t, err)
		if header.Name != want.Name || header.Typeflag != want.Typeflag || header.Mode != want.Mode || header.Size != want.Size || header.Linkname != want.Linkname {
			t.Errorf("%s is %+v", name, header)
		}
		if text, err := io.ReadAll(reader); err != nil || int64(len(text)) != want.Size {
			t.Errorf("%s holds %q, %v", name, text, err)
		}
		if _, err := reader.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after %s: %v", name, err)
		}
	}
	for _, name := range []string{"none", "dir"} {
		if _, err := TarFile(t.Context(), source, name, io.Discard); !errors.Is(err, ErrSourceMissing) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that shrinks while it is sent is filled up and named: the archive stays readable.
func TestTarOfAShrinkingFile(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(source+"/shrinks", bytes.Repeat([]byte("x"), 2<<20), 0o644))
	must(t, os.WriteFile(source+"/z last", []byte("still here"), 0o644))
	var archive bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) {
		if archive.Len() > 1<<20 {
			must(t, os.Truncate(source+"/shrinks", 1000))
		}
		return archive.Write(p)
	})
	omissions, err := TarDirectory(t.Context(), source, w)
	must(t, err)
	if len(omissions) != 1 || omissions[0].Kind != OmissionChanged || omissions[0].Path != "shrinks" {
		t.Errorf("omissions: %v", omissions)
	}
	target := filepath.Join(t.TempDir(), "target")
	_, err = UntarDirectory(t.Context(), &archive, target, UntarOptions{})
	must(t, err)
	if content, err := os.ReadFile(target + "/z last"); err != nil || string(content) != "still here" {
		t.Errorf("%q, %v", content, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestTarWithoutItsEndMark(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(source+"/file", bytes.Repeat([]byte("x"), 1<<20), 0o644))
	full := errors.New("the reader went away")
	written := 0
	_, err := TarDirectory(t.Context(), source, writerFunc(func(p []byte) (int, error) {
		if written += len(p); written > 500_000 {
			return 0, full
		}
		return len(p), nil
	}))
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, err := TarDirectory(ctx, source, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an ended context: %v", err)
	}
}

func FuzzUntar(f *testing.F) {
	f.Add([]byte("not an archive"))
	f.Add(makeTar(f, tarFile("dir/file", "content"), tar.Header{Typeflag: tar.TypeDir, Name: "dir"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "dir/file"}))
	f.Add(makeTar(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}, tarFile("l/passwd", "x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		_, err := UntarDirectory(t.Context(), bytes.NewReader(data), base+"/target", UntarOptions{MaxBytes: 1 << 20, MaxEntries: 100})
		entries, readErr := os.ReadDir(base)
		must(t, readErr)
		if want := map[bool]int{true: 0, false: 1}[err != nil]; len(entries) != want {
			t.Errorf("%v: %v", err, entries)
		}
	})
}
