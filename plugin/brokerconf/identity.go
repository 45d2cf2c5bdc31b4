package brokerconf

// NamesAreCertificates reports whether every client's user name is the common name of a certificate that it had to
// present: each listener demands one and takes the name from it.
func (c *Config) NamesAreCertificates() bool {
	if c.Has("port") || c.Has("bind_address") || len(c.Listeners) == 0 {
		if !c.isOn("require_certificate", NoListener) || !c.isOn("use_identity_as_username", NoListener) {
			return false
		}
	}
	for i := range c.Listeners {
		if !c.isOn("require_certificate", i) || !c.isOn("use_identity_as_username", i) {
			return false
		}
	}
	return true
}

// isOn reports whether the last line with the setting key that belongs to a listener is true.
func (c *Config) isOn(key string, listener int) (on bool) {
	for l := range c.Lines(key) {
		if l.Listener == listener {
			on = l.Value == "true" || l.Value == "1"
		}
	}
	return on
}
