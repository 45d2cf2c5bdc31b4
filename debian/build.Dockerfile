# What `make deb` builds the packages in: Debian 12 with the build dependencies for amd64 and arm64, and lintian. Go and the
# sources are mounted, and there is no network then.
FROM debian:bookworm-slim
RUN dpkg --add-architecture arm64 && apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
		build-essential debhelper fakeroot lintian gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
		libmosquitto-dev:amd64 libssl-dev:amd64 mosquitto-dev libmosquitto-dev:arm64 libssl-dev:arm64 >/dev/null \
	&& rm -rf /var/lib/apt/lists/*
