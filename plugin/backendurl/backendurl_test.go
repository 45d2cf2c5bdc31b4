package backendurl

import "testing"

func TestParse(t *testing.T) {
	for raw, want := range map[string]string{
		"http://localhost:5000/device/{device_id}/data": "http://localhost:5000/device/a:b/data",
		"https://h/{device_id}/x/{device_id}":           "https://h/a:b/x/a:b",
		"https://h/in?device={device_id}&v=1":           "https://h/in?device=a%3Ab&v=1",
		"https://h/in":                                  "https://h/in",
		"https://h":                                     "https://h",
		"http://[::1]:80/a%2Fb//../c":                   "http://[::1]:80/a%2Fb//../c",
		"HTTP://h/":                                     "http://h/",
		"":                                              `"" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"localhost:5000/x":                              `"localhost:5000/x" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"ftp://h/?key=s3cret":                           `"ftp://h/" does not begin with http:// or https://; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"http:///x":                                     `"http:///x" has no host; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"http://h:port/":                                `is not a URL; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"http://h:65536/":                               `"http://h:65536/" has port "65536"; use 1 to 65535`,
		"http://{device_id}.example/":                   `is not a URL; write it in full, for example "http://localhost:5000/device/{device_id}/data"`,
		"http://a,b/x":                                  `"http://a,b/x" names more than one host; name one`,
		"http://user:pass@a,b/":                         "has a user name or password in it; remove them and use backend.bearer_token_file",
		"http://user:pass@h/":                           "has a user name or password in it; remove them and use backend.bearer_token_file",
		"http://h/x#y":                                  `"http://h/x#y" has a fragment, which is never sent; remove it from the # on`,
		"http://h/x#":                                   `"http://h/x#" has a fragment, which is never sent; remove it from the # on`,
		"http://h/{device}/x":                           `"http://h/{device}/x" has an unknown placeholder; the only one is {device_id}`,
		"http://h/?d={device}":                          `"http://h/" has an unknown placeholder; the only one is {device_id}`,
		"http://h/a b":                                  `"http://h/a b" has a blank in it; remove it, or write %20`,
	} {
		target, err := Parse(raw)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = string(target.Append(nil, "a:b"))
		}
		if got != want {
			t.Errorf("%q:\n got %s\nwant %s", raw, got, want)
		}
	}
}

func TestEscapes(t *testing.T) {
	target, err := Parse("http://h/d/{device_id}/x?id={device_id}")
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"sensor_001": "http://h/d/sensor_001/x?id=sensor_001",
		"a/../b":     "http://h/d/a%2F..%2Fb/x?id=a%2F..%2Fb",
		".":          "http://h/d/%2E/x?id=.",
		"..":         "http://h/d/%2E%2E/x?id=..",
		"a?b=c&d#e":  "http://h/d/a%3Fb=c&d%23e/x?id=a%3Fb%3Dc%26d%23e",
		"a\r\nb c":   "http://h/d/a%0D%0Ab%20c/x?id=a%0D%0Ab+c",
		"é":          "http://h/d/%C3%A9/x?id=%C3%A9",
	} {
		if got := string(target.Append(nil, device)); got != want {
			t.Errorf("%q: got %s, want %s", device, got, want)
		}
	}
}

func TestWithoutQuery(t *testing.T) {
	for url, want := range map[string]string{
		"https://h/in?token=s3cret": "https://h/in?...", "https://h/in": "https://h/in", "https://h?": "https://h?...",
	} {
		if got := WithoutQuery(url); got != want {
			t.Errorf("WithoutQuery(%q) = %q", url, got)
		}
	}
}
