package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/backendurl"
	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/forward"
)

func TestBatchRequest(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	var mu sync.Mutex
	var bodies, keys []string
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		bodies, keys = append(bodies, string(body)), append(keys, r.Header.Get("Idempotency-Key"))
		if r.Method != "POST" || r.RequestURI != "/in?v=1" || r.Header.Get("Content-Type") != "application/cloudevents-batch+json" ||
			r.Header.Get("Authorization") != "Bearer s3cret" {
			t.Errorf("%s %s %v", r.Method, r.RequestURI, r.Header)
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "Ce-") || name == "Traceparent" {
				t.Errorf("header %s", name)
			}
		}
		if len(bodies) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
		io.WriteString(w, "an answer that no request is for")
	})
	x := start(t, Config{URL: s.URL + "/in?v=1", Batch: 10, BearerToken: []byte("s3cret")})
	payloads := []string{`0`, `{}`, `""`, `22.0`, `{"temperature": 22.50,  "humidity":60}`, "\"\u00e9 \\u00e9 \U0001F321\"",
		`"` + strings.Repeat("x", 70000) + `"`, `[1,2]`, `{"b":1,"a":1}`, `null`}
	for n, p := range payloads {
		m := message("sensor_001", n+1)
		m.MessageID = strings.ToUpper(m.MessageID)
		m.Payload = []byte(p)
		switch n {
		case 0:
			m.Traceparent = trace
		case 1:
			m.Traceparent = "not one"
			m.Topic = "a \"quoted\" topic/\u00e9\\"
		case 2:
			m.Topic = strings.Repeat("t", cloudevent.MaxSubject+1)
		}
		x.enqueue(m)
	}
	if s := x.drain(); s.Delivered != 10 || s.Retries != 1 || s.AnswersDropped != 0 || len(x.answers) != 0 {
		t.Errorf("%+v, %d answers", s, len(x.answers))
	}
	if len(bodies) != 2 || bodies[0] != bodies[1] || keys[0] != keys[1] {
		t.Fatalf("%d requests, keys %v", len(bodies), keys)
	}
	if keys[0] != `"batch:`+strings.Trim(keys[0], `"`)[6:]+`"` || len(keys[0]) != len(`"batch:"`)+32 {
		t.Errorf("key %s", keys[0])
	}
	var events []map[string]json.RawMessage
	if err := json.Unmarshal([]byte(bodies[0]), &events); err != nil {
		t.Fatal(err)
	}
	for n, e := range events {
		want := map[string]string{
			"specversion":     `"1.0"`,
			"type":            `"mosquitto-bouncer.message.v1"`,
			"id":              fmt.Sprintf(`"550e8400-e29b-41d4-a716-%012d"`, n+1),
			"source":          `"/devices/sensor_001"`,
			"subject":         `"device/sensor_001/data"`,
			"time":            `"2024-09-30T16:00:00Z"`,
			"datacontenttype": `"application/json"`,
			"data":            payloads[n],
		}
		switch n {
		case 0:
			want["traceparent"] = `"` + trace + `"`
		case 1:
			want["subject"] = `"a \"quoted\" topic/` + "\u00e9" + `\\"`
		case 2:
			delete(want, "subject")
		}
		for name, value := range e {
			if want[name] != string(value) {
				t.Errorf("event %d: %s is %.100s, want %.100s", n, name, value, want[name])
			}
		}
		if len(e) != len(want) {
			t.Errorf("event %d: %v", n, e)
		}
	}
}

// The key of a batch tells which messages it holds, in which order.
func TestBatchKey(t *testing.T) {
	var key string
	s := backend(t, func(_ http.ResponseWriter, r *http.Request) { key = r.Header.Get("Idempotency-Key") })
	target, err := backendurl.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(Config{Timeout: 5 * time.Second, Concurrency: 1, Batch: 10, idle: 50 * time.Millisecond}, target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.hangUp()
	courier := c.batchCourier()
	seen := map[string]string{}
	for range 2 { // the same again
		for _, ids := range []string{"a1", "a2", "a1 a2", "a2 a1", "b1", "a1 b1", "b1 a1", "a1 a2 a3", "a:1", "a1 b1 b2"} {
			for id := range strings.SplitSeq(ids, " ") {
				n, _ := strconv.Atoi(id[len(id)-1:])
				m := message(id[:len(id)-1], n)
				courier.pack(&m)
			}
			if r := courier.send(); meaningOf(r.status, r.err == nil, nil) != forward.Taken {
				t.Fatalf("%+v", r)
			}
			if other, ok := seen[key]; ok && other != ids {
				t.Errorf("%s and %s have the same key", ids, other)
			}
			seen[key] = ids
		}
	}
	if len(seen) != 10 {
		t.Errorf("%d keys of 10 batches", len(seen))
	}
}

// A large batch is cut; a large message goes nevertheless.
func TestBatchBytes(t *testing.T) {
	var mu sync.Mutex
	var sizes []int
	var ids []string
	s := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var events []struct{ ID string }
		if err := json.Unmarshal(body, &events); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(events))
		for _, e := range events {
			ids = append(ids, e.ID)
		}
		if len(events) > 1 && len(body) > 256<<10 {
			t.Errorf("%d events in %d bytes", len(events), len(body))
		}
	})
	x := start(t, Config{URL: s.URL, Batch: 20})
	for n := range 20 {
		m := message("a", n+1)
		if m.Payload = []byte(`"` + strings.Repeat("x", 64000) + `"`); n == 9 {
			m.Payload = []byte(`"` + strings.Repeat("x", 600000) + `"`)
		}
		x.enqueue(m)
	}
	if s := x.drain(); s.Delivered != 20 {
		t.Errorf("%+v", s)
	}
	if !slices.IsSorted(ids) || fmt.Sprint(sizes) != "[4 4 1 1 4 4 2]" {
		t.Errorf("%v %v", sizes, ids)
	}
}
