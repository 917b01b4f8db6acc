package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

// columns is the width that every table fits: a terminal's customary one, also when piped, so that output is the same.
const columns = 80

// flagOutput is -o on what lists or shows.
const flagOutput = "output"

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: flagOutput, Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT`: text or json"}
}

// wantsJSON reads -o.
func wantsJSON(c *cli.Context) (bool, error) {
	switch format := c.String(flagOutput); format {
	case "json":
		return true, nil
	case "text":
		return false, nil
	default:
		return false, usage("-o %q: want text or json", format)
	}
}

// printJSON writes one value, indented.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// listOf makes sure that JSON shows an empty list as [], never as null.
func listOf[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// column describes one column of a table.
type column struct {
	name  string
	right bool
	// flexible columns give way when the table is wider than it may be, the last of them first.
	flexible bool
	least    int // a flexible column's least width
}

// renderTable lays rows out below upper-case headers, in at most 80 columns.
func renderTable(w io.Writer, header []column, rows [][]string) {
	widths := make([]int, len(header))
	for i, h := range header {
		widths[i] = len(h.name)
		for _, row := range rows {
			widths[i] = max(widths[i], text.StringWidthWithoutEscSequences(row[i]))
		}
	}
	total := 2 * (len(header) - 1)
	for _, width := range widths {
		total += width
	}
	for i := len(header) - 1; i >= 0 && total > columns; i-- {
		if header[i].flexible {
			narrow := max(header[i].least, len(header[i].name), widths[i]-(total-columns))
			total -= widths[i] - narrow
			widths[i] = narrow
		}
	}
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	configs := make([]table.ColumnConfig, len(header))
	titles := make(table.Row, len(header))
	for i, h := range header {
		configs[i] = table.ColumnConfig{Number: i + 1, WidthMax: widths[i], WidthMaxEnforcer: text.WrapSoft}
		if h.right {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
		titles[i] = h.name
	}
	t.SetColumnConfigs(configs)
	t.AppendHeader(titles)
	for _, row := range rows {
		cells := make(table.Row, len(row))
		for i, cell := range row {
			cells[i] = cell
		}
		t.AppendRow(cells)
	}
	for line := range strings.Lines(t.Render()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// size is a number of bytes for people.
func size(bytes int64) string { return units.BytesSize(float64(bytes)) }

// count writes a number with separated thousands.
func count(n int64) string {
	digits := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(digits) - 3; i > start; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// ago is a length of time for people.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return "1 s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Round(time.Second)/time.Second)) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	default:
		return strconv.Itoa(int(d/(24*time.Hour))) + " d"
	}
}

// age is how long ago something was; "-" when it never was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(now.Sub(t))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// paint colours a phase where colours are wanted.
func paint(phase string, colours bool) string {
	if !colours {
		return orDash(phase)
	}
	colour := text.Reset
	switch workspace.Phase(phase) {
	case workspace.Running:
		colour = text.FgGreen
	case workspace.Starting, workspace.Stopping, workspace.Pending:
		colour = text.FgYellow
	case workspace.Blocked:
		colour = text.FgRed
	case workspace.Stopped, workspace.Deleted:
		colour = text.Faint
	}
	// Not text.Colors.Sprint: that follows a package-wide switch, and this program decides by the stream.
	return colour.EscapeSeq() + phase + text.Reset.EscapeSeq()
}
