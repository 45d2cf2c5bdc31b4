package main

// checkHTTP finds what a later version will refuse of the HTTP listener's settings.
func (k *checker) checkHTTP() {
	if why := k.toml.HTTP.TokenWarning(); why != "" {
		k.warn(k.set("http.token_file"), "http.token_file: %s", why)
	}
}
