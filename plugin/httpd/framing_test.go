package httpd

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// post begins a request for a command, behind follows one.
const (
	post   = "POST /v1/devices/d/commands HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Type: application/json\r\n"
	behind = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
)

// misframed are requests in which two readers could find different headers, or a different end.
var misframed = map[string]string{
	"identity":                        post + "Transfer-Encoding: identity\r\n\r\n",
	"Identity, with a length":         post + "Transfer-Encoding: Identity\r\nContent-Length: 1\r\n\r\n1",
	"a length, then identity":         post + "Content-Length: 1\r\nTransfer-Encoding: identity\r\n\r\n1",
	"an empty coding":                 post + "Transfer-Encoding:\r\n\r\n",
	"gzip":                            post + "Transfer-Encoding: gzip\r\n\r\n",
	"gzip, chunked":                   post + "Transfer-Encoding: gzip, chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked, chunked":                post + "Transfer-Encoding: chunked, chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked, identity":               post + "Transfer-Encoding: chunked, identity\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked twice":                   post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked and identity":            post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"identity and chunked":            post + "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"xchunked":                        post + "Transfer-Encoding: xchunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked;x":                       post + "Transfer-Encoding: chunked;x\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"chunked behind a tab":            post + "Transfer-Encoding: \x0bchunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"in quotes":                       post + "Transfer-Encoding: \"chunked\"\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"a blank before the colon":        post + "Transfer-Encoding : chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"a blank in the name":             post + "Transfer Encoding: chunked\r\n\r\n",
	"both":                            post + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"HTTP/1.0":                        strings.Replace(post, "HTTP/1.1", "HTTP/1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"HTTP/1.2":                        strings.Replace(post, "HTTP/1.1", "HTTP/1.2", 1) + "Content-Length: 1\r\n\r\n1",
	"HTTP/2.0":                        strings.Replace(post, "HTTP/1.1", "HTTP/2.0", 1) + "Content-Length: 1\r\n\r\n1",
	"the preface of HTTP/2":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"the same length twice":           post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n1",
	"a list of lengths":               post + "Content-Length: 1, 1\r\n\r\n1",
	"+1":                              post + "Content-Length: +1\r\n\r\n1",
	"-1":                              post + "Content-Length: -1\r\n\r\n1",
	"0x1":                             post + "Content-Length: 0x1\r\n\r\n1",
	"1_0":                             post + "Content-Length: 1_0\r\n\r\n1",
	"no length":                       post + "Content-Length:\r\n\r\n1",
	"a length beyond 64 bits":         post + "Content-Length: 18446744073709551617\r\n\r\n1",
	"a chunk of 0x1":                  post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\n1\r\n0\r\n\r\n",
	"a chunk of -1":                   post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n1\r\n0\r\n\r\n",
	"a chunk of +1":                   post + "Transfer-Encoding: chunked\r\n\r\n+1\r\n1\r\n0\r\n\r\n",
	"a chunk behind a blank":          post + "Transfer-Encoding: chunked\r\n\r\n 1\r\n1\r\n0\r\n\r\n",
	"a chunk of nothing":              post + "Transfer-Encoding: chunked\r\n\r\n\r\n1\r\n0\r\n\r\n",
	"a chunk size of 17 digits":       post + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\n1\r\n0\r\n\r\n",
	"a chunk size that ends with LF":  post + "Transfer-Encoding: chunked\r\n\r\n1\n1\r\n0\r\n\r\n",
	"an extension with LF":            post + "Transfer-Encoding: chunked\r\n\r\n1;a\n1\r\n0\r\n\r\n",
	"an extension with CR":            post + "Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\n1\r\n0\r\n\r\n",
	"a chunk that is longer":          post + "Transfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n",
	"a folded header":                 post + "X: a\r\n b\r\nContent-Length: 1\r\n\r\n1",
	"a folded header with a tab":      post + "X: a\r\n\tb\r\nContent-Length: 1\r\n\r\n1",
	"a folded coding":                 post + "Transfer-Encoding:\r\n chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
	"a folded first header":           "POST /v1/devices/d/commands HTTP/1.1\r\n Host: x\r\nAuthorization: Bearer token\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1",
	"NUL":                             post + "X: a\x00b\r\nContent-Length: 1\r\n\r\n1",
	"CR in a value":                   post + "X: a\rContent-Length: 2\r\nContent-Length: 1\r\n\r\n1",
	"CR CR LF":                        post + "X: a\r\r\nContent-Length: 1\r\n\r\n1",
	"LF alone":                        post + "X: a\nContent-Length: 1\r\n\r\n1",
	"LF LF":                           post + "Content-Length: 1\n\nTransfer-Encoding: chunked\r\n\r\n1",
	"an escape in a value":            post + "X: a\x1bb\r\nContent-Length: 1\r\n\r\n1",
	"a header without a name":         post + ": a\r\nContent-Length: 1\r\n\r\n1",
	"a header without a colon":        post + "a\r\nContent-Length: 1\r\n\r\n1",
	"NUL in a name":                   post + "X\x00: a\r\nContent-Length: 1\r\n\r\n1",
	"two hosts":                       post + "Host: y\r\nContent-Length: 1\r\n\r\n1",
	"no host":                         strings.Replace(post, "Host: x\r\n", "", 1) + "Content-Length: 1\r\n\r\n1",
	"two blanks behind the method":    strings.Replace(post, "POST ", "POST  ", 1) + "Content-Length: 1\r\n\r\n1",
	"a blank in the target":           strings.Replace(post, "commands ", "commands x ", 1) + "Content-Length: 1\r\n\r\n1",
	"a tab in the target":             strings.Replace(post, "commands ", "commands\tx ", 1) + "Content-Length: 1\r\n\r\n1",
	"a method that is no token":       strings.Replace(post, "POST", "PO(ST", 1) + "Content-Length: 1\r\n\r\n1",
	"a trailer that changes the size": post + "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nContent-Length: 5\r\n\r\n",
}

// TestFraming: a request whose end, or whose headers, two readers could find in different places is refused, and its
// connection is closed: what stands behind it is never taken for another request.
func TestFraming(t *testing.T) {
	served := 0
	s := start(t, aService{send: func(NewCommand) (Command, error) {
		served++
		return Command{ID: "x", Body: []byte("1")}, nil
	}}, nil)
	for name, text := range misframed {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, text+behind); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(conn)
		a, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, err := io.ReadAll(a.Body)
		if (a.StatusCode != 400 && a.StatusCode != 501 && a.StatusCode != 505) || !a.Close || a.Header.Get("Content-Type") != "application/problem+json" || err != nil {
			t.Errorf("%s: %s, close %v: %s %v", name, a.Status, a.Close, body, err)
		}
		if rest, err := io.ReadAll(answers); err != nil || len(rest) > 0 {
			t.Errorf("%s: then came %q, %v", name, rest, err)
		}
		conn.Close()
	}
	if served != 0 {
		t.Errorf("%d were served", served)
	}
	for name, headers := range map[string]string{
		"a length":      "Content-Length: 1\r\n\r\n1",
		"chunked":       "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
		"Chunked":       "Transfer-Encoding:  Chunked\r\n\r\n001;a=b\r\n1\r\n0\r\n\r\n",
		"a trailer":     "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: y\r\n\r\n",
		"a tab":         "X:\ta\tb\r\nContent-Length: 1\r\n\r\n1",
		"Latin-1":       "X: \xe9\r\nContent-Length: 1\r\n\r\n1",
		"an empty line": "Content-Length: 1\r\nX:\r\n\r\n1",
	} {
		before := served
		closed := strings.Contains(headers, "Transfer-Encoding")
		if a, body := raw(t, s, post+headers); a.StatusCode != 202 || a.Close != closed || served != before+1 {
			t.Errorf("%s: %s %s", name, a.Status, body)
		}
	}
}

// TestNothingBehindChunks: where another reader could find the end of a body in chunks elsewhere, what stands behind it is
// not served.
func TestNothingBehindChunks(t *testing.T) {
	s := start(t, echo{}, nil)
	const post = "POST /v1/devices/d/commands HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
	const behind = "GET /v1/devices/d HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\n"
	for name, body := range map[string]string{
		"a good end":                  "1\r\n1\r\n0\r\n\r\n",
		"LF after the last chunk":     "1\r\n1\r\n0\r\n\n",
		"a trailer that ends with LF": "1\r\n1\r\n0\r\nX: y\n\n",
		"LF between trailers":         "1\r\n1\r\n0\r\nX: y\nZ: w\r\n\r\n",
		"a folded trailer":            "1\r\n1\r\n0\r\nX: y\r\n z\r\n\r\n",
		"a blank before the colon":    "1\r\n1\r\n0\r\nX : y\r\n\r\n",
		"an empty line more":          "1\r\n1\r\n0\r\n\r\n\r\n",
		"NUL in an extension":         "1;\x00\r\n1\r\n0\r\n\r\n",
		"a blank behind the size":     "1 \r\n1\r\n0\t\r\n\r\n",
		"a quoted line end":           "1;a=\"\r\n\"\r\n1\r\n0\r\n\r\n",
		"a request for a trailer":     "1\r\n1\r\n0\r\nGET /metrics HTTP/1.1\r\nX: y\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, post+body+behind); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || strings.Count(string(got), "HTTP/1.1 ") != 1 || !strings.Contains(string(got), "Connection: close\r\n") {
			t.Errorf("%s: %v %q", name, err, got)
		}
		conn.Close()
	}
}

// TestTrailersAreNoHeaders: what stands behind a body has no say.
func TestTrailersAreNoHeaders(t *testing.T) {
	var got NewCommand
	s := start(t, aService{send: func(c NewCommand) (Command, error) {
		got = c
		return Command{ID: "x", Body: []byte("1")}, nil
	}}, nil)
	const end = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nAuthorization: Bearer token\r\nIdempotency-Key: k\r\n\r\n"
	if a, _ := raw(t, s, "POST /v1/devices/d/commands HTTP/1.1\r\nHost: x\r\n"+end); a.StatusCode != 401 && a.StatusCode != 400 {
		t.Errorf("the token in a trailer: %s", a.Status)
	}
	a, body := raw(t, s, "POST /v1/devices/d/commands HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n"+end)
	if (a.StatusCode != 202 && a.StatusCode != 400) || got.Key != "" {
		t.Errorf("a key in a trailer: %s %s, key %q", a.Status, body, got.Key)
	}
}

// FuzzTarget: no target makes the reader panic, and what is read holds what was sent.
func FuzzTarget(f *testing.F) {
	for _, target := range []string{"/", "/a%2Fb?x=1", "http://x/%zz", "//", "http://", "*", "/%"} {
		f.Add([]byte(target))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		at, err := parseTarget(sent)
		if err != nil {
			return
		}
		path, _, _ := strings.Cut(string(sent), "?")
		if !strings.Contains(path, "://") && strings.Count(path, "/") != len(at.segments) {
			t.Errorf("%q: %q", sent, at.segments)
		}
		_, _ = parseQuery(at.query, []string{"a"})
		find(at.segments)
	})
}

// FuzzFraming: what is let through has no header that another reader could understand otherwise.
func FuzzFraming(f *testing.F) {
	f.Add([]byte("Transfer-Encoding: chunked\r\n"))
	f.Add([]byte("X: a\r\n b\r\n"))
	f.Fuzz(func(t *testing.T, headers []byte) {
		var h fasthttp.RequestHeader
		text := "POST / HTTP/1.1\r\nHost: x\r\n" + string(headers) + "\r\n"
		if h.Read(bufio.NewReaderSize(strings.NewReader(text), maxHeader)) != nil || framing(&h) != nil {
			return
		}
		block := string(h.RawHeaders())
		if strings.Contains(block, "\x00") || strings.Contains(strings.ReplaceAll(block, "\r\n", ""), "\n") || strings.Contains(block, "\n ") || strings.Contains(block, "\n\t") {
			t.Errorf("let through: %q", block)
		}
	})
}
