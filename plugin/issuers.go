package plugin

import (
	"fmt"
)

// useIssuers has the broker's side hold devices' certificates to [publish] issuers. The error says why one of them is of no
// use; those that were in force stay.
func (g *Gateway) useIssuers(certificates [][]byte, where string) error {
	if !g.host.SetIssuers(certificates) {
		return fmt.Errorf("%s: OpenSSL cannot read one of the certificates, or its key; make them anew", where)
	}
	return nil
}

// warnOfIssuers says in the log, where [publish] issuers is not set, that not only the devices' own CA can issue certificates
// in the name of a device. Where all listeners trust the same file there is nothing to tell apart: the broker has verified
// every certificate by it.
func (g *Gateway) warnOfIssuers() {
	if len(g.config.Publish.Issuers) > 0 || g.brokerConf == nil {
		return
	}
	if a, b, differ := g.brokerConf.DifferentAuthorities(); differ {
		g.log.Warn("listeners trust different CAs, and each of those can issue a certificate in the name of any device; "+
			"set [publish] issuers to the certificates of the CAs that sign devices'", "one", a.String(), "other", b.String())
	}
}
