package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/secret"
)

// The functions of this file bind a field to the way its setting is read. at is the field.

func directory(at *string, byDefault string) value {
	return value{
		field: at, kind: "path", byDefault: strconv.Quote(byDefault),
		read: func(d *document, key string) { *at = d.path(key, byDefault) },
	}
}

// optionalPath is a path that may be "".
func optionalPath(at *string, example string) value {
	return value{
		field: at, kind: "path", byDefault: `""`,
		read: func(d *document, key string) {
			if path, ok := d.text(key, example); ok && path != "" {
				*at = d.absolute(path)
			}
		},
	}
}

func duration(at *time.Duration, byDefault, least, most time.Duration) value {
	return value{
		field: at, kind: "duration", byDefault: strconv.Quote(Short(byDefault)), limits: Short(least) + " to " + Short(most),
		read: func(d *document, key string) { *at = d.duration(key, byDefault, least, most) },
	}
}

// durationOrAlways is a duration for which "always" stands for 0.
func durationOrAlways(at *time.Duration, byDefault, least, most time.Duration) value {
	v := duration(at, byDefault, least, most)
	v.kind = "duration, or `\"always\"`"
	v.read = func(d *document, key string) {
		if always, _ := d.lookup(key); always != "always" {
			*at = d.duration(key, byDefault, least, most)
		}
	}
	return v
}

// integer is an integer that counts units.
func integer(at *int, units string, byDefault, least, most int64) value {
	return value{
		field: at, kind: "integer, " + units, byDefault: strconv.FormatInt(byDefault, 10), limits: fmt.Sprintf("%d to %d", least, most),
		read: func(d *document, key string) { *at = int(d.integer(key, byDefault, least, most)) },
	}
}

// number is an integer or a fraction, of units.
func number(at *float64, units string, byDefault, least, most float64) value {
	return value{
		field: at, kind: "number, " + units, byDefault: plain(byDefault), limits: plain(least) + " to " + plain(most),
		read: func(d *document, key string) { *at = d.number(key, byDefault, least, most) },
	}
}

func size[T int | int64](at *T, byDefault, least, most int64) value {
	v := value{
		field: at, kind: "size", byDefault: sizeText(byDefault), limits: sizeText(least) + " to " + sizeText(most),
		read: func(d *document, key string) { *at = T(d.size(key, byDefault, least, most)) },
	}
	if v.byDefault != strconv.FormatInt(byDefault, 10) {
		v.byDefault = strconv.Quote(v.byDefault)
	}
	return v
}

func boolean(at *bool, byDefault bool) value {
	return value{
		field: at, kind: "`true`, `false`", byDefault: strconv.FormatBool(byDefault),
		read: func(d *document, key string) { *at = d.boolean(key, byDefault) },
	}
}

// choice is one of several words, of which the first is the default.
func choice(at *string, words ...string) value {
	return value{
		field: at, kind: "`\"" + strings.Join(words, "\"`, `\"") + "\"`", byDefault: strconv.Quote(words[0]),
		read: func(d *document, key string) { *at = d.choice(key, words...) },
	}
}

// topicFilters are the gated topic filters.
func topicFilters(at *[]string, byDefault ...string) value {
	return value{
		field: at, kind: "list of topic filters", byDefault: fmt.Sprintf("%q", byDefault), limits: fmt.Sprintf("1 to %d", MaxTopics),
		read: func(d *document, key string) { *at = d.filters(key, byDefault...) },
	}
}

// deviceTopic is a topic in which one level is DeviceID.
func deviceTopic(at *string, byDefault string) value {
	return value{
		field: at, kind: "topic in which one level is `" + DeviceID + "`", byDefault: strconv.Quote(byDefault),
		read: func(d *document, key string) { *at = d.deviceTopic(key, byDefault, false) },
	}
}

// optionalDeviceTopic is a deviceTopic, or "".
func optionalDeviceTopic(at *string, byDefault string) value {
	v := deviceTopic(at, byDefault)
	v.kind += ", or `\"\"`"
	v.read = func(d *document, key string) { *at = d.deviceTopic(key, byDefault, true) }
	return v
}

func commonNames(at *[]string) value {
	return value{
		field: at, kind: "list of common names", byDefault: "[]", limits: fmt.Sprintf("at most %d, each of 1 to %d bytes", maxCertificates, maxCommonName),
		read: func(d *document, key string) { *at = d.commonNames(key) },
	}
}

func statuses(at *[]int) value {
	return value{
		field: at, kind: "list of integers", byDefault: "[]", limits: fmt.Sprintf("300 to 599, at most %d", maxFatalStatuses),
		read: func(d *document, key string) { *at = d.statuses(key) },
	}
}

func backendURL(at *string, byDefault string) value {
	return value{
		field: at, kind: "URL", byDefault: strconv.Quote(byDefault), limits: "http or https, at most 2048 bytes",
		read: func(d *document, key string) { *at, _ = d.url(key, byDefault) },
	}
}

func hostPort(at *string) value {
	return value{
		field: at, kind: "host:port", byDefault: `""`,
		read: func(d *document, key string) { *at = d.listen(key) },
	}
}

func secretFile(at *secret.Secret) value {
	return value{
		field: at, kind: "file that holds a secret", byDefault: `""`,
		read: func(d *document, key string) { *at = d.secret(key) },
	}
}

func commandKeys(at **commandkey.Set) value {
	return value{
		field: at, kind: "path, TOML; other users may have no access", byDefault: `""`,
		read:  func(d *document, key string) { *at = d.commandKeys(key) },
		equal: func(a, b any) bool { return (*a.(**commandkey.Set)).Equal(*b.(**commandkey.Set)) },
	}
}

func issuerFiles(at *[][]byte) value {
	return value{
		field: at, kind: "list of files, PEM", byDefault: "[]", limits: fmt.Sprintf("at most %d files, %d certificates", maxIssuerFiles, maxIssuers),
		read: func(d *document, key string) { *at = d.issuers(key) },
	}
}

// certificateFile is the file of a certificate, or of its key: they are read together, and compared by the certificate, since a
// private key belongs to its certificate.
func certificateFile(at **tls.Config) value {
	certificates := func(field any) []tls.Certificate {
		if c := *field.(**tls.Config); c != nil {
			return c.Certificates
		}
		return nil
	}
	return value{field: at, kind: "path, PEM", byDefault: `""`, equal: func(a, b any) bool {
		return slices.EqualFunc(certificates(a), certificates(b), func(x, y tls.Certificate) bool {
			return reflect.DeepEqual(x.Certificate, y.Certificate)
		})
	}}
}

// keyFile is the file of the private key that belongs to a certificateFile, which stands for both in comparisons.
func keyFile(at **tls.Config) value {
	v := certificateFile(at)
	v.kind = "path, PEM; other users may have no access"
	v.equal = func(a, b any) bool { return true }
	return v
}

// caFile is the file of the CAs that are trusted; without one, the system's are.
func caFile(at **tls.Config) value {
	pool := func(field any) *x509.CertPool {
		if c := *field.(**tls.Config); c != nil {
			return c.RootCAs
		}
		return nil
	}
	return value{field: at, kind: "path, PEM", byDefault: `""`, equal: func(a, b any) bool {
		x, y := pool(a), pool(b)
		return x == y || x != nil && y != nil && x.Equal(y)
	}}
}

// sizeText writes a number of bytes in the largest unit of which it is a multiple.
func sizeText(n int64) string {
	for _, unit := range []struct {
		suffix string
		bytes  int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n > 0 && n%unit.bytes == 0 {
			return strconv.FormatInt(n/unit.bytes, 10) + unit.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}
