package workspace

import (
	"fmt"
	"testing"
)

func TestDoubleWritten(t *testing.T) {
	const ids = 20_000
	at := make([]int, 101)
	for i := range ids {
		id := fmt.Sprintf("workspace-%d", i)
		first := -1
		for percent := range at {
			in := DoubleWritten(id, percent)
			if in {
				at[percent]++
			}
			switch {
			case in && first < 0:
				first = percent
			case !in && first >= 0:
				t.Fatalf("%s is in at %d %% and out at %d %%", id, first, percent)
			}
		}
	}
	if at[0] != 0 || at[100] != ids {
		t.Fatalf("%d of %d at 0 %%, %d at 100 %%", at[0], ids, at[100])
	}
	for percent, n := range at {
		if share := 100 * float64(n) / ids; share < float64(percent)-1.5 || share > float64(percent)+1.5 {
			t.Errorf("%.2f %% of the workspaces at %d %%", share, percent)
		}
	}
	// Every version of the program has to agree: these are what the first one said.
	for id, percent := range map[string]int{"abcdefghijklmnopqrstuvwxyz": 48, "zyxwvutsrqponmlkjihgfedcba": 86} {
		if DoubleWritten(id, percent) || !DoubleWritten(id, percent+1) {
			t.Errorf("%s is not in part %d any more", id, percent)
		}
	}
}
