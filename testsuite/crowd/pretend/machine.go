// Package pretend is an engine whose instances are names in memory: nothing of them runs, and nothing of them takes a processor, so
// that a thousand have room on one machine. All that Holdfast decides about instances is real with it; their content is, too, since
// that is the node's.
package pretend

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"holdfast/engine"
)

// Kind is what engine.Info says that it is.
const Kind = "pretended"

// ErrNothingRuns is the answer to a command: there is nothing that could run it.
var ErrNothingRuns = fmt.Errorf("instances of this engine are pretended, and run no commands: %w", errors.ErrUnsupported)

// Machine has instances, as a daemon of containers has them: an agent that is started again finds them. They end with its process, as
// those of a machine whose power is lost.
type Machine struct {
	mutex     sync.Mutex
	instances map[string]*instance // by id, which is the name
	journal   *os.File             // nil: none is kept
}

type instance struct {
	engine.Instance
	spec engine.Spec
}

// New switches a machine on. What happens there is appended to a file (ReadJournal); with an empty path it is not written down.
func New(journal string) (*Machine, error) {
	m := &Machine{instances: map[string]*instance{}}
	if journal == "" {
		return m, nil
	}
	file, err := os.OpenFile(journal, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a machine's journal: %w", err)
	}
	m.journal = file
	if err := m.note(On, ""); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return m, nil
}

// Close switches it off. Its engines are of no use any more.
func (m *Machine) Close() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	clear(m.instances)
	if m.journal == nil {
		return nil
	}
	err := m.journal.Close()
	m.journal = nil
	return err
}

// note writes one line, whole: a process that dies leaves no half of one.
func (m *Machine) note(what What, name string) error {
	if m.journal == nil {
		return nil
	}
	line, err := json.Marshal(Line{At: time.Now(), What: what, Name: name})
	if err == nil {
		_, err = m.journal.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("writing down what happened on a machine: %w", err)
	}
	return nil
}
