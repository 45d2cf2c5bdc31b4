package webhook

import "syscall"

// quickACK has the system acknowledge at once what comes next. A backend that writes header and body in two segments is
// held by Nagle's algorithm until the first is acknowledged, for which the system would wait up to 40 ms (tcp(7),
// TCP_QUICKACK). The option does not last, so it is set before each read. Where it cannot be set, all works, slower.
func quickACK(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}
