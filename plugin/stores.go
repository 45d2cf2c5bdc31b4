package plugin

import "context"

// watchStores has every store looked at, again and again, whether it can be written: /healthz says so. The journal looks
// by itself, and refuses what it could not keep.
func (g *Gateway) watchStores() {
	g.writable.Add("dead.db", g.store.letters.Writable)
	g.writable.Add("suspended", func(context.Context) error { return g.suspensions.Writable() })
	if g.commands != nil {
		g.writable.Add("commands.db", g.commands.store.Writable)
	}
	if g.audit != nil {
		g.writable.Add("the audit log", func(context.Context) error { return g.audit.Writable() })
	}
	g.writable.Start()
}
