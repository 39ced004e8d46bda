# `make` alone lists the commands. Each one sets up what it needs first.
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
# Names that pyenv and the like offer for every Python need not start one: so each is tried.
PYTHON ?= $(or $(shell for name in python3 python3.11 python3.12 python3.13 python3.10; do \
  $$name -c '$(SUPPORTED)' 2> /dev/null && echo $$name && break; done),python3)
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
JOBS ?= 2
BAZEL_FLAGS := --jobs=2 --repo_env=PYTHON=$(abspath $(RUN))
export TF_CPP_MIN_LOG_LEVEL ?= $(if $(wildcard /proc/driver/nvidia/version),2,3)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart ablation study-records study compare test test-all test-serving test-clouds bazel-test lint format build-file bench-ingest bench-input bench-augment bench-step bench-own bench-serve bench-gpu setup-tpu setup-tpu-vm tpu-table lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Makes the environment $(1), with the uv of the lock in it.
define environment
@"$(PYTHON)" -c '$(SUPPORTED)' 2> /dev/null || { \
  version=$$("$(PYTHON)" -c 'import sys; print(sys.version.split()[0])' 2> /dev/null); \
  echo "Found $${version:+Python }$${version:-no Python} as '$(PYTHON)', and TensorFlow 2.20 takes Python 3.10 to 3.13:" \
  "install one of them, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
"$(PYTHON)" -m venv $(1)
$(1)/bin/python -m pip install --disable-pip-version-check --quiet --constraint requirements.txt uv
endef
# With bytecode: else, where PYTHONDONTWRITEBYTECODE is set, every process compiles TensorFlow's modules again.
INSTALL = $(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python

setup: $(READY) $(if $(GPU),$(VENV)/gpu) ## make .venv and install requirements.txt into it; GPU=1 adds CUDA's libraries

$(READY): requirements.txt
	$(call environment,$(VENV))
	$(call INSTALL,$(VENV)) -r requirements.txt
	@touch $@

$(VENV)/gpu: requirements-gpu.txt $(READY)
	$(call INSTALL,$(VENV)) -r requirements-gpu.txt
	@touch $@

setup-tpu: $(VENV)/tpu ## also install the TPU compiler, for pipeline/tpu_check.py

$(VENV)/tpu: requirements-tpu.txt $(READY)
	$(call INSTALL,$(VENV)) -r requirements-tpu.txt
	@touch $@

setup-tpu-vm: $(VENV)-tpu-vm/ready ## on a TPU VM: make .venv-tpu-vm, whose TensorFlow has a TPU's kernels

# The lock is complete, and packages that ask for tensorflow must not get it: so without dependencies.
$(VENV)-tpu-vm/ready: requirements.txt requirements-tpu-vm.txt
	$(call environment,$(VENV)-tpu-vm)
	sed 's/^tensorflow==/tensorflow-tpu==/' requirements.txt | cat - requirements-tpu-vm.txt > $(VENV)-tpu-vm/requirements.txt
	$(call INSTALL,$(VENV)-tpu-vm) --no-deps -r $(VENV)-tpu-vm/requirements.txt
	@touch $@

quickstart: setup ## images -> records -> training -> predictions; INPUT=FOLDER for your own
	$(RUN) examples/quickstart.py $(if $(INPUT),--input="$(INPUT)")

ablation: setup ## what AGC, SAM, EMA, mixing and repeated augmentation are worth on the demo images
	$(RUN) examples/ablation.py

study-records: setup
	$(RUN) examples/make_pattern_images.py --output_dir=runs/study_images
	for set in pretrain finetune; do \
	  $(RUN) beam/build_tfrecords.py --input="runs/study_images/$$set/*.tar" --output_dir=runs/study_records/$$set \
	    --name=$$set || exit 1; done

study: study-records ## a scaling study in small: the law of NFNets
	$(RUN) pipeline/scaling_study.py run --gin_file=gin/study/demo.gin
	$(RUN) pipeline/scaling_study.py plot --study=runs/study --unit=flops

compare: study-records ## ConvNets beside transformers in small: adds ViTs and ResNets to the runs of `make study`
	$(RUN) pipeline/scaling_study.py run --gin_file=gin/study/demo_compare.gin
	$(RUN) pipeline/scaling_study.py plot --study=runs/study --unit=flops

test: setup ## the quick tests, in two processes
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: setup ## every test, the slow ones too, those of clouds, and the quick ones in Bazel
	$(RUN) -m pytest -m '' -n $(JOBS) --dist loadfile --no-loadscope-reorder
	$(MAKE) bazel-test test-clouds

test-serving: setup ## all tests of exported models and what serves them: C, gRPC, REST, a browser, batch prediction
	$(RUN) -m pytest -m '' tests/test_serv*.py tests/test_batch_predict.py

test-clouds: $(VENV)-clouds/ready ## slow tests of Dataflow's client, gs:// and s3:// against local servers
	$(VENV)-clouds/bin/python -m pytest -m slow tests/test_ingest_clouds.py

$(VENV)-clouds/ready: requirements.txt requirements-clouds.txt
	$(call environment,$(VENV)-clouds)
	$(call INSTALL,$(VENV)-clouds) -r requirements.txt
	$(call INSTALL,$(VENV)-clouds) -r requirements-clouds.txt
	@touch $@

bazel-test: setup ## build every target of BUILD and run the quick tests, each with only what it declares
	@command -v bazel > /dev/null || { echo "Bazel is not installed. With network: bazelisk," \
	  "https://github.com/bazelbuild/bazelisk. Without: Debian's and Ubuntu's package bazel-bootstrap." >&2; exit 1; }
	bazel build $(BAZEL_FLAGS) //...
	bazel test $(BAZEL_FLAGS) --local_test_jobs=1 --keep_going //...

lint: setup ## check format, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: setup ## format the code and fix what lint can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

build-file: setup ## rewrite BUILD from the imports
	$(RUN) tools/build_file.py

bench-ingest: setup ## speed and memory of the Beam job
	$(RUN) benchmarks/ingest.py

bench-input: setup ## speed and memory of the trainer's input
	$(RUN) benchmarks/input.py

bench-augment: setup ## speed of augmentation alone
	$(RUN) benchmarks/augment.py

bench-own: setup ## accuracy on folders of images, beside a plain Keras network; downloads public packages
	$(RUN) benchmarks/own.py

bench-serve: setup ## speed of an exported model on this CPU, against what it is made of, ONNX Runtime and timm's
	$(RUN) benchmarks/serve.py
	$(RUN) benchmarks/batch_predict.py
	$(RUN) benchmarks/serve_clients.py

bench-step: setup ## speed of a full training step on this CPU, beside timm's if benchmarks/requirements.txt is installed
	$(RUN) benchmarks/step.py

bench-gpu: setup ## speed of a full training step on what JAX has; JAX=PYTHON names a Python with JAX for a GPU
	$(if $(JAX),,$(MAKE) setup-tpu)
	mkdir -p runs
	$(RUN) benchmarks/gpu.py trace --gin_file=gin/f0_jft.gin --batch=64 --output=runs/step.npz
	$(or $(JAX),$(RUN)) benchmarks/gpu.py time runs/step.npz

tpu-table: setup-tpu ## speeds of the study's variants on TPU v4, compiled: pipeline/model/tpu_v4_speeds.json
	$(RUN) tools/tpu_table.py

# One lock for every Python. The environments that pyproject.toml states need not stand on each line.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
  $(if $(UPGRADE),--upgrade)
PLAIN := sed -i -e "s/ and sys_platform == 'linux'//; s/ and python_full_version < '3.14'//; s/ ; python_full_version < '3.14'$$//"

lock: setup ## rewrite requirements.txt and requirements-gpu.txt from their .in files; UPGRADE=1 takes the newest versions
	$(COMPILE) requirements.in --output-file requirements.txt
	$(PLAIN) -e '1i # Every package of the environment, pinned for Python 3.10 to 3.13. Made by `make lock` from requirements.in.' requirements.txt
	$(COMPILE) requirements-gpu.in --no-strip-extras --constraint requirements.txt --output-file requirements-gpu.txt
	$(PLAIN) -e '/^tensorflow\[\|^nvidia-/!d' requirements-gpu.txt

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
