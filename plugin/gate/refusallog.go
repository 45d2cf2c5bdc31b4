package gate

import (
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/brokerlog"
	"mosquitto-bouncer/plugin/sampler"
)

// A refusalLog writes one line for each refusal, as far as the sampler allows it. Broker's thread only.
type refusalLog struct {
	sampler *sampler.Sampler
}

// refusedLine is what the sampler calls the lines of refusals.
const refusedLine = "refused"

// refused writes the line of one refusal. Identity, client id, topic and message id come from the publisher: they are quoted
// where necessary, and cut where they are long.
func (l *refusalLog) refused(now time.Time, p *Publish, messageID []byte, reason Reason, detail error, write func(slog.Level, string)) {
	who := p.Identity
	if len(who) == 0 {
		who = p.ClientID
	}
	if !l.sampler.Allow(now, who, refusedLine, false) {
		return
	}
	l.reportLeftOut(now, write)
	attrs := []any{"device", string(cut(p.Identity, 64)), "topic", string(cut(p.Topic, 128)), "reason", reason.String()}
	if messageID != nil {
		attrs = append(attrs, "message_id", string(messageID))
	}
	attrs = append(attrs, "client", string(cut(p.ClientID, 64)))
	if detail != nil {
		attrs = append(attrs, "detail", detail.Error())
	}
	write(slog.LevelWarn, brokerlog.Line("refused", attrs...))
}

// reportLeftOut logs how many lines were left out, if any, at most once a second.
func (l *refusalLog) reportLeftOut(now time.Time, write func(slog.Level, string)) {
	if count, kinds := l.sampler.Report(now); count > 0 {
		write(slog.LevelWarn, brokerlog.Line("clients caused more lines than the log takes; lines left out", "count", count, "of", kinds))
	}
}

// cut returns at most the first n bytes of text.
func cut(text []byte, n int) []byte {
	if len(text) > n {
		return text[:n]
	}
	return text
}
