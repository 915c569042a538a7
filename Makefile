# meridian: `make run` to see it work, `make test` to check it. Both install what is missing or say what to install.

CARGO ?= cargo
TOOLS := target/tools
# Says what no proxy can promise over HTTP/1.1, and so fails: kept for the day that something can be done about it.
NOT_YET := bytes_that_come_right_after_an_answer_are_nobodys_answer
FUZZ_TARGETS := request_head response_head chunked_body exchange cookie proxy_header \
	forwarding path config geofeed mmdb
FUZZ := RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir tests/fuzz -s none
FUZZ_SECONDS ?= 60
FUZZ_KEPT_BYTES ?= 512
SOAK_MINUTES ?= 60

.PHONY: audit fuzz-keep soak compare-tls setup-tests help run demo drill build test test-all lint bench fuzz compare geoip setup clean release-pgo compare-pgo instructions

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make run        meridian with embedded data and three demo regions on loopback; prints what to try
run: setup
	$(CARGO) build --locked
	target/debug/meridian demo

## make demo       half a minute: 70/30 traffic, a region killed, its return, as a live table
demo: setup
	$(CARGO) build --locked
	target/debug/meridian demo --play

## make drill      every fault, beside nginx, HAProxy and Envoy (which it installs), an hour; see docs/drill.md
drill: setup
	$(CARGO) build --locked
	envoy=$$(python3 benches/compare/install.py) && target/debug/meridian drill --against nginx,haproxy,envoy --envoy "$$envoy" \
		--runs 3 --json target/drill.json --svg target/drill.svg

## make build      the binary for production: target/release/meridian
build: setup
	$(CARGO) build --locked --release

## make release-pgo  the same, laid out by a profile of its own work: target/pgo/*/release/meridian, in half an hour on two cores
release-pgo: setup
	CARGO="$(CARGO)" sh benches/pgo.sh

## make test       the tests
test: setup-tests
	$(CARGO) test --locked

## make test-all   the tests and the long ones, more random schedules, medians of three for each fault, and each fuzz target for a minute; an hour more
test-all:
	@sh tests/setup.sh all
	TIMELINE_SCHEDULES=100000 FAILOVER_RUNS=3 $(CARGO) test --locked -- --include-ignored --skip $(NOT_YET)
	$(MAKE) fuzz

## make lint       formatting, lints, licences and sources of the dependencies
lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) deny --locked check bans licenses sources

## make bench      the benches (Criterion)
bench: setup
	$(CARGO) bench --locked

## make instructions  instructions of a request in the engine, by valgrind, held against benches/instructions.tsv
instructions: setup
	CARGO="$(CARGO)" sh benches/instructions.sh

## make fuzz       each fuzz target for FUZZ_SECONDS (60); see tests/fuzz/README.md
fuzz: setup
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --version 0.13.2 --locked --debug
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p tests/fuzz/corpus/$$target; \
		tar -xzf tests/fuzz/kept/$$target.tar.gz -C tests/fuzz/corpus/$$target; \
		$(FUZZ) $$target \
			tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS); \
	done

## make fuzz-keep  keeps of what `make fuzz` found one small input for each place that it reaches and seeds do not: tests/fuzz/kept
fuzz-keep:
	set -e; for target in $(FUZZ_TARGETS); do \
		least=target/fuzz/$$target; rm -rf $$least; mkdir -p $$least; cp tests/fuzz/seeds/$$target/* $$least; \
		$(FUZZ) $$target \
			$$least tests/fuzz/corpus/$$target -- -merge=1 -use_counters=0 -max_len=$(FUZZ_KEPT_BYTES); \
		for seed in tests/fuzz/seeds/$$target/*; do rm -f $$least/$$(basename $$seed); done; \
		tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C $$least -czf tests/fuzz/kept/$$target.tar.gz .; \
	done

## make audit      the dependencies against the RustSec advisories, by cargo-audit (CI asks the same database by cargo-deny)
audit: setup
	$(CARGO) audit --version >/dev/null 2>&1 || $(CARGO) install cargo-audit --version 0.22.2 --locked --debug
	$(CARGO) audit --deny warnings
	$(CARGO) audit --deny warnings --file tests/fuzz/Cargo.lock

## make compare    beside nginx, HAProxy and Envoy, ten minutes; writes docs/compare.md, see benches/compare/README.md
compare: build
	CARGO="$(CARGO)" python3 benches/compare/compare.py --install --two-threads --markdown docs/compare.md

## make compare-pgo  the same with what `make release-pgo` makes, the usual build beside it; writes docs/compare.md
compare-pgo: build release-pgo
	CARGO="$(CARGO)" python3 benches/compare/compare.py --install --two-threads --markdown docs/compare.md \
		--meridian "meridian=$$(ls target/pgo/*/release/meridian)" --meridian unprofiled=target/release/meridian

## make compare-tls  TLS and HTTP/2 from clients beside nginx and HAProxy, a few minutes
compare-tls: build
	CARGO="$(CARGO)" python3 benches/compare/secured.py --install

## make soak       an hour (SOAK_MINUTES) of mixed load, 30,000 idle connections, 2,000 new ones a second: what it holds on to; writes docs/soak.md
soak: build
	python3 benches/soak.py --minutes $(SOAK_MINUTES) --markdown docs/soak.md

## make geoip      rebuilds geoip/builtin.mmdb.zst from its source package
geoip:
	python3 -m venv target/geoip-venv
	target/geoip-venv/bin/pip install -q -r geoip/requirements.txt
	target/geoip-venv/bin/python geoip/build.py

# What a build needs besides Rust: a C compiler and cmake (zlib-ng and zstd are built from source).
setup:
	@sh tests/setup.sh

# What the tests need beside that: curl and openssl.
setup-tests:
	@sh tests/setup.sh tests
