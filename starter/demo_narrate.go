package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// narrator says what the demo does, in lines of at most 80 columns, so that it reads the same on a terminal and in a file.
type narrator struct {
	w     io.Writer
	began time.Time
	acts  int
}

func newNarrator(w io.Writer, began time.Time) *narrator { return &narrator{w: w, began: began} }

// act begins a part.
func (n *narrator) act(title string) {
	n.acts++
	fmt.Fprintf(n.w, "\n%d  %s\n", n.acts, title)
}

// say says one thing that happened, with the time since the beginning.
func (n *narrator) say(format string, args ...any) {
	stamp := fmt.Sprintf("%4.0fs  ", time.Since(n.began).Seconds())
	n.wrap(stamp, len(stamp), fmt.Sprintf(format, args...))
}

// detail says a smaller thing.
func (n *narrator) detail(format string, args ...any) {
	n.wrap("         ", 9, fmt.Sprintf(format, args...))
}

// command shows a command line as it is: it may be copied.
func (n *narrator) command(format string, args ...any) {
	fmt.Fprintf(n.w, "         $ %s\n", fmt.Sprintf(format, args...))
}

// quote shows the output of a command as a terminal would, from the first column: it is as wide as a terminal already.
func (n *narrator) quote(command, output string) {
	fmt.Fprintf(n.w, "\n$ %s\n%s\n", command, output)
}

const narratorColumns = 80

func (n *narrator) wrap(first string, indent int, text string) {
	line, used := first, indent
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && used+1+len(word) > narratorColumns {
			fmt.Fprintln(n.w, line)
			line, used, empty = strings.Repeat(" ", indent), indent, true
		}
		if !empty {
			line += " "
			used++
		}
		line += word
		used += len([]rune(word))
		empty = false
	}
	fmt.Fprintln(n.w, line)
}
