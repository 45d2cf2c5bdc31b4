// Package metrics writes the gateway's figures in Prometheus' text format. It holds none itself: they are read where they
// are counted, when somebody asks, so that counting costs an increment and no more.
package metrics

import (
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// Figures are all that is told, at one moment. None has a device's id.
type Figures struct {
	Version  string
	Verdicts []Count // accepted and redelivered publishes, and refused ones by their reason
	Notices  uint64  // devices told of a refusal
	// ForeignClients are connections under the client id of another identity.
	ForeignClients uint64
	Delivery       Delivery
	Journal        Journal
	Letters        DeadLetters
	// ReplayIDs are the remembered message ids, ReplayMax how many there may be.
	ReplayIDs, ReplayMax int
	Registry             Registry
	Callbacks            []Callback
	Commands             *Commands // nil: there are none
	Responses            Responses
	HTTPAnswers          [5]uint64 // by the first digit of the status, from 1 on
	// Requests without the valid token, answered with 401 and with 429.
	HTTPRefused, HTTPLimited uint64
	HTTPConnectionsClosed    uint64 // because there were too many
	Ticks                    uint64
	BadReload                bool // bouncer.toml could not be read again at the last SIGHUP
}

// A Count is a number with a name.
type Count struct {
	Name string
	N    uint64
}

// Delivery is that of messages to the backend: Accepted = Delivered + Dead + Pending.
type Delivery struct {
	Accepted, Delivered, Dead, Pending uint64
	Retries                            uint64
	InFlight, Lanes                    int
	AnswersDropped, StoreErrors        uint64
	Down                               bool // the backend as a whole does not answer
	Refusing                           bool // the backend refuses whatever it is sent
	BlockedDevices                     int  // that wait for room for a dead letter
	Responses                          []Count
	Suspended                          bool // for all devices, until an operator resumes
	SuspendedDevices                   int
	Latency                            *Histogram // from acceptance to delivery; nil: not measured
}

// DeadLetters are the messages that were given up and are kept.
type DeadLetters struct {
	Letters, Bytes, MaxBytes int64  // that there are; the room they take, and may take: 0: any
	Dropped                  uint64 // for others
}

// Journal is the log's of accepted messages.
type Journal struct {
	Bytes, MaxBytes            int64
	Segments                   int
	Syncs, SyncErrors, Refused uint64
	Damaged                    uint64        // messages that the start found to be lost
	SyncTime, SyncMax          time.Duration // of all fsyncs together, and of the longest
}

// Registry is that of the devices.
type Registry struct {
	Devices int
	Age     time.Duration // since it was last found to be up to date
}

// A Callback is one of those that the broker calls, of which some are timed.
type Callback struct {
	Name string
	Time Histogram
}

// Commands are those for devices.
type Commands struct {
	ByState                    []Count
	Unfinished                 int
	Created, Repeated          uint64
	Answers, Strays, Malformed uint64
}

// Responses are what waits for the broker's thread, and what became of it.
type Responses struct {
	Waiting                     int
	Published, Dropped, Refused uint64
	Expired                     uint64 // answers to messages that were too old
	ForeignTopics, ContextsLost uint64 // response topics outside a device's own, correlation data that was not kept
}

// A Histogram counts by size. Bounds are the upper ones of the buckets, in seconds; Counts has one more, of what is above
// them all, and each is of its own bucket alone.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64 // seconds
}

// Write writes the figures that read returns, and returns the content type.
func Write(w io.Writer, read func() Figures) (contentType string, err error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector(read)); err != nil {
		return "", err
	}
	families, err := registry.Gather()
	if err != nil {
		return "", err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	encoder := expfmt.NewEncoder(w, format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return "", err
		}
	}
	return string(format), nil
}

// A collector is a prometheus.Collector of constants.
type collector func() Figures

// Describe says nothing, which makes the registry check what Collect sends instead.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (read collector) Collect(to chan<- prometheus.Metric) {
	f := read()
	s := sender{to}
	s.gauge("build_info", "The version of the plugin.", 1, "version", f.Version)
	for _, v := range f.Verdicts {
		s.counter("publishes_total", "Publishes to gated topics by verdict, and what else devices were refused.", v.N, "verdict", v.Name)
	}
	s.counter("rejection_notices_total", "Devices told why a publish was refused.", f.Notices)
	s.counter("foreign_client_ids_total", "Connections under the client id of another identity.", f.ForeignClients)
	s.counter("ticks_total", "How often the broker's thread came round.", f.Ticks)
	s.gauge("config_reload_failed", "Whether bouncer.toml could not be read again at the last SIGHUP.", oneIf(f.BadReload))
	s.delivery(&f.Delivery)
	s.responses(&f.Responses)
	s.journal(&f.Journal)
	s.gauge("dead_letters", "Dead letters that are kept.", float64(f.Letters.Letters))
	s.gauge("dead_letters_bytes", "Room that the dead letters take.", float64(f.Letters.Bytes))
	s.gauge("dead_letters_max_bytes", "Room that the dead letters may take.", float64(f.Letters.MaxBytes))
	s.counter("dead_letters_dropped_total", "Dead letters that were dropped for others.", f.Letters.Dropped)
	s.gauge("replay_ids", "Message ids that are remembered.", float64(f.ReplayIDs))
	s.gauge("replay_ids_max", "Message ids that can be remembered.", float64(f.ReplayMax))
	s.gauge("registry_devices", "Registered devices, disabled ones included.", float64(f.Registry.Devices))
	s.gauge("registry_age_seconds", "Time since the registry was last found to be up to date.", f.Registry.Age.Seconds())
	for i := range f.Callbacks {
		s.histogram("callback_seconds", "Time that a callback of the broker took, of a sample.", &f.Callbacks[i].Time, "callback", f.Callbacks[i].Name)
	}
	if f.Commands != nil {
		s.commands(f.Commands)
	}
	s.http(&f)
}

func (s sender) http(f *Figures) {
	for i, n := range f.HTTPAnswers {
		if i > 0 { // 1xx is none that is counted
			s.counter("http_answers_total", "Answers of the HTTP listener by class of status.", n, "status", string(rune('1'+i))+"xx")
		}
	}
	const help = "Requests to the HTTP listener without the valid token, by the answer's status."
	s.counter("http_unauthorized_total", help, f.HTTPRefused, "status", "401")
	s.counter("http_unauthorized_total", help, f.HTTPLimited, "status", "429")
	s.counter("http_connections_closed_total", "Connections to the HTTP listener closed because there were too many.", f.HTTPConnectionsClosed)
}

func (s sender) delivery(d *Delivery) {
	s.counter("messages_accepted_total", "Messages accepted for delivery; equals delivered, dead and pending together.", d.Accepted)
	s.counter("messages_delivered_total", "Messages that the backend has taken.", d.Delivered)
	s.counter("messages_dead_total", "Messages given up.", d.Dead)
	s.gauge("messages_pending", "Messages that wait for the backend.", float64(d.Pending))
	s.gauge("lanes", "Devices that have messages waiting for the backend.", float64(d.Lanes))
	s.gauge("requests_in_flight", "Requests to the backend that are under way.", float64(d.InFlight))
	s.counter("request_retries_total", "Requests to the backend that failed and are repeated.", d.Retries)
	s.gauge("backend_down", "Whether the backend as a whole seems down.", oneIf(d.Down))
	s.gauge("backend_refusing", "Whether the backend refuses every message; nothing is given up meanwhile.", oneIf(d.Refusing))
	for _, r := range d.Responses {
		s.counter("backend_responses_total", "Requests to the backend by the status of the response.", r.N, "status", r.Name)
	}
	s.gauge("blocked_devices", "Devices of which nothing is sent for want of room for a dead letter.", float64(d.BlockedDevices))
	s.gauge("deliveries_suspended", "Whether nothing is sent to the backend until an operator resumes.", oneIf(d.Suspended))
	s.gauge("suspended_devices", "Devices for which nothing is sent to the backend until an operator resumes.", float64(d.SuspendedDevices))
	s.counter("store_errors_total", "Times that a message could not be read, or a dead letter not be kept.", d.StoreErrors)
	s.counter("answers_dropped_total", "Answers of the backend that were no response: too long, compressed.", d.AnswersDropped)
	if d.Latency != nil {
		s.histogram("delivery_seconds", "Time from a message's acceptance to its delivery.", d.Latency)
	}
}

func (s sender) responses(r *Responses) {
	s.gauge("downlink_waiting", "Responses and commands that wait for the broker's thread.", float64(r.Waiting))
	s.counter("downlink_published_total", "Responses and commands given to the broker.", r.Published)
	s.counter("downlink_dropped_total", "Responses for which there was no room.", r.Dropped)
	s.counter("responses_expired_total", "Answers to messages older than [response] max_age, which were dropped.", r.Expired)
	s.counter("downlink_refused_total", "Responses and commands that the broker did not take.", r.Refused)
	s.counter("response_topics_ignored_total", "Response topics outside a device's own.", r.ForeignTopics)
	s.counter("response_contexts_lost_total", "Correlation data or response topics for which there was no room.", r.ContextsLost)
}

func (s sender) journal(j *Journal) {
	s.gauge("journal_bytes", "Room that the journal takes.", float64(j.Bytes))
	s.gauge("journal_max_bytes", "Room that the journal may take.", float64(j.MaxBytes))
	s.gauge("journal_segments", "Files of the journal.", float64(j.Segments))
	s.counter("journal_fsyncs_total", "Times that the journal was synced to the disk.", j.Syncs)
	s.number("journal_fsync_seconds_total", "Time spent on syncing the journal.", j.SyncTime.Seconds())
	s.gauge("journal_fsync_seconds_max", "The longest time that syncing the journal took.", j.SyncMax.Seconds())
	s.counter("journal_fsync_errors_total", "Times that syncing the journal failed.", j.SyncErrors)
	s.counter("journal_damaged_messages_total", "Messages that were found to be lost at the start.", j.Damaged)
	s.counter("journal_refused_total", "Messages that the journal did not take.", j.Refused)
}

func (s sender) commands(c *Commands) {
	for _, state := range c.ByState {
		s.gauge("commands", "Commands that are kept, by state.", float64(state.N), "state", state.Name)
	}
	s.gauge("commands_unfinished", "Commands that are queued or sent.", float64(c.Unfinished))
	s.counter("commands_created_total", "Commands taken.", c.Created)
	s.counter("commands_repeated_total", "Requests that an idempotency key led to a command that was there already.", c.Repeated)
	const help = "Devices' answers to commands, by what became of them."
	s.counter("command_answers_total", help, c.Answers, "outcome", "counted")
	s.counter("command_answers_total", help, c.Strays, "outcome", "stray")
	s.counter("command_answers_total", help, c.Malformed, "outcome", "malformed")
}

// A sender makes metrics.
type sender struct{ to chan<- prometheus.Metric }

func (s sender) counter(name, help string, n uint64, label ...string) {
	s.send(name, help, prometheus.CounterValue, float64(n), label)
}

func (s sender) number(name, help string, n float64) {
	s.send(name, help, prometheus.CounterValue, n, nil)
}

func (s sender) gauge(name, help string, n float64, label ...string) {
	s.send(name, help, prometheus.GaugeValue, n, label)
}

func (s sender) send(name, help string, kind prometheus.ValueType, n float64, label []string) {
	desc, values := describe(name, help, label)
	s.to <- prometheus.MustNewConstMetric(desc, kind, n, values...)
}

func (s sender) histogram(name, help string, h *Histogram, label ...string) {
	desc, values := describe(name, help, label)
	buckets := make(map[float64]uint64, len(h.Bounds))
	total := uint64(0)
	for i, n := range h.Counts {
		total += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = total
		}
	}
	s.to <- prometheus.MustNewConstHistogram(desc, total, h.Sum, buckets, values...)
}

// describe makes the description of a metric with at most one label, of which name and value are given.
func describe(name, help string, label []string) (*prometheus.Desc, []string) {
	var names, values []string
	if len(label) > 0 {
		names, values = label[:1], label[1:]
	}
	return prometheus.NewDesc("bouncer_"+name, help, names, nil), values
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
