package snapshot

import (
	"cmp"
	"slices"
)

// What a report names at most.
const (
	maxDamages  = 1000
	maxVerdicts = 1000
)

// verdicts says of each snapshot and each store what is known of it now.
func (c *checker) verdicts(m *meaning, roots map[blobID]*affectedTree) {
	best := StateSound
	if c.report.Read.UnreadPacks > 0 || c.report.Read.Data != ReadAll || len(c.unlistedStores) > 0 {
		best = StateUnproven
	}
	verdicts := []Verdict{}
	for i := range c.snapshots {
		s := &c.snapshots[i]
		v := Verdict{Snapshot: s.id.String(), Time: s.Time, Hostname: s.Hostname, State: best}
		lacking := uint64(0)
		if top := roots[*s.Tree]; top != nil {
			v.LostPaths, v.ExposedPaths, lacking = top.lost, top.exposed, top.lacking
		}
		broken := c.badSnapshots[s.id]
		if broken != nil && broken.Lost { // this process knows it from before
			v.LostPaths = max(v.LostPaths, 1)
		}
		for at, url := range m.listed {
			if broken != nil && !slices.Contains(broken.WholeOn, url) {
				lacking |= 1 << at
			}
			if lacking&(1<<at) != 0 {
				v.Lacking = append(v.Lacking, url)
			}
		}
		switch {
		case v.LostPaths > 0:
			v.State = StateDamaged
		case lacking != 0:
			v.State = StateExposed
		}
		verdicts = append(verdicts, v)
	}
	for id, broken := range c.badSnapshots { // those that nobody can read
		if !slices.ContainsFunc(c.snapshots, func(s storedSnapshot) bool { return s.id == id }) {
			verdicts = append(verdicts, Verdict{Snapshot: broken.ID, State: StateDamaged, LostPaths: 1, Lacking: m.listed})
		}
	}
	c.report.States = map[State]int64{}
	for _, v := range verdicts {
		c.report.States[v.State]++
	}
	worst := []State{StateDamaged, StateExposed, StateUnproven, StateSound}
	slices.SortFunc(verdicts, func(a, b Verdict) int {
		return cmp.Or(slices.Index(worst, a.State)-slices.Index(worst, b.State), b.Time.Compare(a.Time), cmp.Compare(a.Snapshot, b.Snapshot))
	})
	c.report.Verdicts = verdicts[:min(len(verdicts), maxVerdicts)]
}

// damages puts what is damaged into the report, what no store has first.
func (c *checker) damages() {
	for _, p := range c.repository.store.providers() {
		verdict := StoreVerdict{Store: p.URL()}
		if err := c.unlistedStores[p.URL()]; err != nil {
			verdict.Error = err.Error()
		}
		for _, broken := range c.broken {
			for _, copy := range broken.Stores {
				switch {
				case copy.Store != p.URL():
				case copy.Problem == ProblemMissing:
					verdict.Missing++
				case copy.Problem == ProblemDamaged:
					verdict.Damaged++
				default:
					verdict.Unreadable++
				}
			}
		}
		c.report.Stores = append(c.report.Stores, verdict)
	}
	order := []DamageKind{DamageConfig, DamageKey, DamageSnapshot, DamageIndex, DamageBlob, DamageTree, DamagePack}
	lost := map[bool]int{true: 0, false: 1}
	slices.SortFunc(c.broken, func(a, b *brokenObject) int {
		return cmp.Or(lost[a.Lost]-lost[b.Lost], slices.Index(order, a.Kind)-slices.Index(order, b.Kind), cmp.Compare(b.Snapshots, a.Snapshots), cmp.Compare(a.ID, b.ID))
	})
	c.report.Damage = []Damage{}
	for _, broken := range c.broken[:min(len(c.broken), maxDamages)] {
		c.report.Damage = append(c.report.Damage, broken.Damage)
	}
	c.report.DamageMore = int64(len(c.broken) - len(c.report.Damage))
}
