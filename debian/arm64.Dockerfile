# An arm64 Mosquitto with its libraries in /arm64, to be run by qemu's user emulation, and clients of this machine's own.
FROM debian:bookworm-slim
RUN dpkg --add-architecture arm64 && apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends qemu-user-static mosquitto-clients openssl >/dev/null \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends --download-only mosquitto:arm64 >/dev/null \
	&& for deb in /var/cache/apt/archives/*_arm64.deb; do dpkg -x "$deb" /arm64; done \
	&& adduser --system --group --quiet --no-create-home mosquitto \
	&& apt-get clean && rm -rf /var/lib/apt/lists/*
