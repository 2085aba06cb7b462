# Every command that a person or CI runs. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The static plugin: what tests, demo and lab put into their chains is what goes onto a node.
export SLUICE_CNI := $(CURDIR)/target/plugin/sluice-cni
export SLUICE_BIN_DIR := $(CURDIR)/target/debug
# A real ztunnel in place of the stand-in: make demo ZTUNNEL=/path/to/ztunnel
export ZTUNNEL

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'


.PHONY: setup
setup: ## Install what is missing on this machine (Debian packages, the musl target)
	@ci/setup

.PHONY: build
build: plugin ## Build every program, for debugging, and the static plugin
	cargo build --workspace --bins

.PHONY: plugin
plugin: ## Build the static plugin into target/plugin, and check its size
	@ci/plugin

.PHONY: images
images: ## Build the container images into target/images as OCI archives, with no container engine
	@ci/images

.PHONY: check
check: fmt clippy unit walls deny kind-check ## All that needs no root and no namespaces

.PHONY: fmt
fmt: ## Check the layout of the sources
	cargo fmt --all --check

.PHONY: clippy
clippy: ## Lint everything; a warning is an error
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: unit
unit: ## Unit and property tests
	cargo test --workspace --lib --bins
	cargo test -p sluice-shared

.PHONY: walls
walls: ## Check who imports whom
	@ci/walls

.PHONY: deny
deny: ## Check licences, bans and sources of the dependencies
	@ci/deny

.PHONY: test
test: setup check build namespaces chart-test cluster-test ## check, all in network namespaces, the chart, the cluster (needs root, Go)
	@echo "make test: everything passed"

.PHONY: namespaces
namespaces: build ## Only the tests in network namespaces (needs root)
	cargo test --workspace --exclude sluice-shared --test '*' --no-fail-fast

.PHONY: install-test
install-test: plugin ## The installer against power cuts and everybody else who writes there; target/reports/install.json (needs root)
	cargo build -p sluice-install
	cargo test -p sluice-install
	cargo test -p sluice-e2e --test install

.PHONY: demo
demo: setup build ## Show pods, ztunnel and packets on this machine, and write target/reports/demo.json (needs root)
	$(SLUICE_BIN_DIR)/sluice-lab demo

.PHONY: lab
lab: setup build ## Open a shell in the lab (needs root)
	$(SLUICE_BIN_DIR)/sluice-lab shell

.PHONY: cluster-bin
cluster-bin: ## Build upstream Kubernetes, etcd, containerd and helm into target/cluster/bin (needs Go)
	@ci/cluster

.PHONY: manifests
manifests: ## Render install/manifests from the chart (needs Go)
	@ci/cluster helm
	@ci/manifests

.PHONY: seccomp
seccomp: build ## Trace the static programs' system calls, minutes long, and hold the chart's seccomp profile against them (needs root)
	@ci/images product
	@ci/seccomp --check

.PHONY: chart-test
chart-test: cluster-bin ## Check the chart with real helm and the API server's own code, and that install/manifests and the seccomp profile are up to date (needs Go)
	@ci/manifests --check
	@ci/seccomp --recorded
	cargo build -p sluice-agent -p sluice-install
	cargo test -p sluice-install --test chart -- --ignored

.PHONY: cluster-up
cluster-up: setup build ## Start Kubernetes on this machine, in the background (needs root, Go)
	@ci/cluster kubernetes
	$(SLUICE_BIN_DIR)/sluice-cluster up

.PHONY: cluster-down
cluster-down: ## End it; nothing of it is left
	$(SLUICE_BIN_DIR)/sluice-cluster down

.PHONY: cluster-shell
cluster-shell: ## Open a shell with kubectl ready
	$(SLUICE_BIN_DIR)/sluice-cluster shell

.PHONY: cluster-test
cluster-test: setup ## Prove on a Kubernetes of its own what Sluice does, and write target/reports/cluster.json (needs root, Go)
	@ci/side-by-side "ci/cluster kubernetes helm" "$(MAKE) build images"
	$(SLUICE_BIN_DIR)/sluice-cluster test

.PHONY: matrix
matrix: plugin ## Prove cell by cell with which primary CNIs it works: target/reports/matrix.json, docs/support-matrix.md; CELL=name for one, WAY=name for one way (needs root)
	cargo build -p sluice-agent -p sluice-e2e --bins
	@! command -v go > /dev/null || ci/cluster cni-aws cni-flannel
	target/debug/sluice-matrix run $(if $(CELL),--cell $(CELL)) $(if $(WAY),--way '$(WAY)')

.PHONY: kind
kind: images ## Check on kind clusters with kindnet, Calico, Cilium and flannel (needs Docker, kind, kubectl, helm and a network)
	@e2e/kind/run

.PHONY: kind-check
kind-check: ## Check the scripts of e2e/kind without Docker: syntax, dry runs, refusals
	@e2e/kind/check

.PHONY: fuzz
fuzz: ## Fuzz whatever parses foreign bytes, FUZZ_SECONDS (10) for each target
	@ci/fuzz

.PHONY: docs
docs: ## Write docs/config.md anew from the agent's table of keys
	cargo run --quiet -p sluice-agent -- --print-config-docs > target/config.md
	mv target/config.md docs/config.md

.PHONY: bless
bless: docs ## Take what is generated now for right (golden files, docs); then read the diff
	SLUICE_BLESS=1 cargo test --quiet -p sluice-shared --tests
	SLUICE_BLESS=1 cargo test --quiet -p sluice-agent --test admin --test doctor
	SLUICE_BLESS=1 cargo test --quiet -p sluice-e2e --lib matrix::results

.PHONY: bench
bench: setup bench-install bench-plugin ## Measure, side by side, and write target/reports/bench-*.json (needs root)

.PHONY: bench-install
bench-install: ## Rules for one pod: netlink batch, iptables-restore, one exec a rule (needs root)
	cargo bench --quiet -p sluice-agent --bench install

.PHONY: bench-plugin
bench-plugin: plugin ## Measure one ADD of the static plugin, from spawn to exit
	cargo bench --quiet -p sluice-cni --profile dev --bench add
