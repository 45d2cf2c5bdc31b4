package plugin

import (
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/metrics"
)

// figures are what the broker's thread counts for the metrics. It alone writes them; the listener's goroutines read.
type figures struct {
	verdicts [reasonCount]atomic.Uint64
	lastTick atomic.Int64 // Unix nanoseconds; 0: none yet
	ticks    atomic.Uint64

	foreignClients atomic.Uint64 // connections under the client id of another identity

	access, message metrics.Timer
}

func (f *figures) tick(now time.Time) {
	f.ticks.Add(1)
	f.lastTick.Store(now.UnixNano())
}

// readFigures gathers all figures. Any goroutine.
func (g *Gateway) readFigures() metrics.Figures {
	f := metrics.Figures{
		Version: Version,
		Notices: g.notices.sent.Load(),

		ForeignClients: g.figures.foreignClients.Load(),

		Delivery:  g.deliveryFigures(),
		Journal:   g.journalFigures(),
		Letters:   letterFigures(g.letterRoom.figures()),
		ReplayIDs: g.seen.Len(),
		ReplayMax: g.seen.Capacity(),
		Registry:  metrics.Registry{Devices: g.registry.Len()},
		Callbacks: []metrics.Callback{{Name: "access", Time: g.figures.access.Histogram()}, {Name: "message", Time: g.figures.message.Histogram()}},
		Ticks:     g.figures.ticks.Load(),
		BadReload: g.ReloadError() != "",
	}
	r := g.responses.Stats()
	f.Responses = metrics.Responses{
		Waiting: r.Waiting, Dropped: r.Dropped, Expired: r.Expired, ForeignTopics: r.ForeignTopics, ContextsLost: r.ContextsLost,
	}
	f.Responses.Published, f.Responses.Refused = g.down.Counts()
	for r := range reasonCount {
		f.Verdicts = append(f.Verdicts, metrics.Count{Name: r.String(), N: g.figures.verdicts[r].Load()})
	}
	if current, _ := g.registry.Health(); !current.IsZero() {
		f.Registry.Age = max(0, time.Since(current))
	}
	if g.commands != nil {
		f.Responses.Waiting += g.commands.Waiting()
		f.Commands = commandFigures(g.commands.Counts())
	}
	if server := g.server.Load(); server != nil {
		f.HTTPAnswers = server.Answers()
		f.HTTPRefused, f.HTTPLimited = server.Unauthorized()
		f.HTTPConnectionsClosed = server.ConnectionsClosed()
	}
	return f
}

func commandFigures(c command.Counts) *metrics.Commands {
	m := &metrics.Commands{
		Unfinished: c.Unfinished, Created: c.Created, Repeated: c.Repeated,
		Answers: c.Answers, Strays: c.Strays, Malformed: c.Malformed,
	}
	for _, state := range command.States() {
		m.ByState = append(m.ByState, metrics.Count{Name: string(state), N: uint64(max(0, c.ByState[state]))})
	}
	return m
}

func (g *Gateway) deliveryFigures() metrics.Delivery {
	stats := g.Stats()
	s, accounts := stats.Forward, stats.Accounts
	latency := &metrics.Histogram{Counts: s.Latency.Counts[:], Sum: s.Latency.Sum}
	for _, bound := range forward.LatencyBounds() {
		latency.Bounds = append(latency.Bounds, bound.Seconds())
	}
	return metrics.Delivery{
		Accepted: accounts.Accepted, Delivered: accounts.Delivered, Dead: accounts.Dead, Pending: accounts.Pending,
		Retries: s.Retries, InFlight: s.InFlight, Lanes: s.Lanes, AnswersDropped: s.AnswersDropped,
		StoreErrors: s.StoreErrors, Down: s.Down, Suspended: s.Suspended, SuspendedDevices: s.SuspendedDevices,
		Latency: latency, Refusing: s.Refusing, BlockedDevices: s.BlockedDevices, Responses: responseFigures(g.forwarder),
	}
}

func letterFigures(u deadletter.Usage) metrics.DeadLetters {
	return metrics.DeadLetters{Letters: u.Letters, Bytes: u.Bytes, MaxBytes: u.MaxBytes, Dropped: u.Dropped}
}

func responseFigures(f *forward.Forwarder) (counts []metrics.Count) {
	for _, c := range f.Responses() {
		counts = append(counts, metrics.Count{Name: c.Status, N: c.N})
	}
	return counts
}

func (g *Gateway) journalFigures() metrics.Journal {
	s := g.journal.Stats()
	return metrics.Journal{
		Bytes: s.Bytes, MaxBytes: s.MaxBytes, Segments: s.Segments, Syncs: s.Syncs, SyncErrors: s.SyncErrors,
		Refused: s.Refused, Damaged: s.Damaged, SyncTime: s.SyncTime, SyncMax: s.SyncMax,
	}
}
