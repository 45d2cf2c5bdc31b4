package backend_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/backend"
)

func post(t *testing.T, url, body string) (*http.Response, []byte, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("ce-id", "m1")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return response, read, err
}

func TestRecordsExactBytes(t *testing.T) {
	b := backend.Start(t)
	body := "{\"a\": 22.0,\n\"b\":\"Z\u00fcrich\"}\x00"
	response, answer, err := post(t, strings.ReplaceAll(b.URL(), "{device_id}", "sensor_001"), body)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"device_id":"sensor_001","message_id":"m1","status":"ok"}`; response.StatusCode != 200 || string(answer) != want {
		t.Errorf("answer %d %s, want 200 %s", response.StatusCode, answer, want)
	}
	r, err := b.WaitMessage(t.Context(), "m1")
	if err != nil {
		t.Fatal(err)
	}
	if r.Method != "POST" || r.Path != "/device/sensor_001/data" || r.Device != "sensor_001" || r.Seq != 1 {
		t.Errorf("recorded %s %s device %q seq %d", r.Method, r.Path, r.Device, r.Seq)
	}
	if !bytes.Equal(r.Body, []byte(body)) {
		t.Errorf("recorded body %q, want %q", r.Body, body)
	}
}

func TestMisbehaves(t *testing.T) {
	b := backend.Start(t)
	url := "http://" + b.Addr() + "/"

	b.Script(backend.Status(503))
	if response, _, err := post(t, url, "x"); err != nil || response.StatusCode != 503 {
		t.Errorf("status script: %v, %v", response, err)
	}
	b.Script(func(*backend.Request) backend.Answer { return backend.Answer{Reset: true} })
	if _, _, err := post(t, url, "x"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("reset: error %v", err)
	}
	b.Script(func(*backend.Request) backend.Answer { return backend.Answer{Body: []byte("half of this"), Cut: true} })
	if _, read, err := post(t, url, "x"); err == nil {
		t.Errorf("cut: the whole answer %q arrived", read)
	}
	b.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
	ended := make(chan error, 1)
	go func() {
		_, _, err := post(t, url, "x")
		ended <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := b.Wait(ctx, 4); err != nil {
		t.Fatal(err)
	}
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("a request that hung was answered")
	}
	if _, _, err := post(t, url, "x"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while down: error %v, want connection refused", err)
	}
	b.Script(backend.OK)
	if err := b.Up(); err != nil {
		t.Fatal(err)
	}
	if response, _, err := post(t, url, "x"); err != nil || response.StatusCode != 200 {
		t.Errorf("up again: %v, %v", response, err)
	}
	if b.Count() != 5 {
		t.Errorf("%d requests recorded, want 5", b.Count())
	}
}
