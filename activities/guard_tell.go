package activities

import (
	"context"
	"sync"

	"holdfast/dataport"
	"holdfast/workspace"
)

// Whoever has a shell open in an instance that is paused sees that nothing moves, and not why. So the guard tells those who are
// connected, when a pause begins and when it ends.

// listener hears of the pauses of one instance. Only the newest state waits for it: nobody holds up the guard.
type listener struct {
	name   string
	paused chan bool
}

// listen tells of the pauses of an instance, by workspace.InstanceName, until stop is called. A nil guard tells of none.
func (g *Guard) listen(name string) (paused <-chan bool, stop func()) {
	if g == nil {
		return nil, func() {}
	}
	l := &listener{name: name, paused: make(chan bool, 1)}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.listeners == nil {
		g.listeners = map[*listener]bool{}
	}
	g.listeners[l] = true
	return l.paused, func() {
		g.mutex.Lock()
		defer g.mutex.Unlock()
		delete(g.listeners, l)
	}
}

// is notes whether an instance is paused, and tells who listens when that is new. The mutex is held.
func (g *Guard) is(instance *guarded, paused bool) {
	if instance.paused == paused {
		return
	}
	instance.paused = paused
	for l := range g.listeners {
		if l.name != instance.name {
			continue
		}
		select {
		case <-l.paused:
		default:
		}
		l.paused <- paused // only here, with the mutex held, and there is room now
	}
}

// tellOfPauses has a connected person told of the pauses of an instance until the context ends. The returned function waits for that.
func (n *Node) tellOfPauses(ctx context.Context, claims dataport.Claims, notice func(text string)) (wait func()) {
	if notice == nil {
		return func() {}
	}
	name := workspace.InstanceName(claims.WorkspaceID, claims.Token)
	news, stop := n.Guard.listen(name)
	var telling sync.WaitGroup
	telling.Go(func() {
		defer stop()
		told := false
		for {
			select {
			case <-ctx.Done():
				return
			case paused := <-news:
				switch {
				case paused == told:
				case paused:
					notice("workspace " + claims.Name + " is paused: " + n.Guard.Why(name) + "; what is open in it stands still, and nothing that you type is done before it goes on")
				default:
					notice("workspace " + claims.Name + " goes on")
				}
				told = paused
			}
		}
	})
	return telling.Wait
}
