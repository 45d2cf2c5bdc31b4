package forward

import "strconv"

// responses counts requests by the status of the response. Forwarder.mu protects it.
type responses [601]uint64

// count counts a request; status 0 is one without a response, and every status beyond 599 counts as one.
func (r *responses) count(status int) { r[min(max(status, 0), len(r)-1)]++ }

// A ResponseCount is how many requests got one status.
type ResponseCount struct {
	Status string // "200"; "none" where there was no response, "other" for what is no status of HTTP
	N      uint64
}

// Responses returns how many requests got which response since the start, by status. Those that none got are left out.
func (f *Forwarder) Responses() (counts []ResponseCount) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for status, n := range f.responses {
		if n == 0 {
			continue
		}
		name := strconv.Itoa(status)
		switch status {
		case 0:
			name = "none"
		case len(f.responses) - 1:
			name = "other"
		}
		counts = append(counts, ResponseCount{name, n})
	}
	return counts
}
