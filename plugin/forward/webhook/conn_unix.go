//go:build unix

package webhook

import (
	"io"
	"syscall"
)

// peek returns how many bytes can be read, one at most, without reading them: 0 at the end of the stream. It does not
// wait; if there are none, the error is errNothing.
func peek(raw syscall.RawConn) (n int, err error) {
	var b [1]byte
	return try(raw, func(fd int) (int, error) {
		n, _, err := syscall.Recvfrom(fd, b[:], syscall.MSG_PEEK)
		return n, err
	})
}

// readNow reads what is there. It does not wait; if there is nothing, the error is errNothing.
func readNow(raw syscall.RawConn, p []byte) (n int, err error) {
	n, err = try(raw, func(fd int) (int, error) { return syscall.Read(fd, p) })
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// try calls f until no signal interrupts it.
func try(raw syscall.RawConn, f func(fd int) (int, error)) (n int, err error) {
	failed := raw.Read(func(fd uintptr) bool {
		for {
			if n, err = f(int(fd)); err != syscall.EINTR {
				return true // it is not to wait
			}
		}
	})
	switch {
	case failed != nil:
		return 0, failed
	case err == syscall.EAGAIN:
		return 0, errNothing
	case err != nil:
		return 0, err
	}
	return n, nil
}
