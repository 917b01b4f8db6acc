package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The data sets. They are the same on every machine that has the same Go modules.
const (
	sourceSet = "source"
	tinySet   = "tiny"
	largeSet  = "large"
)

var setNames = []string{sourceSet, tinySet, largeSet}

// The sizes at scale 1.
const (
	sourceFiles = 70_000
	sourceBytes = 2_000_000_000
	tinyFiles   = 100_000
	tinyPerDir  = 100
	largeBytes  = 1 << 30 // of each of the two files
)

// extent is what a data set has.
type extent struct{ files, dirs, bytes int64 }

// makeSet fills dir, which does not exist, with a data set. A set is smaller than it should be when there are not
// enough sources.
func makeSet(ctx context.Context, name, dir string, scale float64, sources []string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var err error
	switch name {
	case sourceSet:
		err = makeSourceSet(ctx, dir, int(sourceFiles*scale), int64(sourceBytes*scale), sources)
	case tinySet:
		err = makeTinySet(ctx, dir, max(1, int(tinyFiles*scale)), sources)
	case largeSet:
		err = makeLargeSet(ctx, dir, max(1<<20, int64(largeBytes*scale)), sources)
	}
	if err != nil {
		return fmt.Errorf("making the data set %s: %w", name, err)
	}
	return nil
}

// defaultSources are the Go distribution and the module cache.
func defaultSources(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("asking go where its sources are (--source names others): %w", err)
	}
	var found []string
	for dir := range strings.Lines(string(out)) {
		dir = strings.TrimSpace(dir)
		if stat, err := os.Stat(dir); err == nil && stat.IsDir() {
			found = append(found, dir)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("there are no Go sources on this machine: name some by --source")
	}
	return found, nil
}

// errEnough ends a walk through the sources.
var errEnough = errors.New("enough")

// eachSource calls visit for every regular file below the sources, in the same order each time. Archives that the go
// command keeps of modules come last if archives is true, and not at all if not.
func eachSource(ctx context.Context, sources []string, archives bool, visit func(root int, path, relative string, size int64) error) error {
	passes := []bool{false}
	if archives {
		passes = append(passes, true)
	}
	for _, archive := range passes {
		for root, source := range sources {
			err := filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
				switch {
				case ctx.Err() != nil:
					return context.Cause(ctx)
				case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
					return nil
				case err != nil:
					return err
				case !entry.Type().IsRegular() || strings.HasSuffix(path, ".zip") != archive || strings.HasSuffix(path, ".lock"):
					return nil
				}
				info, err := entry.Info()
				if err != nil {
					return nil // it is gone
				}
				relative, err := filepath.Rel(source, path)
				if err != nil {
					return err
				}
				return visit(root, path, relative, info.Size())
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// makeSourceSet copies source files, and then archives of sources, as a repository's .git has them, up to a number of
// bytes.
func makeSourceSet(ctx context.Context, dir string, files int, bytes int64, sources []string) error {
	err := eachSource(ctx, sources, true, func(root int, path, relative string, size int64) error {
		archive := strings.HasSuffix(path, ".zip")
		switch {
		case bytes <= 0:
			return errEnough
		case files <= 0 && !archive, size > bytes:
			return nil
		}
		target := filepath.Join(dir, fmt.Sprintf("%d", root), relative)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		files--
		bytes -= size
		return copyFile(path, target)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return err
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// makeTinySet cuts sources into files of 1 to 4 KiB.
func makeTinySet(ctx context.Context, dir string, files int, sources []string) error {
	random := rand.New(rand.NewPCG(42, 0))
	piece := make([]byte, 4<<10)
	made := 0
	for pass := int64(0); made < files; pass++ {
		before := made
		err := eachSource(ctx, sources, false, func(_ int, path, _ string, size int64) error {
			if size > 1<<20 || !strings.HasSuffix(path, ".go") {
				return nil
			}
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			// Another pass cuts elsewhere, so that its pieces are no copies.
			if _, err := file.Seek(pass*100, io.SeekStart); err != nil {
				return err
			}
			for {
				n, err := io.ReadFull(file, piece[:1024+random.IntN(3*1024)])
				if n < 1024 {
					return ignoreEnd(err)
				}
				below := filepath.Join(dir, fmt.Sprintf("%04d", made/tinyPerDir))
				if made%tinyPerDir == 0 {
					if err := os.Mkdir(below, 0o755); err != nil {
						return err
					}
				}
				if err := os.WriteFile(filepath.Join(below, fmt.Sprintf("%06d", made)), piece[:n], 0o644); err != nil {
					return err
				}
				if made++; made == files {
					return errEnough
				}
				if err != nil {
					return ignoreEnd(err)
				}
			}
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		if made == before {
			return errors.New("the sources have no Go files to cut")
		}
	}
	return nil
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// makeLargeSet makes one file of noise and one of text.
func makeLargeSet(ctx context.Context, dir string, size int64, sources []string) (err error) {
	text, err := os.Create(filepath.Join(dir, "text"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, text.Close()) }()
	var written int64
	err = eachSource(ctx, sources, false, func(_ int, path, relative string, length int64) error {
		if length > 4<<20 || strings.Contains(path, "/cache/download/") {
			return nil
		}
		source, err := os.Open(path)
		if err != nil {
			return err
		}
		defer source.Close()
		n, err := io.Copy(text, io.LimitReader(io.MultiReader(strings.NewReader("\n== "+relative+"\n"), source), size-written))
		if written += n; err == nil && written >= size {
			return errEnough
		}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	noise, err := os.Create(filepath.Join(dir, "noise"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, noise.Close()) }()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return err
	}
	stream := cipher.NewCTR(block, make([]byte, aes.BlockSize))
	buffer := make([]byte, 64<<10)
	for left := written; left > 0; { // as much as there is text, so that the set has the same mixture at every size
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := buffer[:min(left, int64(len(buffer)))]
		clear(part)
		stream.XORKeyStream(part, part)
		if _, err := noise.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// measure counts what a data set has, and brings it into the page cache by reading it.
func measure(ctx context.Context, dir string) (extent, error) {
	var e extent
	buffer := make([]byte, 128<<10)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case entry.IsDir():
			e.dirs++
			return nil
		}
		e.files++
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		for {
			n, err := file.Read(buffer)
			e.bytes += int64(n)
			if err != nil {
				return ignoreEnd(err)
			}
		}
	})
	return e, err
}
