package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/snapshot"
)

func (p *program) snapshotCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "check a repository",
		Description: "Every store is checked by itself: what is damaged or missing is named with the store, and with the\n" +
			"snapshots and paths that need it. Without --read-data packs are only looked up in the listings.\n" +
			"--read-data-subset has restic's meaning: n/t reads the n-th of t groups, so that t checks read all packs;\n" +
			"x% and a size read packs at random. What was not read is said.\n" +
			"Exit code 0: no errors in what was read; 1: errors, or it could not be done; 2: a mistake in the call.",
		Flags: repositoryFlags(
			&cli.BoolFlag{Name: "read-data", Usage: "read and verify every byte that is stored"},
			&cli.StringFlag{Name: "read-data-subset", Usage: "read and verify a `SUBSET` of the packs: n/t, x%, or a size (500M, 500MiB)"},
			outputFlag(),
		), Action: p.snapshotCheck,
	}
}

func (p *program) snapshotCheck(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	options := snapshot.CheckOptions{ReadData: c.Bool("read-data")}
	if text := c.String("read-data-subset"); c.IsSet("read-data-subset") {
		if options.ReadData {
			return usage("check: --read-data reads everything, --read-data-subset only a part").withMend("give one of them")
		}
		if options.Subset, err = snapshot.ParseSubset(text); err != nil {
			return usage("--read-data-subset: %w", err).withMend("for example 1/7, 2.5%% or 500M")
		}
	}
	repository, err := p.openRepository(c, false)
	if err != nil {
		return explainUnopened(err, c.StringSlice("repo"))
	}
	defer repository.close()
	show := newProgress(p.stderr, p.stderrTerminal, p.now)
	options.Progress = shown(show, "checking")
	found, err := repository.Check(c.Context, options)
	show.Close()
	if err != nil {
		return explainSnapshot(c.StringSlice("repo")[0], err)
	}
	if asJSON {
		if err := printJSON(p.stdout, found); err != nil {
			return err
		}
	} else {
		p.sayChecked(found)
	}
	if n := len(found.Errors); n > 0 {
		failure := fail(exitFailed, "the check found %s", plural(n, "error")).withSafe("%s", safeAfterCheck(found))
		if mends := mendsAfterCheck(found, c.StringSlice("repo")); len(mends) > 0 {
			failure = failure.withMend("%s", strings.Join(mends, "\n        "))
		}
		return failure
	}
	return nil
}

// explainUnopened gives a repository that is too damaged to be opened the mend that there is for it: a check that could begin
// would say more only with another store.
func explainUnopened(err error, repos []string) error {
	var known *failure
	if !errors.As(err, &known) || !errors.Is(err, snapshot.ErrDamaged) {
		return err
	}
	if len(repos) == 1 {
		return known.withMend("without config and a key nothing can be opened: name another store of this repository too, `holdfast snapshot check --repo %s --repo OTHER`; `holdfast snapshot repair` copies what one has", repos[0])
	}
	return known.withMend("no store that was named has what is needed to open the repository: put the file that is named above back from any other copy of the repository")
}

// sayChecked prints what was read, what is wrong, what that means, and what can be said of the snapshots.
func (p *program) sayChecked(found *snapshot.CheckReport) {
	p.say("%s, %s, %s", plural(int(found.Snapshots), "snapshot"), plural(int(found.Packs), "pack"), plural(int(found.Blobs), "blob"))
	unread := fmt.Sprintf("%s with %s", plural(int(found.Read.UnreadPacks), "pack"), size(found.Read.UnreadBytes))
	read := fmt.Sprintf("%s, %s of them", plural(int(found.Read.Packs), "pack"), size(found.Bytes))
	switch found.Read.Data {
	case snapshot.ReadAll:
		p.say("read: all packs, %s", size(found.Bytes))
	case snapshot.ReadSubset:
		p.say("read (%s): %s; not read, only looked up in the listings: %s", found.Read.Subset, read, unread)
	default:
		p.say("not read, only looked up in the listings: %s; --read-data reads them", unread)
	}
	for _, hint := range found.Hints {
		p.say("hint: %s", hint)
	}
	for _, problem := range found.Errors {
		p.say("error: %s", problem)
	}
	const shownDamages = 20
	for i := range found.Damage {
		if i == shownDamages {
			p.say("and %s more that are damaged or missing (-o json)", count(int64(len(found.Damage)-i)+found.DamageMore))
			break
		}
		p.sayDamage(&found.Damage[i])
	}
	p.sayVerdicts(found)
	if len(found.Errors) > 0 {
		return
	}
	switch found.Read.Data {
	case snapshot.ReadAll:
		p.say("no errors were found")
	case snapshot.ReadSubset:
		p.say("no errors were found in what was read; nothing is known of the content of %s", unread)
	default:
		p.say("no errors were found in what was read; nothing is known of the content of the packs")
	}
}

// sayDamage says what one damaged object means.
func (p *program) sayDamage(damage *snapshot.Damage) {
	var where []string
	for _, copy := range damage.Stores {
		where = append(where, fmt.Sprintf("%s on %s", copy.Problem, copy.Store))
	}
	text := nameOfDamage(damage)
	if len(where) > 0 {
		text += ": " + strings.Join(where, ", ")
	}
	switch {
	case len(damage.WholeOn) > 0:
		text += "; whole on " + strings.Join(damage.WholeOn, ", ")
	case len(damage.Stores) > 1:
		text += "; whole on no store"
	}
	switch {
	case damage.Kind == snapshot.DamageConfig:
		text += "; without it nothing there can be opened"
	case damage.Kind == snapshot.DamageKey:
		text += "; without it its password opens nothing there"
	case damage.Paths == 0:
		text += "; no snapshot needs what cannot be read of it"
	default:
		text += fmt.Sprintf("; needed by %s, for %s:", plural(int(damage.Snapshots), "snapshot"), plural(int(damage.Paths), "path"))
	}
	p.say("%s", text)
	const shownSnapshots, shownPaths = 3, 5
	shown := int64(0)
	for i, need := range damage.NeededBy {
		if i == shownSnapshots {
			break
		}
		for _, path := range need.Paths[:min(len(need.Paths), shownPaths)] {
			lost := ""
			if path.Lost {
				lost = " (lost)"
			}
			p.say("  %s:%s%s", need.Snapshot[:min(8, len(need.Snapshot))], path.Path, lost)
			shown++
		}
	}
	if more := damage.Paths - shown; more > 0 && shown > 0 {
		p.say("  and %s more", count(more))
	}
}

func nameOfDamage(damage *snapshot.Damage) string {
	id := damage.ID[:min(8, len(damage.ID))]
	switch damage.Kind {
	case snapshot.DamageConfig:
		return "the config"
	case snapshot.DamageBlob:
		return fmt.Sprintf("%s that no index names", plural(int(damage.Blobs), "blob"))
	case snapshot.DamageTree:
		return fmt.Sprintf("tree %s, which is no directory that can be read", id)
	case snapshot.DamagePack:
		return fmt.Sprintf("pack %s (%s)", id, plural(int(damage.Blobs), "unreadable blob"))
	default:
		return fmt.Sprintf("%s %s", damage.Kind, id)
	}
}

// sayVerdicts says which snapshots can be restored from where.
func (p *program) sayVerdicts(found *snapshot.CheckReport) {
	for _, state := range []struct {
		state snapshot.State
		says  string
	}{
		{snapshot.StateDamaged, "cannot be restored whole"},
		{snapshot.StateExposed, "can be restored whole, but not from every store"},
		{snapshot.StateUnproven, "without a known error, not all data having been read"},
		{snapshot.StateSound, "sound: what is needed was all read, and is whole on every store"},
	} {
		n := found.States[state.state]
		if n == 0 {
			continue
		}
		p.say("%s %s", plural(int(n), "snapshot"), state.says)
		if state.state == snapshot.StateUnproven || state.state == snapshot.StateSound {
			continue
		}
		shown := int64(0)
		for _, v := range found.Verdicts {
			if v.State != state.state || shown == 10 {
				continue
			}
			line := fmt.Sprintf("  %s", v.Snapshot[:min(8, len(v.Snapshot))])
			if !v.Time.IsZero() {
				line += v.Time.UTC().Format(" 2006-01-02 15:04:05")
			}
			if v.LostPaths > 0 {
				line += fmt.Sprintf(": %s that no store has", plural(int(v.LostPaths), "path"))
			} else {
				line += ": not whole on " + strings.Join(v.Lacking, ", ")
			}
			p.say("%s", line)
			shown++
		}
		if n > shown {
			p.say("  and %s more", count(n-shown))
		}
	}
}

// safeAfterCheck says what can still be had.
func safeAfterCheck(found *snapshot.CheckReport) string {
	damaged := found.States[snapshot.StateDamaged]
	if damaged == 0 {
		if found.Read.UnreadPacks > 0 {
			return "by what was read, every snapshot that is listed can be restored whole"
		}
		return "every snapshot that is listed can be restored whole"
	}
	return fmt.Sprintf("of the damaged snapshots everything but the paths marked lost: `holdfast snapshot restore SNAPSHOT --path PATH`; the other %s",
		plural(int(found.Snapshots-damaged), "snapshot"))
}

// mendsAfterCheck are the commands that mend what was found, in the order in which they are to be run.
func mendsAfterCheck(found *snapshot.CheckReport, repos []string) []string {
	copies, hidden, index, packs := false, false, false, false // hidden: only a repair that reads everything finds it
	var gone, silent []string                                  // silent: stores that did not give what they list
	unlisted := slices.ContainsFunc(found.Stores, func(s snapshot.StoreVerdict) bool { return s.Error != "" })
	for _, damage := range found.Damage {
		if !damage.Lost {
			copies = true
			hidden = hidden || slices.ContainsFunc(damage.Stores, func(copy snapshot.DamagedCopy) bool { return copy.Hidden })
			continue
		}
		unread := unlisted // a copy that may be whole: nothing is said to be removed
		for _, copy := range damage.Stores {
			if copy.Problem == snapshot.ProblemUnreadable {
				unread = true
				if !slices.Contains(silent, copy.Store) {
					silent = append(silent, copy.Store)
				}
			}
		}
		switch damage.Kind {
		case snapshot.DamageIndex, snapshot.DamageBlob:
			index = true
			continue
		}
		if unread {
			continue
		}
		switch damage.Kind {
		case snapshot.DamagePack, snapshot.DamageTree:
			packs = true
		default:
			gone = append(gone, damage.Key)
		}
	}
	var mends []string
	for _, store := range found.Stores {
		if store.Error != "" {
			mends = append(mends, fmt.Sprintf("make %s reachable and check again: nothing is known of it", store.Store))
		}
	}
	for _, store := range silent {
		mends = append(mends, fmt.Sprintf("check again when %s gives what it lists: it may have whole what no other store has", store))
	}
	switch all := strings.Join(repos, " --repo "); {
	case hidden:
		mends = append(mends, fmt.Sprintf("`holdfast snapshot repair --read-data --repo %s` reads every copy and replaces the damaged ones from the store that has it whole", all))
	case copies:
		mends = append(mends, fmt.Sprintf("`holdfast snapshot repair --repo %s` copies it from the store that has it whole", all))
	}
	if len(repos) == 1 && (index || packs || len(gone) > 0) {
		mends = append(mends, fmt.Sprintf("if another store has a copy, name it too: `holdfast snapshot check --repo %s --repo OTHER`, then `holdfast snapshot repair`", repos[0]))
	}
	if packs {
		mends = append(mends, "first `holdfast snapshot restore` what is still needed of the snapshots that need packs that are whole on no store: removing a pack takes along what can be read in its copies",
			"what no store has is stored again by a backup of a directory that still has it: remove the packs that are named as damaged, `holdfast snapshot rebuild-index`, then `holdfast snapshot backup`")
	}
	if index {
		mends = append(mends, "`holdfast snapshot rebuild-index` makes the index anew from what the packs say of themselves")
	}
	if len(gone) > 0 {
		mends = append(mends, fmt.Sprintf("nothing can mend, and only removing them ends these errors: %s", strings.Join(firstOf(gone, 10), "; ")))
	}
	return mends
}

// firstOf shortens a list and says by how much.
func firstOf(list []string, n int) []string {
	if len(list) <= n {
		return list
	}
	return append(list[:n:n], fmt.Sprintf("and %s more (-o json)", count(int64(len(list)-n))))
}

// plural is a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return count(int64(n)) + " " + thing + "s"
}
