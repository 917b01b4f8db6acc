package testsuite_test

import (
	"testing"

	"holdfast/testsuite/stack"
)

func TestMain(m *testing.M) {
	stack.Main(m, "TestIdleStopOfProcesses", "TestIdleStopOfContainers", "TestKilledAgentResumes", "TestLifeOfAWorkspace", "TestSnapshotsWhileRunning", "TestFullDisks")
}
