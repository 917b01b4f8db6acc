package pretend

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Journal is what has happened on a machine, which outlives its process: who looks from outside learns what runs there, and
// what was started how often.
type Journal struct {
	Lines []Line
}

// Line is one thing that has happened to an instance; without a name the machine was switched on, and nothing ran.
type Line struct {
	At   time.Time `json:"at"`
	What What      `json:"what"`
	Name string    `json:"name,omitempty"`
}

// What can happen.
type What string

// The events. What is asked for again and is so already is none.
const (
	On        What = "on"
	Started   What = "started"
	Stopped   What = "stopped"
	Paused    What = "paused"
	Continued What = "continued"
	Removed   What = "removed"
)

// ReadJournal reads what a machine has written; that of a machine that never was is empty.
func ReadJournal(path string) (Journal, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Journal{}, nil
	}
	if err != nil {
		return Journal{}, fmt.Errorf("reading a machine's journal: %w", err)
	}
	defer file.Close()
	var j Journal
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var line Line
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return Journal{}, fmt.Errorf("reading a machine's journal: %s: %q: %w", path, lines.Text(), err)
		}
		j.Lines = append(j.Lines, line)
	}
	if err := lines.Err(); err != nil {
		return Journal{}, fmt.Errorf("reading a machine's journal: %w", err)
	}
	return j, nil
}

// Running are the instances that run there, with whether each is paused.
func (j Journal) Running() map[string]bool {
	running := map[string]bool{}
	for _, line := range j.Lines {
		switch line.What {
		case On:
			clear(running)
		case Started, Continued:
			running[line.Name] = false
		case Paused:
			running[line.Name] = true
		case Stopped, Removed:
			delete(running, line.Name)
		}
	}
	return running
}

// Count is how often something has happened to each instance.
func (j Journal) Count(what What) map[string]int {
	counts := map[string]int{}
	for _, line := range j.Lines {
		if line.What == what {
			counts[line.Name]++
		}
	}
	return counts
}
