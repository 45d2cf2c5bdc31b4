package httpd

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// echo answers with the id that was asked for.
type echo struct{ aService }

func (echo) Device(_ context.Context, id string) (Device, error) { return Device{ID: id}, nil }
func (echo) Send(_ context.Context, c NewCommand) (Command, error) {
	return Command{ID: "x", Device: c.Device, Body: c.Body}, nil
}
func (echo) Command(_ context.Context, id string, _ bool) (Command, error) {
	return Command{ID: id, Body: []byte("1")}, nil
}

// raw sends a request unchanged, and reads the answer.
func raw(t *testing.T, s *Server, text string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	a, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%.80q: %v", text, err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatalf("%.80q: %v", text, err)
	}
	return a, string(body)
}

// TestPaths: an id reaches the service decoded once, whatever was escaped in it, and nothing else is taken for a path.
func TestPaths(t *testing.T) {
	s := start(t, echo{}, nil)
	for path, want := range map[string]string{ // the id; or the status
		"AA:BB:CC:DD:EE:FF":             "AA:BB:CC:DD:EE:FF",
		"AA%3ABB%3aCC:DD%3AEE%3AFF":     "AA:BB:CC:DD:EE:FF",
		"sensor_001":                    "sensor_001",
		"sensor%5F001":                  "sensor_001",
		"sensor%5f001":                  "sensor_001",
		"%73%65%6e%73%6F%72":            "sensor",
		"..":                            "..",
		"%2e%2e":                        "..",
		"%2E.":                          "..",
		".":                             ".",
		"a%2Fb":                         "a/b",
		"a%2fcommands":                  "a/commands",
		"..%2f..%2fhealthz":             "../../healthz",
		"a%252Fb":                       "a%2Fb",
		"%252e%252e":                    "%2e%2e",
		"a;b=c":                         "a;b=c",
		"a+b":                           "a+b",
		"a%20b":                         "a b",
		"a%00b":                         "a\x00b",
		"%C3%A9":                        "é",
		"a,b@c!":                        "a,b@c!",
		"a\\b":                          "a\\b",
		"healthz":                       "healthz",
		"":                              "404",
		"/":                             "404",
		"a/":                            "404",
		"/a":                            "404",
		"a/b":                           "404",
		"../healthz":                    "404",
		"%2e%2e/%2e%2e/healthz":         "404",
		"a/../../healthz":               "404",
		"a/commands/":                   "404",
		"a//commands":                   "404",
		"a/commands/b":                  "404",
		"a%":                            "400",
		"a%2":                           "400",
		"%zz":                           "400",
		"%2G":                           "400",
		"%u0041":                        "400",
		"a%%41":                         "400",
		"a#b":                           "400",
		"\xc3\xa9":                      "400",
		strings.Repeat("%41", 64):       strings.Repeat("A", 64),
		strings.Repeat("%41", 64) + "%": "400",
	} {
		for _, at := range []string{"", "http://x", "HTTP://x:80", "https://[::1]:8080"} {
			a, body := raw(t, s, "GET "+at+"/v1/devices/"+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n")
			var got string
			if got = a.Status[:3]; got == "200" {
				_, got, _ = strings.Cut(body, `"device_id":`)
				got, _, _ = strings.Cut(got, `,"registered"`)
			}
			if want := want; got != want && got != quoted(want) {
				t.Errorf("%s/v1/devices/%s: %s, want %s: %s", at, path, got, want, body)
			}
		}
		if len(want) == 3 && want < "500" && want > "399" {
			continue
		}
		a, body := raw(t, s, "POST /v1/devices/"+path+"/commands HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1")
		if a.StatusCode != 202 || !strings.Contains(body, `"device_id":`+quoted(want)) {
			t.Errorf("POST %s: %s %s", path, a.Status, body)
		}
		a, body = raw(t, s, "GET /v1/commands/"+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n")
		if a.StatusCode != 200 || !strings.Contains(body, `{"id":`+quoted(want)) {
			t.Errorf("commands/%s: %s %s", path, a.Status, body)
		}
	}
}

// quoted is s as the server writes it in JSON.
func quoted(s string) string {
	s = strings.ReplaceAll(s, `\`, `\\`)
	return `"` + strings.ReplaceAll(s, "\x00", `\u0000`) + `"`
}

// TestFixedPaths: a path without an id is no other than as it is written, but for escapes that mean the same.
func TestFixedPaths(t *testing.T) {
	s := start(t, echo{}, nil)
	for target, want := range map[string]int{
		"/healthz": 200, "/%68ealthz": 200, "http://x/healthz": 200, "/healthz?": 200,
		"/healthz/": 404, "//healthz": 404, "/./healthz": 404, "/x/../healthz": 404, "/x/%2e%2e/healthz": 404, "/healthz;x": 404,
		"/healthz%2F": 404, "/%2Fhealthz": 404, "/HEALTHZ": 404, "/healthz%00": 404, "/v1/../healthz": 404, "/": 404, "http://x": 404, "http://x?a": 404,
		"/v1/devices?order=slowest": 200, "/v1/%64evices?order=slowest": 200, "/v1%2Fdevices?order=slowest": 404, "/v1/devices/?order=slowest": 404,
		"//v1/devices?order=slowest": 404, "/v1//devices?order=slowest": 404, "/v1/metrics/../devices?order=slowest": 404,
		"*": 400, "http://u@x/healthz": 400, "http:///healthz": 400, "ftp://x/healthz": 400, "/healthz#x": 400, "/healthz%": 400,
	} {
		a, body := raw(t, s, "GET "+target+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n")
		if a.StatusCode != want {
			t.Errorf("%s: %s, want %d: %s", target, a.Status, want, body)
		}
		// Without the token nothing but the health is told.
		a, _ = raw(t, s, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if without := a.StatusCode; want == 200 && strings.Contains(target, "ealthz") && without != 200 || want == 400 && without != 400 || want == 404 && without != 401 && without != 429 {
			t.Errorf("%s without the token: %s", target, a.Status)
		}
	}
}

// TestParameters: on each route, what is not known, or is there twice, is refused by its name.
func TestParameters(t *testing.T) {
	s := start(t, echo{}, nil)
	for i := range routes {
		r := &routes[i]
		path := strings.ReplaceAll("/"+strings.Join(r.path, "/"), anyID, "d")
		send := func(query string) (*http.Response, string) {
			t.Helper()
			body := ""
			if r.methods[0] == "POST" {
				body = "1"
			}
			return raw(t, s, r.methods[0]+" "+path+"?"+query+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Type: application/json\r\nContent-Length: "+
				string('0'+rune(len(body)))+"\r\n\r\n"+body)
		}
		for query, name := range map[string]string{
			"tll=10m": "tll", "TTL=10m": "TTL", "ttl%20=10m": "ttl ", "x": "x", "=1": "", "wait[]=1s": "wait[]", "ttl;wait=1s": "ttl;wait", "%74tl+=1m": "ttl ",
			"order%00=slowest": `order\x00`,
		} {
			if a, body := send(query); a.StatusCode != 400 || !strings.Contains(body, `"reason":"unknown_parameter"`) || !strings.Contains(body, `parameter \"`+strings.ReplaceAll(name, `\`, `\\`)+`\"`) {
				t.Errorf("%s?%s: %s %s", path, query, a.Status, body)
			}
		}
		good := map[string]string{"ttl": "1m", "wait": "0s", "order": "slowest", "limit": "1"}
		for _, name := range r.parameters {
			value, ok := good[name]
			if !ok {
				t.Fatalf("no value for %s", name)
			}
			for _, query := range []string{name + "=" + value + "&" + name + "=" + value, name + "=" + value + "&%" + hexOf(name[0]) + name[1:] + "=" + value} {
				if a, body := send(query); a.StatusCode != 400 || !strings.Contains(body, `"reason":"repeated_parameter"`) || !strings.Contains(body, `\"`+name+`\"`) {
					t.Errorf("%s?%s: %s %s", path, query, a.Status, body)
				}
			}
			if a, body := send(name + "=%zz"); a.StatusCode != 400 || !strings.Contains(body, `"bad_request"`) {
				t.Errorf("%s?%s=%%zz: %s %s", path, name, a.Status, body)
			}
		}
		if slices.Contains(r.methods, "GET") {
			a, body := raw(t, s, "GET "+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Length: 11\r\n\r\n{\"limit\":5}")
			if a.StatusCode != 400 || !strings.Contains(body, "no body") {
				t.Errorf("GET %s with a body: %s %s", path, a.Status, body)
			}
		}
	}
}

func hexOf(c byte) string { return string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15]) }
