package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNormalizeLetsFlagsFollowArguments(t *testing.T) {
	cases := map[string]string{
		"stop web --detach":                                 "stop --detach -- web",
		"stop --detach web":                                 "stop --detach -- web",
		"start web --env A=b --image x --from-dir=/d":       "start --env A=b --image x --from-dir=/d -- web",
		"--state-dir /s stop web -d":                        "--state-dir /s stop -d -- web",
		"exec web -- ls -la":                                "exec -- web ls -la",
		"exec web ls -la":                                   "exec -- web ls -la",
		"exec -t web -- ls -la --tty":                       "exec -t -- web ls -la --tty",
		"exec web -t -- ls -la":                             "exec -t -- web ls -la",
		"exec web -- -x -- y":                               "exec -- web -x -- y",
		"node list -o json":                                 "node list -o json",
		"snapshot dump latest --repo r p --password-file f": "snapshot dump --repo r --password-file f -- latest p",
		"stop -- --detach":                                  "stop -- --detach",
		"nonsense --what":                                   "nonsense --what",
		"stop web --nonsense x":                             "stop --nonsense -- web x",
		"stop web --timeout":                                "stop --timeout",
		"stop web --generate-bash-completion":               "stop web --generate-bash-completion",
		"":                                                  "",
	}
	app := newTestProgram(t, &fakeControl{}).app()
	for line, want := range cases {
		got := normalize(app, append([]string{"holdfast"}, strings.Fields(line)...))
		if diff := cmp.Diff(append([]string{"holdfast"}, strings.Fields(want)...), got); diff != "" {
			t.Errorf("%q:\n%s", line, diff)
		}
	}
}
