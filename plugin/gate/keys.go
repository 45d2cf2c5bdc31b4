package gate

import (
	"time"

	"mosquitto-bouncer/plugin/envelope"
)

// To verify the signature of a public key takes some 60 to 80 µs of the broker's thread, a hundred times as long as an HMAC, and
// a bad one twice that for each of up to four keys.
// Who has the certificate of such a device, and not the key that signs, could spend that time with bad signatures. So
// before a signature is verified:
//
//   - Of one device, after [publish] max_bad_signatures in a minute of the clock, one signature a second is verified.
//   - Of all devices together, verifications that fail take a tenth of the thread: failed ones are paid from a budget of
//     time, which fills by a tenth of the time that passes. The second half of it is for devices of which none has failed
//     in this minute, so that those of a thief do not shut out the others: at 100 µs, his share of the budget is 1,000 signatures
//     at once, and then 1,000 a second of all the certificates that he has.
//
// What is not verified is refused as rate_limited. A signature that is good costs the budget nothing: [publish] rate bounds
// those. Retained messages, which subscribers ask for, have a budget of their own. The other way, to bound all verifications and not only those that fail, would have a thief stop every device.
//
// What a thief of a certificate achieves is to slow down its device: while he keeps failing in its name, it has one chance a
// second, which he can take. Disable the device, or pin a new certificate.
const (
	keyShare  = 10
	keyBurst  = 200 * time.Millisecond
	keyShared = keyBurst / 2 // of which only devices without failures have the rest
)

// keyBudget is the time that failed verifications of public keys may take.
type keyBudget struct {
	maxBad int // of a device in a minute, before it is verified less often; 0: any number
	spent  time.Duration
	filled time.Time // when spent was reduced last
}

// keyFailures are a device's.
type keyFailures struct {
	minute int64 // since 1970
	count  int
	last   time.Time // when a signature was verified last
}

// verify reports whether the envelope of a device with public keys is signed with one of them; or that it was not verified.
// f are the failures that count against it.
func (b *keyBudget) verify(d *device, f *keyFailures, e *envelope.Envelope, now time.Time) (good, limited bool) {
	if minute := now.Unix() / 60; minute != f.minute {
		f.minute, f.count = minute, 0
	}
	if since := now.Sub(b.filled); since > 0 {
		b.spent, b.filled = max(0, b.spent-since/keyShare), now
	} else if since < -time.Second { // the clock was set back
		b.filled = now
	}
	budget := keyBurst
	if f.count > 0 {
		budget = keyShared
	}
	if b.spent >= budget {
		return false, true
	}
	if b.maxBad > 0 && f.count >= b.maxBad {
		if since := now.Sub(f.last); since >= 0 && since < time.Second {
			return false, true
		}
	}
	f.last = now
	began := time.Now()
	if d.signed(e) {
		return true, false
	}
	f.count++
	b.charge(time.Since(began))
	return false, false
}

// charge takes a failed verification from the budget; not for more than all of it, in case that the process stood still
// meanwhile: all these devices would be refused for ten times as long.
func (b *keyBudget) charge(took time.Duration) { b.spent += min(took, keyBurst) }

// signed reports whether an envelope is signed by its device; or, of one with public keys, that it was not verified.
func (c *circumstances) signed(d *device, e *envelope.Envelope) (good, limited bool) {
	if d.failures == nil {
		return d.signed(e), false
	}
	return c.keys.verify(d, d.failures, e, c.now)
}
