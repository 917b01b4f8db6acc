package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stepTitles are what the table calls the steps.
var stepTitles = map[string]string{
	firstStep: "first backup", unchangedStep: "nothing changed", changedStep: "1 % changed",
	restoreStep: "restore", checkStep: "full check",
}

// report prints everything that was measured as Markdown.
func (b *bench) report(out io.Writer) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "%s. Sources on %s, repositories on %s. Medians of %d rounds; ratios are medians of the ratios within a round, "+
		"and say how many times as much the other program takes.\n", machine(), fileSystem(cmp.Or(b.data, b.work)), fileSystem(b.repositories), b.rounds)
	for i := range b.results {
		b.reportSet(w, &b.results[i])
	}
	fmt.Fprintln(w)
	if b.restores > 0 {
		fmt.Fprintf(w, "%d restores were compared with their source, byte for byte: all equal.\n", b.restores)
	}
	for _, name := range b.checks {
		fmt.Fprintf(w, "`check --read-data` of %s read Holdfast's repository of each data set: no errors.\n", name)
	}
	return w.Flush()
}

func (b *bench) reportSet(w io.Writer, result *setResult) {
	fmt.Fprintf(w, "\n### Data set %s: %d files in %d directories, %s MB\n\n", result.name, result.extent.files, result.extent.dirs,
		megabytes(result.extent.bytes))
	fmt.Fprintln(w, "| | | wall s (least–most) | CPU s | peak MB | wall ratio | CPU ratio | memory ratio |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|---:|---:|")
	for _, step := range stepNames {
		costs := result.costs[step]
		if costs == nil {
			continue
		}
		own := costs[holdfastName]
		b.reportRow(w, stepTitles[step], holdfastName, own, nil)
		for _, t := range b.tools[1:] {
			b.reportRow(w, "", t.name, costs[t.name], own)
		}
		resident := costs[residentName]
		if resident == nil {
			continue
		}
		b.reportRow(w, stepTitles[step]+", resident", residentName, resident, nil)
		for _, t := range b.tools[1:] {
			b.reportRow(w, "", t.name+", as a command", costs[t.name], resident)
		}
	}
	fmt.Fprintln(w, "\n| repository after the first backup | MB | ratio | key derivation (N, r, p) |\n|---|---:|---:|---|")
	own := result.sizes[holdfastName]
	for _, t := range b.tools {
		fmt.Fprintf(w, "| %s | %s | %.3f | %s |\n", t.name, megabytes(result.sizes[t.name]), float64(result.sizes[t.name])/float64(own),
			strings.Join(result.derivations[t.name], "; "))
	}
}

// reportRow prints one program's costs, and what they are compared with those of own.
func (b *bench) reportRow(w io.Writer, title, name string, costs, own []cost) {
	wall := func(c cost) float64 { return c.wall.Seconds() }
	cpu := func(c cost) float64 { return c.cpu.Seconds() }
	peak := func(c cost) float64 { return float64(c.peak) }
	walls := each(costs, wall)
	fmt.Fprintf(w, "| %s | %s | %.2f (%.2f–%.2f) | %.2f | %.0f |", title, name, median(walls), slices.Min(walls), slices.Max(walls),
		median(each(costs, cpu)), median(each(costs, peak))/1e6)
	for _, of := range []func(cost) float64{wall, cpu, peak} {
		if own == nil {
			fmt.Fprint(w, " |")
			continue
		}
		fmt.Fprintf(w, " %.1f× |", median(ratios(each(costs, of), each(own, of))))
	}
	fmt.Fprintln(w)
}

func each(costs []cost, of func(cost) float64) []float64 {
	values := make([]float64, len(costs))
	for i, c := range costs {
		values[i] = of(c)
	}
	return values
}

// ratios are of the same round each, because what else the machine does changes from round to round.
func ratios(others, own []float64) []float64 {
	values := make([]float64, min(len(others), len(own)))
	for i := range values {
		values[i] = others[i] / own[i]
	}
	return values
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func megabytes(bytes int64) string {
	if bytes < 10e6 {
		return fmt.Sprintf("%.1f", float64(bytes)/1e6)
	}
	return fmt.Sprintf("%.0f", float64(bytes)/1e6)
}

// machine describes the machine's class.
func machine() string {
	model := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	memory := ""
	if err := unix.Sysinfo(&info); err == nil {
		memory = fmt.Sprintf(", %d GiB", (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30)
	}
	return fmt.Sprintf("%d × %s%s, %s, %s", runtime.NumCPU(), model, memory, runtime.Version(), time.Now().Format(time.DateOnly))
}

func fileSystem(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "an unknown file system"
	}
	names := map[int64]string{
		unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs",
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	}
	return cmp.Or(names[int64(fs.Type)], fmt.Sprintf("a file system of type %#x", fs.Type))
}
