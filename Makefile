# `make help` lists what there is.
.DEFAULT_GOAL := help

help:            ## this list
	@sed -n 's/^\([a-z-]*\): .*##/  make \1\t/p;s/^\([a-z-]*\):  *##/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

check:           ## formatting, lints, unit and property tests; no cluster
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --locked -p strata-builder -p strata-controller

test: check      ## everything

up:              ## the test cluster (e2e/cluster), built first if it isn't
	@e2e/setup cluster
	@e2e/cluster/up.sh

down:            ## ends the test cluster and removes its state
	@e2e/cluster/down.sh

status:          ## which programs of the test cluster run
	@e2e/cluster/status.sh

.PHONY: help check test up down status
