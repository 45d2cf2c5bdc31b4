# mosquitto with the plugin and bouncerctl, on Debian 12. The base image is the registry's, or scripts/base-image's where
# none can be reached. Targets: runtime (the last), and demo, which has bouncer-sim as well.
#
#   docker build -t mosquitto-bouncer .
#   docker run --read-only --init -v bouncer:/srv/bouncer -p 8883:8883 mosquitto-bouncer
#
# /srv/bouncer is what `bouncerctl init --dir /srv/bouncer` makes, registry and state included; docs/packaging.md.

FROM debian:bookworm-slim AS build
# Debian 12's Go is too old to know that go.mod asks for a newer one; that of its backports does, and fetches it through
# the Go module proxy, checked against Go's checksum database.
RUN echo 'deb http://deb.debian.org/debian bookworm-backports main' >/etc/apt/sources.list.d/backports.list \
	&& apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
		ca-certificates gcc libc6-dev libmosquitto-dev libssl-dev make mosquitto-dev >/dev/null \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends -t bookworm-backports golang-go >/dev/null \
	&& rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Of a network whose proxies have a certificate authority of their own, scripts/compose leaves that in build/ca. It is
# trusted here, for fetching modules, and not in the images that come out.
COPY go.mod go.sum build/c[a]/*.crt ./
RUN for ca in *.crt; do [ ! -e "$ca" ] || mv "$ca" /usr/local/share/ca-certificates/; done && update-ca-certificates >/dev/null 2>&1
ARG GOPROXY=https://proxy.golang.org,direct
ENV GOTOOLCHAIN=auto
RUN go mod download
COPY . .
RUN make build && make install DESTDIR=/out && install -m 755 build/bouncer-sim /out/usr/local/bin/

FROM debian:bookworm-slim AS base
RUN apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends mosquitto mosquitto-clients >/dev/null \
	&& rm -rf /var/lib/apt/lists/* \
	&& install -d -o mosquitto -g mosquitto -m 750 /srv/bouncer
COPY --from=build /out/usr/local/lib/mosquitto_bouncer.so /usr/local/lib/
COPY --from=build /out/usr/local/bin/bouncerctl /usr/local/bin/
COPY scripts/healthcheck /usr/local/bin/bouncer-healthcheck
USER mosquitto
WORKDIR /srv/bouncer
VOLUME /srv/bouncer
EXPOSE 8883
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["bouncer-healthcheck"]
CMD ["mosquitto", "-c", "/srv/bouncer/mosquitto.conf"]

FROM base AS demo
COPY --from=build /out/usr/local/bin/bouncer-sim /usr/local/bin/

FROM base AS runtime
