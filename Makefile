# `make help` lists what there is. Every target sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*##  */\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target what; do printf '  make %-12s %s\n' "$$target" "$$what"; done

demo:            ## from a MachineOSConfig to an operating-system image, to look at
	@e2e/demo/run

check:           ## formatting, lints, unit and property tests; no cluster
	@e2e/test check

soak:            ## a million random histories of the controller's plans; STRATA_HISTORIES is another number
	STRATA_HISTORIES=$${STRATA_HISTORIES:-1000000} cargo test --locked --release -p strata-controller --lib histories -- --nocapture

test:            ## everything: check, then the scenarios on the test cluster
	@e2e/test

bench:           ## strata-builder beside buildah and BuildKit; QUICK=1 takes 10 minutes
	@e2e/bench/run $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) $(WORKLOADS)

bench-controller: ##  the controller with 500, 1,000 and 5,000 configs, on the test cluster; CONFIGS='100 200' for others
	@e2e/bench/controller $(CONFIGS)

fuzz:            ## hostile bytes for what reads files of others, a minute for each target; SECONDS=600 for more
	@fuzz/run $(or $(SECONDS),60)

up:              ## the test cluster (e2e/cluster), built first if it isn't
	@e2e/setup cluster
	@e2e/cluster/up.sh

images: $(if $(REGISTRY),,up) ## our two images, into REGISTRY with TAG, or else into the test cluster's
	@REGISTRY='$(REGISTRY)' TAG='$(TAG)' e2e/images

install: up      ## Strata, as it is here, on the test cluster
	@REGISTRY= e2e/images
	@KUBECONFIG= e2e/install

scenario: install ## one file of e2e/tests on the test cluster (NAME=build), or all
	cargo test --locked -p strata-e2e $(addprefix --test ,$(NAME)) --no-run
	e2e/cluster/exec cargo test --locked --offline -p strata-e2e $(addprefix --test ,$(NAME))

differential:    ## what buildah and strata-builder make of e2e/differential/contexts, compared
	@e2e/setup differential
	@e2e/differential/run e2e/differential/contexts

kubectl:         ## on the test cluster: ARGS='get pods -A'
	@e2e/cluster/kubectl $(ARGS)

status:          ## which programs of the test cluster run
	@e2e/cluster/status.sh

down:            ## ends the test cluster and removes its state
	@e2e/cluster/down.sh

crds:            ## deploy/crds and deploy/crds-foreign again from the Rust types
	@e2e/setup programs
	cargo crds --out deploy/crds

clean: down      ## removes what was built in this checkout; the cache stays
	cargo clean
	rm -rf .strata

.PHONY: help demo check soak bench bench-controller fuzz test up images install scenario differential kubectl status down crds clean
