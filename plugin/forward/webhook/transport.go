package webhook

import (
	"bufio"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	readBufferSize  = 4 << 10
	writeBufferSize = 4 << 10 // a usual message fits, headers and all
	// parting is how long an answer is waited for that says why the backend has stopped reading.
	parting = 100 * time.Millisecond
)

// errEarly is the error of a request that was not written to its end, though the backend says that it has it.
var errEarly = errors.New("backend answered with success before it had the whole request, and read no further")

// transport is what fasthttp's client does with a connection: it writes the request and reads the answer, as
// fasthttp's own does, but lets an answer be that of its own request only, and reads what curl reads.
type transport struct {
	client *client
	idle   sync.Pool // of *incoming
}

// incoming is what an answer is read with.
type incoming struct {
	reader *bufio.Reader
	answer answer
}

// RoundTrip is fasthttp.RoundTripper's. It fills in of resp what exchange.do needs: the status, the body, and some
// headers. The error is a *failure, or why there is no connection.
func (t *transport) RoundTrip(hc *fasthttp.HostClient, req *fasthttp.Request, resp *fasthttp.Response) (retry bool, err error) {
	deadline := time.Now().Add(req.GetTimeOut())
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false, fasthttp.ErrTimeout
		}
		cc, err := hc.AcquireConn(left, false)
		if err != nil {
			return false, err
		}
		c, ok := cc.Conn().(*conn)
		if !ok {
			hc.CloseConn(cc)
			return false, errors.New("internal error: a connection of unknown kind")
		}
		used := c.used
		if err := c.ready(t.client.credentials.Load(), deadline); err != nil {
			hc.CloseConn(cc)
			if used || err == errAged {
				continue // nothing was sent: on another connection it is as good as the first time
			}
			return true, &failure{err: c.explain(err)}
		}
		status, again, err := t.exchange(c, hc, req, resp)
		if err == nil && again {
			hc.ReleaseConn(cc)
			return false, nil
		}
		hc.CloseConn(cc)
		switch {
		case err == nil:
			return false, nil
		case used && errors.Is(err, errUnread):
			continue
		case errors.Is(err, errTooLong):
			return false, err
		}
		if !used && status == 0 && t.client.wantsTLS(err) {
			return false, &failure{err: errSpeaksTLS}
		}
		return true, &failure{status, c.explain(err)}
	}
}

// failure is the error of a request that was sent.
type failure struct {
	status int // 0: there was no status line
	err    error
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// exchange sends a request and reads its answer, of which status is 0 if there was no status line. The connection may be used again if again is true.
func (t *transport) exchange(c *conn, hc *fasthttp.HostClient, req *fasthttp.Request, resp *fasthttp.Response) (status int, again bool, err error) {
	w := hc.AcquireWriter(c)
	err = req.Write(w)
	if err == nil {
		err = w.Flush()
	}
	hc.ReleaseWriter(w)
	c.used = true
	if errors.Is(err, errUnread) {
		return 0, false, err
	}

	in, _ := t.idle.Get().(*incoming)
	if in == nil {
		in = &incoming{reader: bufio.NewReaderSize(nil, readBufferSize)}
	}
	in.reader.Reset(c)
	defer func() {
		in.reader.Reset(nil)
		t.idle.Put(in)
	}()
	a := &in.answer
	if err != nil {
		if err = t.parting(c, in, err); err != nil {
			return 0, false, err
		}
		fill(resp, a)
		return a.status, false, nil
	}
	err = a.read(in.reader)
	fill(resp, a)
	return a.status, a.reusable && !c.early && in.reader.Buffered() == 0, err
}

// parting reads the answer of a backend that would not read the whole request, the writing of which failed with err. A
// refusal says more than err, and so does the alert that ends TLS; a success does not count, since not everything was sent.
func (t *transport) parting(c *conn, in *incoming, err error) error {
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) && !isTimeout(err) {
		return err
	}
	if c.SetReadDeadline(time.Now().Add(parting)) != nil {
		return err
	}
	switch why := in.answer.read(in.reader); {
	case isAlert(why):
		return why
	case why != nil:
		return err
	case in.answer.status < 300:
		return errEarly
	}
	return nil
}

// fill hands an answer over to fasthttp.
func fill(resp *fasthttp.Response, a *answer) {
	resp.SetStatusCode(a.status)
	resp.SetBody(a.body)
	resp.Header.SetNoDefaultContentType(true)
	resp.Header.SetContentTypeBytes(a.mediaType)
	resp.Header.SetContentEncodingBytes(a.coding)
	if len(a.retryAfter) > 0 {
		resp.Header.SetBytesV(fasthttp.HeaderRetryAfter, a.retryAfter)
	}
}
