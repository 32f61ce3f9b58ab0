# The two commands: `make demo` (or `make demo-fast`) and `make test`.
# Both set up what the build needs first; see tools/setup.sh.

CARGO ?= cargo

.PHONY: setup demo demo-fast test

setup:
	@sh tools/setup.sh

# Everything is built under the release profile: HiGHS is compiled once per
# profile and takes minutes.
demo: setup
	$(CARGO) run --release --example demo

demo-fast: setup
	$(CARGO) run --release --example demo -- --fast

test: setup
	$(CARGO) test --release --workspace
