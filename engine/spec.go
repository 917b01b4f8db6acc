package engine

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// DefaultPIDs is the limit on processes and threads of an instance whose Spec names none.
const DefaultPIDs = 4096

// WorkspaceVariable is set in every instance to the path under which it sees its content: /workspace, except on a
// machine where the process engine may not mount.
const WorkspaceVariable = "HOLDFAST_WORKSPACE"

// nameForm is what both engines can use as a name: Docker wants at least two of these characters.
var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$`)

// Validate reports what is wrong with the description; the error wraps ErrInvalid and holds no environment value.
func (s Spec) Validate() error {
	if !nameForm.MatchString(s.Name) {
		return fmt.Errorf("%w: the name %q must be 2 to 200 letters, digits, '_', '.' or '-'", ErrInvalid, s.Name)
	}
	for _, argument := range s.Command {
		if strings.ContainsRune(argument, 0) {
			return fmt.Errorf("%w: an argument of the command holds a NUL", ErrInvalid)
		}
	}
	if len(s.Command) > 0 && s.Command[0] == "" {
		return fmt.Errorf("%w: the command's program is empty", ErrInvalid)
	}
	if err := ValidateEnvironment(s.Environment); err != nil {
		return err
	}
	if s.MemoryBytes < 0 || s.PIDs < 0 || s.CPUs < 0 || math.IsNaN(s.CPUs) || math.IsInf(s.CPUs, 0) {
		return fmt.Errorf("%w: a limit is negative", ErrInvalid)
	}
	if strings.ContainsAny(s.Hostname, "/\x00 ") || len(s.Hostname) > 63 {
		return fmt.Errorf("%w: the host name %q", ErrInvalid, s.Hostname)
	}
	// ':' would not matter for a typed mount, but NUL and relative paths would.
	if !filepath.IsAbs(s.ContentDir) || filepath.Clean(s.ContentDir) != s.ContentDir || s.ContentDir == "/" {
		return fmt.Errorf("%w: the content directory %q is not a clean absolute path", ErrInvalid, s.ContentDir)
	}
	info, err := os.Stat(s.ContentDir)
	if err != nil {
		return fmt.Errorf("%w: the content directory: %w", ErrInvalid, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: the content directory %s is not a directory", ErrInvalid, s.ContentDir)
	}
	return nil
}

// ValidateEnvironment reports a name or value that no process can be given. Values are never part of the error.
func ValidateEnvironment(environment map[string]string) error {
	for _, name := range sortedKeys(environment) {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("%w: the environment variable name %q", ErrInvalid, name)
		}
		if strings.ContainsRune(environment[name], 0) {
			return fmt.Errorf("%w: the value of the environment variable %s holds a NUL", ErrInvalid, name)
		}
	}
	return nil
}

// EnvironmentList gives NAME=value entries in the order of the names.
func EnvironmentList(environment map[string]string) []string {
	list := make([]string, 0, len(environment))
	for _, name := range sortedKeys(environment) {
		list = append(list, name+"="+environment[name])
	}
	return list
}

// SameLabels says whether an existing instance's labels have all that a Spec wants, and no other holdfast label.
func SameLabels(existing, wanted map[string]string) bool {
	own := make(map[string]string)
	for name, value := range existing {
		_, asked := wanted[name]
		if asked || strings.HasPrefix(name, "holdfast.") {
			own[name] = value
		}
	}
	return maps.Equal(own, wanted)
}

// MatchLabels says whether labels has every one of the wanted; an empty wanted value matches any.
func MatchLabels(labels, wanted map[string]string) bool {
	for name, value := range wanted {
		have, ok := labels[name]
		if !ok || (value != "" && have != value) {
			return false
		}
	}
	return true
}

// Redact replaces every value of the environment that occurs in text, longest first, so that output quoted in an
// error never carries a secret. Values of fewer than four characters ("1", "yes") are left: they hide nothing.
func Redact(text string, environment map[string]string) string {
	var values []string
	for _, value := range environment {
		if len(value) >= 4 {
			values = append(values, value)
		}
	}
	sort.Slice(values, func(i, j int) bool { return len(values[i]) > len(values[j]) })
	for _, value := range values {
		text = strings.ReplaceAll(text, value, "[hidden]")
	}
	return text
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
