package activities

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

const (
	// lookWithin bounds one look at everything, and with it how late it is noticed that nothing is reached; answerSoon bounds
	// one question in it.
	lookWithin = 5 * time.Second
	answerSoon = 3 * time.Second
	// lookAtOnce is how many questions a store is asked at the same time, and lookMost how many in one look, each for one
	// instance: what is over has its turn in the next.
	lookAtOnce = 4
	lookMost   = 40
	// lookFailures is how many errors a store may answer with before it is asked nothing more in a look. One that is silent is
	// asked nothing more at once: each question costs all the time there is.
	lookFailures = 4
)

// look is what a node without a lease does: it asks every store for newer records of what runs here, and Temporal whether it
// is there. It returns how long to wait for the next look.
func (g *Guard) look(ctx context.Context) time.Duration {
	began := g.Lease.now()
	g.mutex.Lock()
	without := began.since(g.leased)
	g.mutex.Unlock()
	if without < lookAfter {
		return lookAfter - without
	}
	instances, _ := g.list(ctx)
	g.mutex.Lock()
	g.unsure = true
	g.looks++
	look := g.looks
	g.mutex.Unlock()
	if len(instances) > 0 {
		g.askEverybody(ctx, began, look, instances)
		g.pauseWhenAlone(ctx, instances)
	}
	if without > guardPatience && !g.isAlone() {
		return guardSlowly
	}
	return guardEvery
}

// askEverybody asks all at once and returns when all have answered, or when it has taken too long.
func (g *Guard) askEverybody(ctx context.Context, began moment, look uint64, instances []*guarded) {
	asking, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	var asked sync.WaitGroup
	if g.Temporal != nil {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(asking, answerSoon)
			defer cancel()
			if g.Temporal(ctx) == nil {
				g.answered(began)
			}
		})
	}
	for _, store := range g.Catalog.Providers() {
		asked.Go(func() { g.askStore(ctx, asking, store, began, look, instances[:min(len(instances), lookMost)]) })
	}
	all := make(chan struct{})
	go func() { asked.Wait(); close(all) }()
	select {
	case <-all:
	case <-asking.Done(): // what does not hear that is left behind
	}
}

// askStore looks for markers on one store. What it sees is acted on at once, under the context all.
func (g *Guard) askStore(all, ctx context.Context, store storage.Provider, began moment, look uint64, instances []*guarded) {
	var patience atomic.Int64
	patience.Store(lookFailures)
	var group errgroup.Group
	group.SetLimit(lookAtOnce)
	for _, instance := range instances {
		group.Go(func() error {
			if patience.Load() <= 0 || ctx.Err() != nil {
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, answerSoon)
			defer cancel()
			newest, err := g.Catalog.NewestOn(ctx, store, instance.workspace)
			if err == nil {
				// Only an answer is one: a store that refuses or fails may have a marker, and says nothing of it.
				g.answered(began)
			} else {
				g.Logger.Debug("looking for a newer instance", "instance", instance.name, "store", store.URL(), "error", err)
				if patience.Add(-1); ctx.Err() != nil {
					patience.Store(0)
				}
			}
			g.mutex.Lock()
			instance.looked = look
			g.mutex.Unlock()
			g.see(all, instance, newest)
			return nil
		})
	}
	_ = group.Wait()
}

// see pauses an instance of which a newer one is recorded.
func (g *Guard) see(ctx context.Context, instance *guarded, newest uint64) {
	if newest <= instance.token {
		return
	}
	g.mutex.Lock()
	instance.replaced = max(instance.replaced, newest)
	g.mutex.Unlock()
	g.pause(ctx, instance, causeReplaced)
}

// answered notes that a question was answered that was asked at a time.
func (g *Guard) answered(asked moment) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if asked.since(g.reached) > 0 {
		g.reached = asked
	}
	if g.alone {
		g.alone = false
		g.Logger.Info("the node reaches something again; what is paused stays so until it has its lease")
	}
}

func (g *Guard) isAlone() bool {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.Lease.now().since(g.reached) >= g.pauseAfter()
}

// pauseWhenAlone pauses everything once nothing has been reached for too long. It comes after a look, so that a machine which
// has just woken up, or an agent that has just been started, has asked before.
func (g *Guard) pauseWhenAlone(ctx context.Context, instances []*guarded) {
	if !g.isAlone() {
		return
	}
	g.mutex.Lock()
	if !g.alone {
		g.alone = true
		g.Logger.Warn("the node has no lease and reaches neither Temporal nor a store; its instances are paused",
			"after", g.pauseAfter(), "last_reached", g.reached.wall.UTC().Format(time.RFC3339), "instances", len(instances))
	}
	g.mutex.Unlock()
	for _, instance := range instances {
		g.pause(ctx, instance, causeAlone)
	}
}

// settle is what a node with a lease does after a time without: what was replaced is paused, what is paused and was not is
// resumed. It returns how long to wait before it is to be done again.
func (g *Guard) settle(ctx context.Context) time.Duration {
	instances, err := g.list(ctx)
	if err != nil {
		return settleEvery
	}
	g.mutex.Lock()
	g.alone = false
	g.looks++
	look, unsure, open := g.looks, g.unsure, false
	var ask []*guarded
	for _, instance := range instances {
		if undecided := instance.paused && instance.replaced == 0; undecided || unsure {
			ask = append(ask, instance)
		}
	}
	g.mutex.Unlock()

	asking, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(lookAtOnce)
	for _, instance := range ask {
		group.Go(func() error {
			if asking.Err() == nil {
				g.decide(ctx, asking, look, instance)
			}
			return nil
		})
	}
	_ = group.Wait()

	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.unsure = false
	for _, instance := range instances {
		open = open || instance.busy || instance.paused && instance.replaced == 0
	}
	for _, instance := range ask {
		g.unsure = g.unsure || unsure && instance.looked != look // there was no time for it
	}
	if open || g.unsure {
		return settleEvery
	}
	return watchEvery
}

// decide asks whether an instance was replaced, of as many stores as a commit would have to ask.
func (g *Guard) decide(all, ctx context.Context, look uint64, instance *guarded) {
	newest, err := g.Catalog.NewestToken(ctx, instance.workspace)
	g.mutex.Lock()
	instance.looked, instance.doubt = look, err
	paused := instance.paused
	g.mutex.Unlock()
	switch {
	case newest > instance.token:
		g.see(all, instance, newest)
	case err != nil:
		if paused && all.Err() == nil {
			g.Logger.Warn("an instance stays paused: whether another has taken its place cannot be asked", "instance", instance.name, "error", err)
		}
	case paused:
		g.resume(all, instance)
	}
}
