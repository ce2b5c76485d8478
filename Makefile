# Each target first makes .venv, on a machine that has nothing but Python 3.11+, and then does its work.
#
#   make demo     draw two people, learn them, export, make a picture of both; only ./demo is touched
#   make test     the test suite; with a coverage figure: make test COVERAGE=1; slow tests: .venv/bin/python -m pytest -m slow
#   make test-fast       the tests that load no model, about a minute: for daily work
#   make fuzz     change genuine files at random and read them, MINUTES=60; repeat a run with FUZZ="--seed N --door NAME"
#   make test-wheel      build the wheel, install it in a clean environment, run the three lines there
#   make test-cuda-device  ONNX Runtime's genuine CUDA provider on a device without a GPU; fetches its wheel (250 MB)
#   make test-elsewhere  test-fast once more from "with space é/celebctl", a path with a space and a non-ASCII letter
#   make test-resolve    what pip would install for every extra, on Python 3.11 to 3.13: one CUDA, one ONNX Runtime
#   make torture  kill -9 at every write and at 200 random moments of every command that writes (an hour); KILLS=20
#   make check    ruff and pyright (strict)
#   make docs     run the tutorial, write its images and the command reference, build the site in build/site
#   make bench-likeness   24 unseen people, 3 seeds, ours and the published settings (ten minutes or more)
#   make bench-speed   cold start, pictures, steps and memory beside diffusers in turns, with a chart (minutes)
#   make bench-gpu   the same on an NVIDIA GPU, with TensorRT and torch.compile, in .venv-gpu; MODEL=folder, or weights
#                    drawn at random for a Stable Diffusion 1.5 of true size; DEVICES=cuda where TensorRT is not wanted
#   make gpu      .venv-gpu for an NVIDIA GPU: learn, export and draw, with TensorRT and insightface; then celebctl doctor.
#                 GPU_EXTRA=gpu-cu12 for drivers 525 to 579 (CUDA 12)
#   make prove    everything on this machine as one report in build/proof, to send to the project; MODEL=name or folder,
#                 or weights drawn at random for a Stable Diffusion 1.5 of true size; PHOTOS=folder of NAME.jpg
#   make clean    remove .venv, .venv-gpu and demo

PYTHON ?= python3
# A plain CPU build of torch lies ready on some machines and in some caches for exactly this version.
TORCH  ?= torch==2.13.0
VENV   ?= .venv

# The checkout may lie in a folder with spaces: targets are relative paths, recipes quote every path.
BIN    := $(abspath $(VENV))/bin
READY  := $(VENV)/.ready
# Another seed, another game: make demo SEED=9
SEED   ?= 8
# Any value adds a coverage figure, which takes longer on Python 3.11.
COVERAGE ?=
MINUTES  ?= 60
FUZZ     ?=

# `cpu` and `cuda` exclude one another: the GPU has an environment of its own. insightface asks for plain onnxruntime,
# which would overwrite onnxruntime-gpu: it comes last, without its dependencies, which the extra has.
GPU_VENV  ?= .venv-gpu
GPU_EXTRA ?= gpu
GPU_BIN   := $(abspath $(GPU_VENV))/bin
GPU_READY := $(GPU_VENV)/.ready
DEVICES   ?= cuda trt
MODEL     ?=
PHOTOS    ?=
BUILD     := $(abspath build)

.PHONY: help demo test test-fast fuzz torture test-wheel test-cuda-device test-elsewhere test-resolve check docs bench-likeness bench-speed bench-gpu prove gpu clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY)
	@mkdir -p demo; home=$$(mktemp -d) || exit 6; \
	trap 'rm -rf "$$home"' EXIT; trap 'exit 130' INT TERM; \
	export CELEBCTL_HOME="$$home"; unset CELEBCTL_MODEL; cd demo || exit 6; \
	run() { said=; for word; do case $$word in *' '*) word="\"$$word\"";; esac; said="$$said $$word"; done; \
	  printf '\n$$ celebctl%s\n' "$$said" >&2; "$(BIN)/celebctl" "$$@"; }; \
	run sample-photo alice.png --seed 7 --force && \
	run sample-photo bob.png --seed 11 --force && \
	run learn alice.png bob.png --name alice --name bob --sheet sheet.png --force && \
	run export && \
	run gen "alice and bob playing chess" --seed $(SEED) --out alice-and-bob-playing-chess.png --force && \
	printf '\nThe picture: %s\n' "$$PWD/alice-and-bob-playing-chess.png"

# Two processes of one thread do more here than one of two. The files that take longest are started first.
PYTEST := OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST)$(if $(COVERAGE), --cov --cov-report=term:skip-covered)

test-fast: $(READY)
	$(PYTEST) -m "fast and not slow"

# A failing input becomes a file in tests/fuzz/regressions, which the tests replay.
fuzz: $(READY)
	cd tests && PYTHONPATH=.:..:../models:../export:../runtime OMP_NUM_THREADS=1 \
	  "$(BIN)/python" -m fuzz --minutes $(MINUTES) $(FUZZ)

# The wheel runs without the checkout: in an environment of its own, from an empty folder.
test-wheel: $(READY)
	@work=$$(mktemp -d) || exit 6; trap 'rm -rf "$$work"' EXIT; trap 'exit 130' INT TERM; set -e; \
	"$(BIN)/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$$work" .; \
	"$(PYTHON)" -m venv "$$work/venv"; \
	"$$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check '$(TORCH)'; \
	for wheel in "$$work"/celebctl-*.whl; do \
	  "$$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$$wheel[learn,export,cpu,provenance]"; done; \
	"$$work/venv/bin/python" -c 'import cv2' 2>/dev/null || { \
	  "$$work/venv/bin/python" -m pip uninstall --quiet --yes opencv-python; \
	  "$$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check opencv-python-headless; }; \
	mkdir "$$work/empty"; cd "$$work/empty"; \
	export CELEBCTL_HOME="$$work/home"; unset CELEBCTL_MODEL PYTHONPATH; celebctl="$$work/venv/bin/celebctl"; \
	"$$celebctl" sample-photo face.jpg --seed 7; \
	"$$celebctl" learn face.jpg --name alice --steps 4 --no-sheet; \
	"$$celebctl" export; \
	"$$celebctl" gen "alice playing chess" --seed 3 --steps 4 --out alice.png; \
	test -s alice.png && echo 'the wheel works'

# A C compiler makes the device (tests/cuda_device); wheel and device stay in build/, where `make test` finds them too.
test-cuda-device: $(READY)
	CELEBCTL_TEST_CUDA=1 OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -rs -m cuda_device tests/test_cuda_device.py

test-elsewhere: $(READY)
	@work=$$(mktemp -d) || exit 6; trap 'rm -rf "$$work"' EXIT; trap 'exit 130' INT TERM; set -e; \
	place="$$work/with space é/celebctl"; mkdir -p "$$place"; \
	git ls-files -z | xargs -0 tar -cf - | tar -x -C "$$place"; cd "$$place"; \
	$(PYTEST) -m "fast and not slow"

test-resolve: $(READY)
	"$(BIN)/python" -m pytest -q -m resolve tests/test_resolve.py

KILLS ?= 200
torture: $(READY)
	OMP_NUM_THREADS=1 "$(BIN)/python" tests/torture.py --kills "$(KILLS)"

check: $(READY)
	"$(BIN)/ruff" check .
	"$(BIN)/pyright" --pythonpath "$(BIN)/python"

docs: $(READY)
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	"$(BIN)/python" docs/generate_cli.py
	"$(BIN)/python" docs/generate_faults.py
	"$(BIN)/python" docs/build_tutorial.py
	"$(BIN)/python" -m mkdocs build --strict

bench-likeness: $(READY)
	"$(BIN)/python" -m benchmarks.likeness --out benchmarks/results/likeness.json

bench-speed: $(READY)
	@home=$$(mktemp -d) || exit 6; trap 'rm -rf "$$home"' EXIT; trap 'exit 130' INT TERM; \
	export CELEBCTL_HOME="$$home"; unset CELEBCTL_MODEL; \
	"$(BIN)/celebctl" bench --rounds 30 --cold-starts 7 --force \
	  --out benchmarks/results/speed.json --chart benchmarks/results/speed.png

# Engines and bundles stay in build/, so that a second run times at once. The card is the last file of a model.
bench-gpu: $(GPU_READY)
	@mkdir -p "$(BUILD)" || exit 6; model="$(MODEL)"; \
	export CELEBCTL_HOME="$(BUILD)/bench-gpu"; unset CELEBCTL_MODEL; \
	if [ -z "$$model" ]; then model="$(BUILD)/true-size-sd15"; \
	  [ -f "$$model/celebctl.json" ] || "$(GPU_BIN)/python" -m benchmarks.true_size_model "$$model" || exit; fi; \
	"$(GPU_BIN)/celebctl" bench --model "$$model" $(DEVICES:%=--device %) --compile --variants \
	  --size 512x512 --steps 20 --guidance 7.5 --sampler ddim --rounds 30 --cold-starts 5 --force \
	  --out benchmarks/results/speed_gpu.json --chart benchmarks/results/speed_gpu.png

# With a GPU in .venv-gpu, else in .venv. The run stays in build/, so that an interrupted one continues.
PROVE_READY := $(if $(shell command -v nvidia-smi),$(GPU_READY),$(READY))
prove: $(PROVE_READY)
	@mkdir -p "$(BUILD)" || exit 6; model="$(MODEL)"; python="$(BUILD)/../$(dir $(PROVE_READY))bin/python"; \
	if [ -z "$$model" ]; then model="$(BUILD)/true-size-sd15"; \
	  [ -f "$$model/celebctl.json" ] || "$$python" -m benchmarks.true_size_model "$$model" || exit; fi; \
	"$$python" -m celebctl prove --model "$$model" $(if $(PHOTOS),--photos "$(PHOTOS)") --out "$(BUILD)/proof"

gpu: $(GPU_READY)
	"$(GPU_BIN)/celebctl" doctor

clean:
	rm -rf "$(VENV)" "$(GPU_VENV)" demo

# torch first and alone, so that pip does not go looking for a newer and far larger one. insightface asks for
# opencv-python, which needs a desktop's libraries (libGL, X11); where those are missing, OpenCV without a desktop
# takes its place.
$(READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'celebctl needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 6; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[learn,export,cpu,eval,provenance,dev]'
	@"$(BIN)/python" -c 'import cv2' 2>/dev/null || { \
	echo 'no desktop libraries here: using opencv-python-headless' >&2; \
	"$(BIN)/python" -m pip uninstall --quiet --yes opencv-python; \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check opencv-python-headless; }
	@touch "$@"

$(GPU_READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'celebctl needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 6; }
	"$(PYTHON)" -m venv "$(GPU_VENV)"
	"$(GPU_BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[$(GPU_EXTRA)]'
	"$(GPU_BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps 'insightface>=2.1,<3'
	@"$(GPU_BIN)/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || { \
	echo 'pip installed a torch without CUDA: remove --find-links and extra indexes from its configuration;' >&2; \
	echo 'on Windows, first: pip install torch --index-url https://download.pytorch.org/whl/cu130' >&2; exit 6; }
	@touch "$@"
