package webhook

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// A success that breaks off within its body cannot be read, however the connection ended: it is not sent again for days.
func TestBrokenBody(t *testing.T) {
	for _, head := range []string{"Content-Length: 10", "Transfer-Encoding: chunked", "Server: x"} {
		for _, end := range []error{syscall.ECONNRESET, io.ErrUnexpectedEOF} {
			body := "abc"
			if strings.HasPrefix(head, "Transfer") {
				body = "a\r\nabc"
			}
			r := bufio.NewReader(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n"+head+"\r\n\r\n"+body), iotest.ErrReader(end)))
			var a answer
			err := a.read(r)
			got := reply{status: a.status, err: err}
			if got.describe(DefaultTimeout); !got.misread || !errors.Is(err, end) && !errors.Is(err, io.ErrUnexpectedEOF) || a.reusable {
				t.Errorf("%s, %v: %v, %+v", head, end, err, got)
			}
		}
	}
}
