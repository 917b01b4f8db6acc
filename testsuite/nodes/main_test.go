package nodes_test

import (
	"testing"

	"holdfast/testsuite/stack"
)

func TestMain(m *testing.M) {
	stack.Main(m, "TestFrozenTemporalMovesNothing", "TestKilledSalvage", "TestDrain", "TestNodeThatReachesNothingPauses", "TestPartitionedNodePausesWhatWasReplaced")
}
