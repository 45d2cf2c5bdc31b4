# mosquitto-bouncer. `make help` lists the targets.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
GO ?= go
export CGO_ENABLED = 1

# The ports of `make run`, and whether it ends after the tour.
PORT ?= 8883
BACKEND_PORT ?= 5000
HTTP_PORT ?= 8080
ONCE ?=
export PORT BACKEND_PORT HTTP_PORT ONCE

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# -trimpath and the empty build id make the same sources give the same bytes. The version script keeps every symbol but
# the plugin's three entry points private.
GOBUILD = $(GO) build -trimpath -buildvcs=false
EXPORTS = -Wl,--version-script=$(CURDIR)/cgo/exports.map
SOFLAGS = -buildmode=c-shared -ldflags='-s -w -buildid= -extldflags "$(EXPORTS)"'

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: deps-run build ## the tour: broker, plugin, backend, a sensor and an attacker (ONCE=1: end after it; PORT, BACKEND_PORT, HTTP_PORT)
	@scripts/run

.PHONY: test
test: deps-test check build build/test/mosquitto_bouncer.so ## vet, unit tests, and integration tests on a real broker
	$(GO) test -timeout 20m ./plugin/... ./cmd/... ./device/...
	@$(MAKE) --no-print-directory test-device
	$(GO) test -timeout 20m -count=1 $$($(GO) list ./test/... | grep -v /outage)
	@scripts/test-docker --if-available trixie sid
	$(GO) test -timeout 10m -count=1 -v ./test/outage

.PHONY: test-device
test-device: deps-test ## the libraries for devices: C on the host and on an emulated Cortex-M, Python, JavaScript
	@scripts/test-device-c
	@scripts/test-device-python
	@scripts/test-device-js

.PHONY: quick
quick: build/test/mosquitto_bouncer.so ## vet, unit tests without their long parts, and one test of the gate on a real broker
	$(GO) vet ./...
	$(GO) test -short -timeout 5m ./plugin/... ./cmd/... ./device/... ./test/house
	$(GO) test -timeout 5m -run 'TestEveryReason$$' ./test

.PHONY: house
house: ## fields and methods of the Gateway, files and lines of each package, the largest files
	@$(GO) run ./test/house

.PHONY: test-docker
test-docker: deps-test build build/test/mosquitto_bouncer.so ## the integration tests on the brokers of Debian 12, 13 and sid, in containers
	@scripts/test-docker

.PHONY: deb
deb: ## the Debian packages, amd64 and arm64, with a bill of materials, into build/deb (in a container, reproducibly)
	@scripts/deb

.PHONY: test-deb
test-deb: ## the package in fresh containers of each release: gate, upgrade, purge, together with dynamic security
	@scripts/test-deb

.PHONY: test-outage
test-outage: build ## broker and backend in containers: the network cut, the broker stopped, restarted with its volume (RELEASE=bookworm)
	DOCKER=required $(GO) test -timeout 10m -count=1 -v ./test/outage

.PHONY: test-fleet
test-fleet: deps-test build build/test/mosquitto_bouncer.so ## a gateway with three NATS servers: killed, hung, full, mismatched (a module of its own)
	cd test/fleet && GOTOOLCHAIN=local $(GO) vet ./... && GOTOOLCHAIN=local $(GO) test -timeout 10m -count=1 ./...

.PHONY: bench-fleet
bench-fleet: deps-test build ## PUBACK with NATS up, hung and down, and the rate of one gateway into a stream of three replicas
	cd test/fleet && GOTOOLCHAIN=local BOUNCER_SO=$(CURDIR)/build/mosquitto_bouncer.so $(GO) test -run '^$$' -bench . -benchtime 3x -timeout 20m

.PHONY: base-images
base-images: ## the Docker images debian:*-slim: pulled, or built where no registry answers
	@scripts/base-image

.PHONY: build
build: deps-build build/mosquitto_bouncer.so build/bouncerctl build/bouncer-sim ## the library and the commands, into build/

# Go decides itself what is out of date.
.PHONY: build/mosquitto_bouncer.so build/test/mosquitto_bouncer.so build/bouncerctl build/bouncer-sim

build/mosquitto_bouncer.so:
	@mkdir -p $(@D)
	$(GOBUILD) $(SOFLAGS) -o $@ ./cgo
	@rm -f $(@:.so=.h)

build/test/mosquitto_bouncer.so: # with the faults that tests inject
	@mkdir -p $(@D)
	$(GOBUILD) $(SOFLAGS) -tags faultinject -o $@ ./cgo
	@rm -f $(@:.so=.h)

build/bouncerctl build/bouncer-sim:
	@mkdir -p $(@D)
	$(GOBUILD) -ldflags='-s -w' -o $@ ./cmd/$(@F)

.PHONY: man
man: build/bouncerctl ## the manual pages and shell completions, into build/man and build/completion
	@mkdir -p build/completion
	build/bouncerctl manual --docs docs build/man
	@for shell in bash zsh fish; do build/bouncerctl completion $$shell >build/completion/bouncerctl.$$shell; done

# The packages whose tests hold parts of documents to the source.
DOCPARTS = $(addprefix ./,$(sort $(dir $(shell grep -rl --include='*_test.go' 'docpart\.Hold' plugin))))

.PHONY: docs
docs: ## write what documents and examples have from the source: settings, reasons, commands
	$(GO) test $(DOCPARTS) ./cmd/bouncerctl -count=1 -run 'TestReasonsInDocuments|TestDocuments|TestExamples|TestReference' -update

.PHONY: check
check: deps-build ## gofmt, go vet and staticcheck
	@test -z "$$(gofmt -l cgo cmd device plugin test)" || { echo "gofmt would change:"; gofmt -l cgo cmd device plugin test; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# Figures are in docs/performance.md. COUNT runs of each, for benchstat.
COUNT ?= 6

.PHONY: bench-verdict
bench-verdict: deps-build ## benchmarks of the verdict, the replay memory and the registry (COUNT=6)
	$(GO) test -run '^$$' -bench 'Verdict|Publish|Delivery' -benchmem -count $(COUNT) ./plugin ./plugin/gate
	$(GO) test -run 'Memory|Bytes' -bench . -benchmem -count 1 ./plugin/replay
	$(GO) test -run '^$$' -bench 'Million$$' -benchtime 1x -count 1 ./plugin/registry
	$(GO) test -run '^$$' -bench MillionEncrypted -benchtime 1x -count 1 ./plugin/registry

.PHONY: bench-broker
bench-broker: deps-test build ## the broker's CPU with the plugin against without, in turn
	BOUNCER_SO=$(CURDIR)/build/mosquitto_bouncer.so $(GO) test -run '^$$' -bench BenchmarkBroker -benchtime 15x -timeout 20m ./test/bench

.PHONY: bench-callback
bench-callback: deps-test ## how long the callbacks take inside the broker, from C entry to return
	@mkdir -p build/timed
	$(GOBUILD) $(SOFLAGS) -tags timed -o build/timed/mosquitto_bouncer.so ./cgo
	@rm -f build/timed/mosquitto_bouncer.h
	BOUNCER_TIMED_SO=$(CURDIR)/build/timed/mosquitto_bouncer.so $(GO) test -run '^$$' -bench BenchmarkCallback -benchtime 3x -timeout 20m ./test/bench

.PHONY: bench-forward
bench-forward: deps-test build ## the journal, recovery of a million messages, and delivery from devices to a backend
	$(GO) test -run '^$$' -bench 'Append|Recovery' -benchmem -count 3 ./plugin/journal
	$(GO) test -run '^$$' -bench 'BenchmarkRecovery$$' -benchtime 3x ./plugin
	$(GO) test -run '^$$' -bench 'BenchmarkOneDevice' -benchmem -count 3 ./plugin/forward/webhook
	BOUNCER_SO=$(CURDIR)/build/mosquitto_bouncer.so $(GO) test -run '^$$' -bench BenchmarkDelivery -benchtime 5x -timeout 20m ./test/bench

KILLS ?= 1000

.PHONY: torture
torture: deps-test build/test/mosquitto_bouncer.so ## kill the broker KILLS times under load, and check that nothing is lost (KILLS=1000)
	KILLS=$(KILLS) $(GO) test -run TestTorture -count=1 -timeout 60m -v ./test

.PHONY: bench-response
bench-response: deps-test build ## the time from PUBACK to response on an idle broker
	BOUNCER_SO=$(CURDIR)/build/mosquitto_bouncer.so $(GO) test -run '^$$' -bench BenchmarkResponse -benchtime 1000x -timeout 20m ./test/bench

.PHONY: install
install: ## install what `make build` built (PREFIX, LIBDIR and DESTDIR are honoured)
	@test -e build/mosquitto_bouncer.so -a -e build/bouncerctl || { echo "install: nothing is built yet; run make build first" >&2; exit 1; }
	install -d $(DESTDIR)$(LIBDIR) $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/doc/mosquitto-bouncer/docs
	install -m 644 build/mosquitto_bouncer.so $(DESTDIR)$(LIBDIR)/mosquitto_bouncer.so
	install -m 755 build/bouncerctl $(DESTDIR)$(PREFIX)/bin/bouncerctl
	install -m 644 mosquitto.conf.example bouncer.toml.example README.md CHANGELOG.md SECURITY.md LICENSE $(DESTDIR)$(PREFIX)/share/doc/mosquitto-bouncer/
	install -m 644 docs/*.md docs/*.yaml $(DESTDIR)$(PREFIX)/share/doc/mosquitto-bouncer/docs/
	install -D -m 644 device/README.md $(DESTDIR)$(PREFIX)/share/doc/mosquitto-bouncer/device/README.md
	@set -e; share=$(DESTDIR)$(PREFIX)/share; pages=$$(mktemp -d); trap 'rm -rf $$pages' EXIT; build/bouncerctl manual --docs docs $$pages; \
	for section in 1 5 8; do install -d $$share/man/man$$section; install -m 644 $$pages/*.$$section $$share/man/man$$section/; done; \
	install -d $$share/bash-completion/completions $$share/zsh/site-functions $$share/fish/vendor_completions.d; \
	build/bouncerctl completion bash >$$share/bash-completion/completions/bouncerctl; \
	build/bouncerctl completion zsh >$$share/zsh/site-functions/_bouncerctl; \
	build/bouncerctl completion fish >$$share/fish/vendor_completions.d/bouncerctl.fish

.PHONY: clean
clean: ## remove build/
	rm -rf build

.PHONY: deps-build deps-run deps-test
deps-build deps-run deps-test:
	@scripts/install-deps $(@:deps-%=%)
