package workspace

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseHook(t *testing.T) {
	for text, want := range map[string]Hook{
		"pre-stop:./save.sh": {When: HookPreStop, Command: "./save.sh"},
		"pre-snapshot,timeout=1m,on-error=fail:psql -c 'CHECKPOINT' -d a:b": {When: HookPreSnapshot, Command: "psql -c 'CHECKPOINT' -d a:b", TimeoutSeconds: 60, OnError: HookFail},
		"post-snapshot,on-error=continue:x":                                 {When: HookPostSnapshot, Command: "x", OnError: HookContinue},
	} {
		hook, err := ParseHook(text)
		require.NoError(t, err, text)
		require.Equal(t, want, hook)
	}
	require.Equal(t, DefaultHookTimeout, Hook{}.Timeout())
	for text, want := range map[string]string{
		"": "want WHEN", "pre-stop": "want WHEN", "pre-start:x": "want pre-stop, pre-snapshot or post-snapshot", "pre-stop: ": "has no command",
		"pre-stop,timeout=0s:x": "1s to 5m", "pre-stop,timeout=6m:x": "1s to 5m", "pre-stop,timeout=soon:x": "1s to 5m", "pre-stop,timeout=1500ms:x": "whole seconds",
		"pre-stop,on-error=retry:x": "want continue or fail", "pre-stop,on-error=:x": "want continue or fail", "pre-stop,often:x": `"often" is not known`,
		"pre-stop:" + strings.Repeat("x", 5000): "at most 4096 bytes",
	} {
		_, err := ParseHook(text)
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, "hook ", text)
	}
	twice := Spec{Hooks: []Hook{{When: HookPreStop, Command: "a"}, {When: HookPreStop, Command: "b"}}}
	require.ErrorContains(t, twice.Validate(), "given twice")
	require.Equal(t, "a", twice.Hook(HookPreStop).Command)
	require.Nil(t, twice.Hook(HookPreSnapshot))
}

func TestHookResultWords(t *testing.T) {
	for want, result := range map[string]HookResult{
		"the pre-stop hook was done in 1.5s":                               {Outcome: HookDone, TookMillis: 1500},
		"the pre-stop hook did not end in time and was killed after 30s":   {Outcome: HookTimedOut, TookMillis: 30_000},
		"the pre-stop hook was not run: the instance does not run":         {Outcome: HookNotRun},
		"the pre-stop hook could not be run: the engine cannot be reached": {Outcome: HookFailed, Problem: "the engine cannot be reached"},
		"the pre-stop hook ended with status 3 after 10ms":                 {Outcome: HookFailed, ExitCode: 3, TookMillis: 10},
	} {
		result.When = HookPreStop
		require.Equal(t, want, result.Words())
		require.Equal(t, result.Outcome == HookFailed || result.Outcome == HookTimedOut, result.Failed())
	}
	failed := HookResult{When: HookPreStop, Outcome: HookFailed, Time: time.Unix(1, 0)}
	state := State{Phase: Running, Instance: &Instance{Token: 1}, Hooks: []HookResult{failed, {When: HookPreSnapshot, Outcome: HookDone}}}
	require.Equal(t, []HookResult{failed}, Explain(state, nil, explainNow).FailedHooks)
}
