package registry

import "iter"

// Serial returns the serial of the registered device with this id. Like Lookup it takes no lock.
func (r *Registry) Serial(id []byte) (serial uint32, registered bool) {
	if d := r.Lookup(id); d != nil {
		return d.Serial, true
	}
	return 0, false
}

// Serials returns a number that is greater than the serial of every registered device.
func (r *Registry) Serials() uint32 { return r.current.Load().serials }

// IDs yields the ids of the registered devices, as they are when the iteration begins, and their serials.
func (r *Registry) IDs() iter.Seq2[string, uint32] {
	return func(yield func(string, uint32) bool) {
		for d := range r.current.Load().all() {
			if !yield(d.ID, d.Serial) {
				return
			}
		}
	}
}

// Removed yields the ids of the devices that were registered since Open and no longer are, as WasRegistered reports them.
func (r *Registry) Removed() iter.Seq[string] {
	return func(yield func(string) bool) {
		gone := r.gone.Load()
		if gone == nil {
			return
		}
		for id := range *gone {
			if !yield(id) {
				return
			}
		}
	}
}
