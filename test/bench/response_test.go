package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/broker"
)

// BenchmarkResponse measures, on an otherwise idle broker, the time from a publish's PUBACK to the response, as the device
// sees it, and what of it is not the backend's own: both begin at about the same moment, so that time is what is left
// when the backend's, from the first byte of the request to the handing over of its answer, is taken off the time from
// PUBLISH to response, less the time from PUBLISH to PUBACK.
func BenchmarkResponse(b *testing.B) {
	var mu sync.Mutex
	var own []time.Duration // the backend's
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		_, _ = w.Write([]byte(`{"ok":true}`))
		_ = http.NewResponseController(w).Flush()
		mu.Lock()
		own = append(own, time.Since(begin))
		mu.Unlock()
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	b.Cleanup(func() { _ = server.Close() })

	of := broker.Start(b, broker.Options{Devices: names(1), Quiet: true, BackendURL: "http://" + listener.Addr().String() + "/device/{device_id}/data"})
	d := devicesOf(b, of, names(1))[0]
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	c, err := d.ConnectV5(ctx)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	if err := c.Subscribe(ctx, d.ResponseTopic(), 1); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		time.Sleep(10 * time.Millisecond) // idle again
		m := d.Sign(benchPayload)
		n := len(took) + 1
		if ack, err := c.Publish(ctx, d.DataTopic(), 1, false, m.Bytes); err != nil || !ack.Accepted() {
			b.Fatal(ack, err)
		}
		acknowledged := time.Now()
		responses, err := c.Inbox().WaitCount(ctx, d.ResponseTopic(), n)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, responses[n-1].At.Sub(acknowledged))
	}
	mu.Lock()
	defer mu.Unlock()
	above := make([]time.Duration, len(took))
	for i := range took {
		above[i] = max(0, took[i]-own[i])
	}
	b.ReportMetric(0, "ns/op")
	for name, of := range map[string][]time.Duration{"puback-to-response": took, "above-the-backend": above, "backend": own} {
		slices.Sort(of)
		for _, p := range []int{50, 99} {
			b.ReportMetric(float64(of[len(of)*p/100].Microseconds()), fmt.Sprintf("p%d-us-%s", p, name))
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %d responses, the longest after %v\n", b.Name(), len(took), took[len(took)-1])
}
