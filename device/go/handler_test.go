package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/envelope"
)

// commandText is a command of the gateway.
func commandText(t *testing.T, n int, expires int64) (id, text string) {
	t.Helper()
	id = fmt.Sprintf("01923456-789a-8bcd-8def-%012x", n)
	message, err := envelope.Sign(envelope.NewSigner(testSecret), "sensor_001", 1727712000, id, fmt.Appendf(nil, `{"command":%d,"expires":%d}`, n, expires))
	must(t, err)
	return id, string(message)
}

// answers are the payloads of the answers that the broker got.
func answersOf(b *fakeBroker) (payloads []string) {
	for _, p := range b.all() {
		if p.topic == "command/result" {
			payloads = append(payloads, p.payload)
		}
	}
	return payloads
}

// TestHandler: what the handler does, and what the answer is.
func TestHandler(t *testing.T) {
	for name, c := range map[string]struct {
		handler func(context.Context, Command) (Reply, error)
		want    string
	}{
		"none":      {nil, `"status":"rejected"}`},
		"succeeds":  {func(context.Context, Command) (Reply, error) { return Reply{Succeeded, map[string]int{"n": 1}}, nil }, `"status":"succeeded","result":{"n":1}}`},
		"no result": {func(context.Context, Command) (Reply, error) { return Reply{Status: Rejected}, nil }, `"status":"rejected"}`},
		"raw result": {func(context.Context, Command) (Reply, error) {
			return Reply{Failed, json.RawMessage(` [1.0, 2] `)}, nil
		}, `"status":"failed","result":[1.0, 2]}`},
		"no status":      {func(context.Context, Command) (Reply, error) { return Reply{}, nil }, `"status":"failed"}`},
		"another status": {func(context.Context, Command) (Reply, error) { return Reply{"done", 1}, nil }, `"status":"failed","result":1}`},
		"error":          {func(context.Context, Command) (Reply, error) { return Reply{Succeeded, 1}, errors.New("broken\xff") }, `"status":"failed","result":"broken` + "\ufffd" + `"}`},
		"panic":          {func(context.Context, Command) (Reply, error) { panic("no such pin") }, `"status":"failed","result":"no such pin"}`},
		"result too large": {func(context.Context, Command) (Reply, error) {
			return Reply{Succeeded, strings.Repeat("x", 65536)}, nil
		}, `"status":"failed","result":"the result cannot be sent: too_large"}`},
		"result no JSON": {func(context.Context, Command) (Reply, error) { return Reply{Succeeded, func() {}}, nil }, `"status":"failed","result":"the result cannot be sent: payload"}`},
		"result nests 63": {func(context.Context, Command) (Reply, error) {
			return Reply{Succeeded, json.RawMessage(strings.Repeat("[", 63) + strings.Repeat("]", 63))}, nil
		}, `"status":"failed","result":"the result cannot be sent: payload"}`},
		"error of 100,000 B": {func(context.Context, Command) (Reply, error) {
			return Reply{}, errors.New(strings.Repeat("x", 100_000))
		}, `"status":"failed","result":"the result cannot be sent: too_large"}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{}
				d := open(t, b, Options{})
				d.OnCommand = c.handler
				must(t, d.Start())
				synctest.Wait()
				id, text := commandText(t, 1, time.Now().Unix()+30)
				b.say("command", text)
				synctest.Wait()
				if got := answersOf(b); !slices.Equal(got, []string{`{"command_id":"` + id + `",` + c.want}) {
					t.Errorf("answers: %.200q", got)
				}
				must(t, d.Close())
			})
		})
	}
}

// TestCommandsOnce: commands that come again, that expire while they wait, that are refused; over restarts, one of which interrupts
// the handler.
func TestCommandsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		var executed []string
		var refused []Reason
		b := &fakeBroker{}
		release := make(chan struct{})
		start := func() *Device {
			d := open(t, b, Options{State: state, Commands: 4})
			d.OnCommand = func(_ context.Context, c Command) (Reply, error) {
				executed = append(executed, string(c.Body))
				if string(c.Body) == "2" {
					<-release
				}
				return Reply{Succeeded, c.Body}, nil
			}
			d.OnCommandRefused = func(r Reason) { refused = append(refused, r) }
			must(t, d.Start())
			synctest.Wait()
			return d
		}
		d := start()
		now := time.Now().Unix()
		_, one := commandText(t, 1, now+100)
		_, two := commandText(t, 2, now+100)
		_, short := commandText(t, 3, now+5)
		_, over := commandText(t, 4, now)
		b.say("command", one)
		b.say("command", one)
		b.say("command", two)
		b.say("command", short)
		b.say("command", over)
		b.say("command", "{}")
		b.say("command", strings.Replace(one, `"command":1`, `"command":9`, 1))
		synctest.Wait()
		if want := []string{"1", "2"}; !slices.Equal(executed, want) {
			t.Errorf("executed: %q, want %q", executed, want)
		}
		slices.Sort(refused)
		if want := []Reason{Expired, Forged, Malformed, Repeated}; !slices.Equal(refused, want) {
			t.Errorf("refused: %q, want %q", refused, want)
		}
		time.Sleep(10 * time.Second)
		close(release)
		synctest.Wait()
		if want := []string{"1", "2"}; !slices.Equal(executed, want) {
			t.Errorf("a command was executed that had expired while it waited: %q", executed)
		}
		one1, two1 := `{"command_id":"01923456-789a-8bcd-8def-000000000001","status":"succeeded","result":1}`, `{"command_id":"01923456-789a-8bcd-8def-000000000002","status":"succeeded","result":2}`
		if got := answersOf(b); !slices.Equal(got, []string{one1, one1, two1}) && !slices.Equal(got, []string{one1, two1}) {
			t.Errorf("answers: %q", got)
		}
		must(t, d.Close())

		// What an earlier process was executing when it ended.
		s, err := openStore(state, "sensor_001", 4)
		must(t, err)
		interrupted, text := commandText(t, 5, now+100)
		must(t, s.write(true, record{Op: opCommand, ID: interrupted, At: now + 100}))
		must(t, s.close())
		b2 := &fakeBroker{}
		b = b2
		d = start()
		b.say("command", text)
		b.say("command", two)
		synctest.Wait()
		b.say("command", text)
		synctest.Wait()
		failed := `{"command_id":"` + interrupted + `","status":"failed","result":"interrupted"}`
		if got := answersOf(b); len(executed) != 2 || !slices.Equal(got, []string{failed, two1, failed}) {
			t.Errorf("executed %q, answers %q", executed, got)
		}
		// The memory is full: the oldest leaves, and what has its expiry or a lower one is expired.
		for n := 10; n < 14; n++ {
			_, text := commandText(t, n, now+200+int64(n))
			b.say("command", text)
		}
		b.say("command", one)
		b.say("command", text)
		synctest.Wait()
		if len(executed) != 6 || len(d.store.commands.table) != 4 || len(d.store.answered) != 4 {
			t.Errorf("executed %q; %d commands and %d answers are kept", executed, len(d.store.commands.table), len(d.store.answered))
		}
		must(t, d.Close())
	})
}

// TestManyCommands: more than can wait are left out, and none is lost of those that are taken. Answers do not need room of the outbox.
func TestManyCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		b.reply = func(_ int, p published) reply { return reply{silent: true} }
		d := open(t, b, Options{MaxMessages: 1, Commands: 1000})
		publish(t, d, "1")
		if _, err := d.Publish(t.Context(), 2); ReasonOf(err) != OutboxFull {
			t.Errorf("a second message: %v", err)
		}
		release, executed := make(chan struct{}), 0
		d.OnCommand = func(context.Context, Command) (Reply, error) {
			<-release
			executed++
			return Reply{Status: Succeeded}, nil
		}
		leftOut := 0
		d.OnError = func(err error) { leftOut++ }
		must(t, d.Start())
		synctest.Wait()
		const n = 1 + maxPending + 10
		for i := range n {
			_, text := commandText(t, i, time.Now().Unix()+100)
			b.say("command", text)
		}
		synctest.Wait()
		close(release)
		synctest.Wait()
		if executed != 1+maxPending || leftOut != 10 {
			t.Errorf("%d were executed, %d left out", executed, leftOut)
		}
		if d.store.answers != maxAnswers {
			t.Errorf("%d answers wait", d.store.answers)
		}
		must(t, d.Close())
	})
}

// TestResponses reach the function, and what else comes does no harm.
func TestResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		d := open(t, b, Options{})
		var got []string
		d.OnResponse = func(text string) { got = append(got, text) }
		must(t, d.Start())
		synctest.Wait()
		b.say("response", `{"a": 1}`)
		b.say("other", "x")
		b.say("", "x")
		b.say("rejected", "x")
		b.say("rejected", `{"message_id":null,"reason":"stale","server_time":1}`)
		b.say("rejected", `{"message_id":"01923456-789a-7bcd-8def-000000000001","reason":"stale","server_time":1}`)
		b.say("response", "")
		synctest.Wait()
		if !slices.Equal(got, []string{`{"a": 1}`, ""}) {
			t.Errorf("%q", got)
		}
		if d.store.offset != 0 {
			t.Errorf("a notice for no message of the device has set the clock: %d", d.store.offset)
		}
		if len(b.acked) != 7 {
			t.Errorf("%d messages were acknowledged, want 7", len(b.acked))
		}
		must(t, d.Close())
	})
}
