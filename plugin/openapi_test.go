package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/mqtt"
)

// httpSettings are the settings of a listener on a free port, whose token is "token".
func httpSettings(t *testing.T) (address, settings string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), fmt.Sprintf("[http]\nlisten = %q\ntoken_file = %q\n", l.Addr(), filepath.Join(dir, "token"))
}

// startHTTP is startGateway with an HTTP listener, and its own state directory.
func startHTTP(t *testing.T) (g *aGateway, address string) {
	t.Helper()
	address, settings := httpSettings(t)
	g = startGateway(t, settings)
	return g, address
}

// answer makes the device answer the commands that are waiting for the broker, as the broker's thread would.
func (g *aGateway) answer(stop context.Context) {
	for stop.Err() == nil {
		g.Tick()
		for _, p := range g.host.published {
			g.obey(p)
		}
		g.host.published = nil
		time.Sleep(time.Millisecond)
	}
}

// obey answers a publish that is a command, and returns the answer; nil: it is not a command.
func (g *aGateway) obey(p mqtt.Message) *gate.Publish {
	device, isCommand := strings.CutSuffix(strings.TrimPrefix(p.Topic, "device/"), "/command")
	var command struct {
		ID string `json:"message_id"`
	}
	if !isCommand || json.Unmarshal(p.Payload, &command) != nil || bytes.Contains(p.Payload, []byte("unanswered")) {
		return nil
	}
	q := publish(device, sign(g.t, "s", device, time.Now().Unix(), uuid.NewString(), fmt.Sprintf(`{"command_id":%q,"status":"succeeded","result":[1]}`, command.ID)))
	q.Topic = []byte(p.Topic + "/result")
	if o := g.send(q); o != gate.Route {
		g.t.Errorf("the answer: %d %s", o, g.host.last())
	}
	return q
}

// TestOpenAPI compares docs/openapi.yaml with the server: the server has all that the document names, and its answers are as
// the document says.
func TestOpenAPI(t *testing.T) {
	text, err := os.ReadFile("../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		t.Fatal(err)
	}
	valid, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := valid.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("%s: %s", e.Message, e.Reason)
		}
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	g, address := startHTTP(t)
	g.suspend("sensor_001")
	ctx, cancel := context.WithCancel(t.Context())
	loop := make(chan struct{})
	go func() { defer close(loop); g.answer(ctx) }()
	defer func() { cancel(); <-loop }()

	type key struct{ path, method, status string }
	answered := map[key]bool{}
	// do sends a request and compares the answer with the specification of the path template and its method.
	do := func(template, method, as, path, body string, want int, header ...string) map[string]any {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), as, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer token")
		if as == http.MethodPost {
			r.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		said, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		a.Body = io.NopCloser(bytes.NewReader(said))
		if a.StatusCode != want {
			t.Errorf("%s %s: %d %s, want %d", as, path, a.StatusCode, said, want)
		}
		specified := r.Clone(t.Context())
		specified.Method = method
		if ok, errs := valid.ValidateHttpResponse(specified, a); !ok {
			for _, e := range errs {
				t.Errorf("%s %s: %d %s: %s: %s", as, path, a.StatusCode, said, e.Message, e.Reason)
			}
		}
		answered[key{template, method, fmt.Sprint(a.StatusCode)}] = true
		var fields map[string]any
		_ = json.Unmarshal(said, &fields) // metrics are not JSON
		return fields
	}
	const send, get = "/v1/devices/{device_id}/commands", "/v1/commands/{id}"
	const to = "/v1/devices/sensor_001/commands"
	post := func(path, body string, want int, header ...string) map[string]any {
		t.Helper()
		return do(send, "POST", "POST", path, body, want, header...)
	}
	id, _ := post(to+"?wait=10s", `{"a":1}`, 200)["id"].(string)
	waiting, _ := post(to, `"unanswered"`, 202, "Idempotency-Key", "k")["id"].(string)
	post(to, `"unanswered"`, 202, "Idempotency-Key", "k")
	post(to, `"unanswered 2"`, 422, "Idempotency-Key", "k")
	post(to, `{`, 400)
	post(to+"?ttl=1ms", `1`, 400)
	post(to, `1`, 401, "Authorization", "Bearer wrong")
	post("/v1/devices/none/commands", `1`, 404)
	do(send, "POST", "PUT", to, "1", 405)
	post(to, strings.Repeat("1", 65537), 413)
	post(to, `1`, 415, "Content-Type", "text/plain")
	for range 255 {
		post(to, `"unanswered"`, 202)
	}
	post(to, `1`, 429)
	if err := g.disable("sensor_002"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !g.registry.Lookup([]byte("sensor_002")).Disabled && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	post("/v1/devices/sensor_002/commands", `1`, 409)

	read := func(template, path string, want int, header ...string) {
		t.Helper()
		do(template, "GET", "GET", path, "", want, header...)
	}
	read(get, "/v1/commands/"+id, 200)
	read(get, "/v1/commands/"+waiting+"?wait=10ms", 200)
	read(get, "/v1/commands/"+id+"?wait=long", 400)
	read(get, "/v1/commands/"+id, 401, "Authorization", "")
	read(get, "/v1/commands/none", 404)
	do(get, "GET", "DELETE", "/v1/commands/"+id, "", 405)
	const device, list = "/v1/devices/{device_id}", "/v1/devices"
	read(device, "/v1/devices/sensor_001", 200)
	read(device, "/v1/devices/sensor_001", 401, "Authorization", "")
	read(device, "/v1/devices/none", 404)
	do(device, "GET", "POST", "/v1/devices/sensor_001", "{}", 405)
	read(list, list+"?order=slowest", 200)
	read(list, list+"?order=slowest&limit=100", 200)
	read(list, list, 400)
	for _, limit := range []string{"", "0", "-1", "101", "x", "99999999999999999999"} {
		read(list, list+"?order=slowest&limit="+limit, 400)
	}
	read(list, list+"?order=slowest", 401, "Authorization", "")
	do(list, "GET", "DELETE", list, "", 405)
	const unknown = "tll=10m"
	read(device, "/v1/devices/sensor_001?"+unknown, 400)
	read("/metrics", "/metrics?"+unknown, 400)
	read("/healthz", "/healthz?"+unknown, 400)
	read(device, "/v1/devices/sensor%5F001", 200)
	read("/metrics", "/metrics", 200)
	read("/metrics", "/metrics", 401, "Authorization", "token")
	do("/metrics", "GET", "POST", "/metrics", "", 405)
	read("/healthz", "/healthz", 200, "Authorization", "")
	do("/healthz", "GET", "POST", "/healthz", "", 405)
	g.service.health.checks = append(g.service.health.checks, func() error { return fmt.Errorf("as the test wants it") })
	read("/healthz", "/healthz", 503)
	read("/healthz", "/healthz", 503, "Authorization", "")
	for deadline := time.Now().Add(10 * time.Second); ; {
		a, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode == http.StatusTooManyRequests || time.Now().After(deadline) {
			break
		}
	}
	for _, path := range []string{device, list, get, "/metrics", "/healthz"} {
		read(path, strings.ReplaceAll(strings.ReplaceAll(path, "{device_id}", "sensor_001"), "{id}", "x"), 429, "Authorization", "Bearer wrong")
	}
	// Without the broker's thread there is no answer.
	cancel()
	<-loop
	read(device, "/v1/devices/sensor_001", 503)
	if g.send(g.fresh("sensor_001")) != gate.Route { // which waits
		t.Error(g.host.last())
	}
	read(list, list+"?order=slowest", 503)
	// Without its store no command is accepted.
	if err := g.service.commands.Close(); err != nil {
		t.Fatal(err)
	}
	post("/v1/devices/sensor_001/commands", `1`, 503)
	read(get, "/v1/commands/"+id, 503)

	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			for status := range operation.Responses.Codes.FromOldest() {
				if k := (key{path, strings.ToUpper(method), status}); !answered[k] {
					t.Errorf("the specification names %+v, which was not seen", k)
				}
			}
		}
	}
}
