package broker

// TB is what Start needs of a testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Start runs a broker for a test. At the test's end it is stopped, unless the test has done that, and the test fails
// when the stop is not clean; a failed test shows the broker's log.
func Start(t TB, options Options) *Broker {
	t.Helper()
	b, err := New(options)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if p := b.Process(); p != nil && p.Ended() == nil {
			if err := b.Stop(); err != nil {
				t.Errorf("%v", err)
			}
		}
		if t.Failed() {
			t.Logf("the broker's log:\n%s", b.log.tail(0, 400))
		}
		if err := b.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	if err := b.Start(); err != nil {
		t.Fatalf("%v", err)
	}
	return b
}
