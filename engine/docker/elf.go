package docker

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// libraryFinder resolves the shared libraries of programs as this machine's dynamic linker would (ld.so(8)), without
// running anything.
type libraryFinder struct {
	standard []string // what ld.so.conf names, then the built-in places
}

func newLibraryFinder() *libraryFinder {
	finder := &libraryFinder{}
	seen := map[string]bool{}
	finder.readConfig("/etc/ld.so.conf", seen)
	musl, _ := filepath.Glob("/etc/ld-musl-*.path")
	for _, path := range musl {
		if data, err := os.ReadFile(path); err == nil {
			finder.standard = append(finder.standard, strings.FieldsFunc(string(data), func(r rune) bool { return r == ':' || r == '\n' })...)
		}
	}
	finder.standard = append(finder.standard, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
	return finder
}

func (f *libraryFinder) readConfig(path string, seen map[string]bool) {
	if seen[path] {
		return
	}
	seen[path] = true
	data, err := os.ReadFile(path)
	if err != nil {
		return // a machine without it has the built-in places only
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "include":
			pattern := fields[1]
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			included, _ := filepath.Glob(pattern) // the one error is a bad pattern, which names nothing
			for _, one := range included {
				f.readConfig(one, seen)
			}
		case len(fields) == 1 && filepath.IsAbs(fields[0]):
			f.standard = append(f.standard, fields[0])
		}
	}
}

// dependencies lists the interpreter and the direct libraries of a program or library, by the paths at which the
// linker would find them. A file that is not ELF has none.
func (f *libraryFinder) dependencies(path string) ([]string, error) {
	file, err := elf.Open(path)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the program %s: %w", path, err)
	}
	defer file.Close()
	var found []string
	for _, header := range file.Progs {
		if header.Type != elf.PT_INTERP {
			continue
		}
		data := make([]byte, min(header.Filesz, 4096))
		if _, err := header.ReadAt(data, 0); err != nil {
			return nil, fmt.Errorf("reading the interpreter of %s: %w", path, err)
		}
		found = append(found, strings.TrimRight(string(data), "\x00"))
	}
	needed, err := file.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("reading the libraries of %s: %w", path, err)
	}
	places := f.ownPlaces(file, path)
	for _, name := range needed {
		library, err := f.find(name, places, file)
		if err != nil {
			return nil, fmt.Errorf("%s needs %w", path, err)
		}
		found = append(found, library)
	}
	return found, nil
}

// ownPlaces are the places that the file itself names: DT_RUNPATH, else DT_RPATH.
func (f *libraryFinder) ownPlaces(file *elf.File, path string) []string {
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := file.DynString(tag)
		if err != nil || len(values) == 0 {
			continue
		}
		var places []string
		for _, place := range strings.Split(strings.Join(values, ":"), ":") {
			place = strings.NewReplacer("$ORIGIN", filepath.Dir(path), "${ORIGIN}", filepath.Dir(path)).Replace(place)
			if filepath.IsAbs(place) {
				places = append(places, filepath.Clean(place))
			}
		}
		return places
	}
	return nil
}

func (f *libraryFinder) find(name string, own []string, like *elf.File) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, places := range [][]string{own, f.standard} {
		for _, place := range places {
			candidate := filepath.Join(place, name)
			library, err := elf.Open(candidate)
			if err != nil {
				continue
			}
			same := library.Class == like.Class && library.Machine == like.Machine
			library.Close()
			if same { // a machine may have libraries of several architectures
				return candidate, nil
			}
		}
	}
	return "", fmt.Errorf("the library %s, which is nowhere", name)
}
