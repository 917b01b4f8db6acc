package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// place is where a program works for one data set.
type place struct {
	source     string
	repository string
	state      string // caches and configuration
	target     string // of a restore; it does not exist yet
}

// tool is one program that is measured. create may take several commands.
type tool struct {
	name                   string // with its version
	create                 func(place) []command
	backup, restore, check func(place) command
	// resident is Holdfast's alone.
	resident func(place) command
	// checks reports whether it can check a repository of Holdfast.
	checks bool
}

const password = "measured"

// quickVersion bounds the question for a version, which also finds out what is no such program at all.
const quickVersion = 30 * time.Second

// detect finds out which program a binary is.
func detect(ctx context.Context, binary, kopiaCompression string) (*tool, error) {
	path, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	if stat, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("--peer: %w", err)
	} else if stat.IsDir() || stat.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("--peer: %s is not a program", path)
	}
	home, err := os.MkdirTemp("", "bench-home-") // without one kopia makes a cache in the current directory
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(home)
	ask := func(argument string) (string, error) {
		_, text, err := (command{line: []string{path, argument}, environment: []string{"HOME=" + home}}).run(ctx, quickVersion)
		return text, err
	}
	restic := regexp.MustCompile(`^restic (\S+) compiled`)
	if text, err := ask("version"); err == nil {
		if match := restic.FindStringSubmatch(text); match != nil {
			return resticTool(path, match[1]), nil
		}
	}
	kopia := regexp.MustCompile(`^(\S+) build: .* from:`)
	if text, err := ask("--version"); err == nil {
		if match := kopia.FindStringSubmatch(text); match != nil {
			return kopiaTool(path, match[1], kopiaCompression), nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("--peer: %s says by its version that it is neither restic nor kopia", path)
}

// resticTool runs restic with its defaults: compression "auto" and a cache.
func resticTool(binary, version string) *tool {
	make := func(p place, directory string, arguments ...string) command {
		return command{
			line: append([]string{binary, "--quiet", "-r", p.repository}, arguments...), directory: directory,
			environment: []string{"RESTIC_PASSWORD=" + password, "RESTIC_CACHE_DIR=" + filepath.Join(p.state, "cache"), "HOME=" + p.state},
		}
	}
	return &tool{
		name:    "restic " + version,
		checks:  true,
		create:  func(p place) []command { return []command{make(p, "", "init")} },
		backup:  func(p place) command { return make(p, p.source, "backup", ".") },
		restore: func(p place) command { return make(p, "", "restore", "latest", "--target", p.target) },
		check:   func(p place) command { return make(p, "", "check", "--read-data") },
	}
}

// kopiaTool runs kopia with its defaults but for the compression, without which its repositories are twice as large.
func kopiaTool(binary, version, compression string) *tool {
	make := func(p place, arguments ...string) command {
		return command{
			line: append([]string{
				binary, "--config-file=" + filepath.Join(p.state, "config"), "--log-dir=" + filepath.Join(p.state, "log"), "--no-progress",
			}, arguments...),
			environment: []string{"KOPIA_PASSWORD=" + password, "KOPIA_CHECK_FOR_UPDATES=false", "HOME=" + p.state},
		}
	}
	return &tool{
		name: "kopia " + strings.TrimPrefix(version, "v") + " " + compression,
		create: func(p place) []command {
			return []command{
				make(p, "repository", "create", "filesystem", "--path="+p.repository, "--cache-directory="+filepath.Join(p.state, "cache")),
				make(p, "policy", "set", "--global", "--compression="+compression, "--ignore-cache-dirs=false"),
			}
		},
		backup:  func(p place) command { return make(p, "snapshot", "create", p.source) },
		restore: func(p place) command { return make(p, "snapshot", "restore", p.source, p.target) },
		check:   func(p place) command { return make(p, "snapshot", "verify", "--verify-files-percent=100") },
	}
}

// holdfastTool runs this very program as the engine; profiles is where its profiles go, or "".
func holdfastTool(profiles string) (*tool, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	make := func(p place, arguments ...string) command {
		line := append([]string{self, engineArgument}, arguments...)
		return command{line: append(line, p.repository), environment: []string{
			"HOLDFAST_BENCH_PASSWORD=" + password, "HOLDFAST_BENCH_PROFILES=" + profiles,
		}}
	}
	return &tool{
		name:    holdfastName,
		create:  func(p place) []command { return []command{make(p, "create")} },
		backup:  func(p place) command { return make(p, "backup", p.source) },
		restore: func(p place) command { return make(p, "restore", p.target) },
		check:   func(p place) command { return make(p, "check") },

		resident: func(p place) command { return make(p, "resident", p.source) },
	}, nil
}

const holdfastName = "Holdfast"
