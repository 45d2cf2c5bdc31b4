package registry

import (
	"errors"
	"math"
)

// number gives the devices of a delta their serials, and returns how many are new to the snapshot. A device that comes
// back after a removal has the serial it had, so that what others keep by serial outlives the removal.
func (r *Registry) number(before *snapshot, d *delta) (added int, err error) {
	for _, device := range d.put {
		if known := before.lookup([]byte(device.ID)); known != nil {
			device.Serial = known.Serial
			continue
		}
		added++
		if serial, ok := r.removed[device.ID]; ok {
			device.Serial = serial
			delete(r.removed, device.ID)
			continue
		}
		if serial, ok := r.reserved[device.ID]; ok {
			device.Serial = serial
			delete(r.reserved, device.ID)
			continue
		}
		if r.serials == math.MaxUint32 {
			return 0, errSerials
		}
		device.Serial = r.serials
		r.serials++
	}
	for _, device := range d.drop {
		r.removed[device.ID] = device.Serial
	}
	return added, nil
}

var errSerials = errors.New("more than 4294967295 different device ids since the start; restart the broker")

// Reserve returns the serial of the device with this id, as it is or as it will be: one that is not registered has it
// when it comes. It is for what is known of devices from before Open.
func (r *Registry) Reserve(id string) (uint32, error) {
	r.numbering.Lock()
	defer r.numbering.Unlock()
	if d := r.current.Load().lookup([]byte(id)); d != nil {
		return d.Serial, nil
	}
	if serial, ok := r.removed[id]; ok {
		return serial, nil
	}
	serial, ok := r.reserved[id]
	if ok {
		return serial, nil
	}
	if r.serials == math.MaxUint32 {
		return 0, errSerials
	}
	if r.reserved == nil {
		r.reserved = make(map[string]uint32)
	}
	serial = r.serials
	r.reserved[id] = serial
	r.serials++
	return serial, nil
}
