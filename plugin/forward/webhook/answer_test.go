package webhook

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// answers are what backends send, and what is to become of it. All end with the connection.
var answers = map[string]struct {
	raw      string
	status   int
	body     string
	reusable bool
	err      string // a part of it; "": none
}{
	"usual":            {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"empty":            {raw: "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", status: 202, reusable: true},
	"no reason":        {raw: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"empty reason":     {raw: "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"small letters":    {raw: "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: x\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"interim":          {raw: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"chunks":           {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\n\r\n", status: 200, body: "ok", reusable: true},
	"trailer":          {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n2 \r\nok\r\n000\r\nX: y\r\nContent-Length: 7\r\n\r\n", status: 200, body: "ok", reusable: true},
	"204":              {raw: "HTTP/1.1 204 No Content\r\n\r\n", status: 204, reusable: true},
	"304 with length":  {raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", status: 304, reusable: true},
	"keep-alive":       {raw: "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"header of 60 KiB": {raw: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 60<<10) + "\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"many headers":     {raw: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("x", 995)+"\r\n", 250) + "Content-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},

	// As curl takes it; then the connection is closed.
	"LF":                 {raw: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", status: 200, body: "ok"},
	"LF here and there":  {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok", status: 200, body: "ok"},
	"LF and chunks":      {raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n0\n\n", status: 200, body: "ok"},
	"two spaces":         {raw: "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},
	"no space":           {raw: "HTTP/1.1 200OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"http":               {raw: "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"HTTP/2":             {raw: "HTTP/2 200\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"folded":             {raw: "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\tc\r\nContent-Length:\r\n 2\r\n\r\nok", status: 200, body: "ok"},
	"folds nothing":      {raw: "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"blank before colon": {raw: "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", status: 200, body: "ok"},
	"no name":            {raw: "HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"empty line first":   {raw: "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"length twice":       {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"length as list":     {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", status: 200, body: "ok"},
	"length with plus":   {raw: "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", status: 200, body: "ok"},
	"length and chunks":  {raw: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
	"identity":           {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"identity, chunks":   {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
	"chunked twice":      {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
	"1.0 in chunks":      {raw: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
	"1.0 to the end":     {raw: "HTTP/1.0 200 OK\r\n\r\nok", status: 200, body: "ok"},
	"1.1 to the end":     {raw: "HTTP/1.1 200 OK\r\n\r\nok", status: 200, body: "ok"},
	"other coding":       {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", status: 200, body: "ok"},
	"coded chunks":       {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
	"close":              {raw: "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"1.0":                {raw: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	"204 with length":    {raw: "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", status: 204},
	"204 in chunks":      {raw: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", status: 204},
	"bare CR":            {raw: "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reusable: true},

	"too long":           {raw: "HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\nok", status: 200, err: "too long"},
	"far too long":       {raw: "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok", status: 200, err: "too long"},
	"too long to end":    {raw: "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", maxAnswer+1), status: 200, body: "*", err: "too long"},
	"too long in chunks": {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n", status: 200, err: "too long"},

	"lengths differ":  {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", status: 200, err: "more than one Content-Length"},
	"list differs":    {raw: "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", status: 200, err: "more than one Content-Length"},
	"no number":       {raw: "HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nok", status: 200, err: "Content-Length is not a number"},
	"negative":        {raw: "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", status: 200, err: "Content-Length is not a number"},
	"empty length":    {raw: "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", status: 200, err: "Content-Length is not a number"},
	"not last":        {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nok", status: 200, err: "does not end in chunked"},
	"no colon":        {raw: "HTTP/1.1 200 OK\r\nfoo\r\n\r\n", status: 200, err: "no colon"},
	"NUL":             {raw: "HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n", status: 200, err: "NUL"},
	"endless header":  {raw: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: x\r\n", 60000), status: 200, err: "longer than 300 KiB"},
	"endless line":    {raw: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 400<<10), status: 200, err: "longer than 300 KiB"},
	"endless interim": {raw: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 200), status: 100, err: "interim"},
	"endless trailer": {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: x\r\n", 60000), status: 200, err: "longer than 300 KiB"},
	"101":             {raw: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", status: 101, err: "switches"},
	"chunk, no size":  {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok", status: 200, err: "no valid size"},
	"chunk, 0x":       {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", status: 200, err: "no valid size"},
	"chunk, more":     {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n", status: 200, body: "o", err: "longer than its size"},
	"HTTP/3":          {raw: "HTTP/3.0 200 OK\r\n\r\n", err: "version"},
	"2000":            {raw: "HTTP/1.1 2000 OK\r\n\r\n", err: "three digits"},
	"20":              {raw: "HTTP/1.1 20 OK\r\n\r\n", err: "three digits"},
	"099":             {raw: "HTTP/1.1 099 OK\r\n\r\n", err: "three digits"},
	"HTTP/0.9":        {raw: "ok\n", err: "not HTTP"},
	"SSH":             {raw: "SSH-2.0-OpenSSH_9.2\r\n", err: "not HTTP"},
	"empty lines":     {raw: "\r\n\r\n\r\n\r\n", err: "empty lines"},
	"TLS alert":       {raw: "\x15\x03\x01\x00\x02\x02\x46", err: "speaks TLS"},
	"HTTP/2 frame":    {raw: "\x00\x00\x12\x04\x00\x00\x00\x00\x00", err: "HTTP/2 only"},

	"nothing":         {raw: "", err: "EOF"},
	"half a status":   {raw: "HTTP/1.1 20", err: "cut short"},
	"status alone":    {raw: "HTTP/1.1 200 OK\r\n", status: 200, err: "cut short"},
	"half a header":   {raw: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", status: 200, err: "cut short"},
	"half a body":     {raw: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", status: 200, body: "ok", err: "cut short: 2 of 9 bytes"},
	"half a chunk":    {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok", status: 200, body: "ok", err: "cut short"},
	"no last chunk":   {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", status: 200, body: "ok", err: "cut short"},
	"no end of chunk": {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", status: 200, body: "ok", err: "cut short"},
}

func TestAnswers(t *testing.T) {
	for name, test := range answers {
		t.Run(name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{
				"whole": strings.NewReader(test.raw), "in bytes": iotest.OneByteReader(strings.NewReader(test.raw)),
			} {
				var a answer
				a.body = []byte("of the one before")
				err := a.read(bufio.NewReaderSize(r, readBufferSize))
				if err == nil != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
					t.Errorf("%s: error %v, want %q", how, err, test.err)
				}
				if a.status != test.status || test.body != "*" && string(a.body) != test.body || err == nil && a.reusable != test.reusable {
					t.Errorf("%s: %d %q, reusable %v", how, a.status, a.body, a.reusable)
				}
				if err != nil && a.reusable {
					t.Errorf("%s: used again after %v", how, err)
				}
			}
		})
	}
}

func TestAnswerFields(t *testing.T) {
	for header, want := range map[string][3]string{
		"Content-Type: text/plain;  charset=x \r\n":            {"text/plain;  charset=x", "", ""},
		"Content-Type: a\r\nCONTENT-TYPE: b\r\n":               {"b", "", ""},
		"Content-Type: a\x01b\r\n":                             {"", "", ""},
		"Content-Encoding:  Identity \r\n":                     {"", "", ""},
		"Content-Encoding: identity, IDENTITY,\r\n":            {"", "", ""},
		"Content-Encoding: none\r\n":                           {"", "", ""},
		"Content-Encoding: \r\n":                               {"", "", ""},
		"content-encoding: identity, gzip\r\n":                 {"", "gzip", ""},
		"Content-Encoding: gzip\r\nContent-Encoding: br\r\n":   {"", "gzip, br", ""},
		"Retry-After:7\r\n":                                    {"", "", "7"},
		"Retry-After:\r\n  7\r\n":                              {"", "", "7"},
		"X: Retry-After: 7\r\n":                                {"", "", ""},
		"Content-Type: " + strings.Repeat("x", 9999) + "\r\n":  {"", "", ""},
		"Transfer-Encoding: gzip , chunked\r\n":                {"", "gzip", ""},
		"Transfer-Encoding: , chunked,\r\nContent-Type: x\r\n": {"x", "", ""},
	} {
		var a answer
		raw := "HTTP/1.1 503 X\r\n" + header + "\r\n"
		if strings.Contains(header, "chunked") {
			raw += "0\r\n\r\n"
		}
		if err := a.read(bufio.NewReader(strings.NewReader(raw))); err != nil {
			t.Errorf("%.60q: %v", header, err)
		}
		if got := [3]string{string(a.mediaType), string(a.coding), string(a.retryAfter)}; got != want {
			t.Errorf("%.60q: %q, want %q", header, got, want)
		}
	}
}

// A usual answer costs no memory.
func TestAnswerAllocations(t *testing.T) {
	raw := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon, 30 Sep 2024 16:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{\"status\":\"received\"}\n")
	var a answer
	from := bytes.NewReader(nil)
	r := bufio.NewReader(from)
	read := func() {
		from.Reset(raw)
		r.Reset(from)
		if err := a.read(r); err != nil || !a.reusable {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAnswer compares with net/http: an answer after which the connection would be used again ends where it ends there.
func FuzzAnswer(f *testing.F) {
	for _, test := range answers {
		if len(test.raw) < 4096 {
			f.Add([]byte(test.raw + "HTTP/1.1 200 OK\r\n"))
		}
	}
	request, _ := http.NewRequest(http.MethodPost, "http://backend/", nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a, again answer
		from := bytes.NewReader(raw)
		r := bufio.NewReaderSize(from, readBufferSize)
		err := a.read(r)
		left := from.Len() + r.Buffered()
		slow := again.read(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(raw)), readBufferSize))
		if (err == nil) != (slow == nil) || a.status != again.status || a.reusable != again.reusable || err == nil && !bytes.Equal(a.body, again.body) {
			t.Fatalf("whole: %v %d %q; in bytes: %v %d %q", err, a.status, a.body, slow, again.status, again.body)
		}
		if len(a.body) > maxAnswer || a.reusable && (err != nil || a.status < 200) {
			t.Fatalf("%+v %v", a, err)
		}
		if !a.reusable {
			return
		}
		from = bytes.NewReader(raw)
		r = bufio.NewReader(from)
		var want *http.Response
		for interim := 0; ; interim++ {
			if want, err = http.ReadResponse(r, request); err != nil || want.StatusCode >= 200 {
				break
			}
		}
		if err != nil {
			return
		}
		body, err := io.ReadAll(want.Body)
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("net/http misses the end of %q", raw)
			}
			return
		}
		if want.StatusCode != a.status || !bytes.Equal(body, a.body) || from.Len()+r.Buffered() != left {
			t.Fatalf("%d %q, %d bytes left; net/http: %d %q, %d left", a.status, a.body, left, want.StatusCode, body, from.Len()+r.Buffered())
		}
	})
}
