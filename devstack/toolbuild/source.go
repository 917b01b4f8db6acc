package toolbuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// findSource fills in Dir and Version from the nested module.
func (o *Options) findSource() error {
	if o.Dir == "" {
		dir, err := findModule(o.Name)
		if err != nil {
			return fmt.Errorf("%w: %s", err, o.Install)
		}
		o.Dir = dir
	}
	text, err := os.ReadFile(filepath.Join(o.Dir, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no go.mod: %w: %s", o.Dir, ErrNoSource, o.Install)
	}
	if err != nil {
		return err
	}
	pinned := pinnedVersion(string(text), o.Package)
	switch {
	case pinned == "":
		return fmt.Errorf("%s/go.mod requires no module of %s", o.Dir, o.Package)
	case o.Version != "" && o.Version != pinned:
		return fmt.Errorf("%s/go.mod pins %s, wanted is %s", o.Dir, pinned, o.Version)
	}
	o.Version = pinned
	return nil
}

// findModule looks for tools/<name> in the checkout that this code was compiled from, then in that of the working
// directory. It goes by the module's path and not only by the directory's name: somebody else's tools/ is not run.
func findModule(name string) (string, error) {
	var starts []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) { // not absolute with -trimpath
		starts = append(starts, filepath.Dir(file))
	}
	if working, err := os.Getwd(); err == nil {
		starts = append(starts, working)
	}
	for _, dir := range starts {
		for {
			candidate := filepath.Join(dir, "tools", name)
			text, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
			if err == nil && modulePath(string(text)) == "holdfast/tools/"+name {
				return candidate, nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	return "", ErrNoSource
}

func modulePath(text string) string {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "module" {
			return fields[1]
		}
	}
	return ""
}

// pinnedVersion is the version of the required module that has the package: the one with the longest path.
func pinnedVersion(text, pkg string) string {
	version, longest := "", ""
	for line := range strings.Lines(text) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "v") {
			continue
		}
		if module := fields[0]; (module == pkg || strings.HasPrefix(pkg, module+"/")) && len(module) > len(longest) {
			version, longest = fields[1], module
		}
	}
	return version
}
