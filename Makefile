# The two commands that matter: `make demo` and `make test`. Both set up everything they need.
.DEFAULT_GOAL := help
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE = 1

help:             ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:            ## make .venv from the lock file
	@bash dev/setup.sh

demo: setup       ## train two stages on a real Kubernetes, with faults, and print what came out
	@$(PY) -m dev.demo

test: setup       ## everything: style, types, layers, unit, control plane, cluster
	@bash dev/test.sh

lint: setup       ## style, types and layers
	@bash dev/test.sh lint

unit: setup       ## unit tests
	@bash dev/test.sh unit

test-full: setup  ## every case of what the unit tests only sample
	@bash dev/test.sh full

generate: setup   ## write the CRD, the dashboards and the rules from code
	@$(PY) -m skywork_operator.api.crd charts/skywork-operator/crd.yaml manifests/crd/skyworkruns.yaml
	@$(PY) -m dev.monitoring

bench-data: setup ## order, streaming and preparation, beside mosaicml-streaming and the bare tokenizer
	@$(PY) -m dev.bench data

bench-checkpoint: setup ## the stall of a save and a start on another world, beside DeepSpeed's own
	@$(PY) -m dev.bench checkpoint

bench-train: setup ## tokens/s, memory and MFU beside bare torch and FSDP2; on a GPU where there is one
	@$(PY) -m dev.bench train

bench-operator: setup ## runs brought to training and their cost, beside Kubeflow's training-operator
	@$(PY) -m dev.bench operator

bench-monitoring: setup ## what watching training costs it
	@$(PY) -m dev.bench monitoring

bench-recovery: setup ## from a kill to the next step, beside torchrun elastic; steps wasted; on the development cluster
	@$(PY) -m dev.bench recovery

SEED ?= 1
MINUTES ?= 30
chaos: setup      ## faults by dice on the development cluster; make chaos SEED=7 MINUTES=30
	@$(PY) -m dev.chaos --seed $(SEED) --minutes $(MINUTES)

cluster-up: setup     ## build (once) and boot the development cluster
	@$(PY) -m dev.cluster up

cluster-down: setup   ## stop it and remove every trace
	@$(PY) -m dev.cluster down

cluster-status: setup ## what runs, and where the kubeconfig is
	@$(PY) -m dev.cluster status

.PHONY: help setup demo test lint unit test-full generate bench-data bench-checkpoint bench-train bench-operator bench-recovery bench-monitoring chaos cluster-up cluster-down cluster-status
