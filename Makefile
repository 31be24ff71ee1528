# What one does with a clone of meshray. Everything sets itself up; on Debian and Ubuntu nothing is needed before it.
.DEFAULT_GOAL := help
.PHONY: help demo test check check-lowest check-newest format bench docs engine dist lock release

PYTHON := .venv/bin/python
# Behind a command that ran as root, whose exit status stays: nothing of root's is left in a user's clone.
GIVE = status=$$?; scripts/setup.sh give; exit $$status

# Lab tests wait more than they compute, but for the starts of Ray: two modules at a time on two cores, in the order of
# the tiers.
AT_ONCE ?= --numprocesses=2 --no-loadscope-reorder

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

demo:  ## three machines that cannot reach each other become one Ray cluster, on this machine (root)
	@scripts/setup.sh demo
	@$(PYTHON) -m tests.lab.demo; $(GIVE)

test:  ## every tier of tests that this machine can run; --require-all or CI=true: all of them (root)
	@scripts/setup.sh test
	$(PYTHON) -m pytest $(AT_ONCE); $(GIVE)

check:  ## formatting, lint, types, unit tests: under a minute
	@scripts/setup.sh check
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q --numprocesses=2 tests/unit

check-lowest: RESOLUTION := lowest-direct
check-newest: RESOLUTION := highest
check-lowest:  ## unit tests with the lowest versions that pyproject.toml allows, in an environment of their own
check-newest:  ## unit tests with the newest versions that pyproject.toml allows, in an environment of their own
check-lowest check-newest:
	@scripts/setup.sh check
	.venv/bin/uv venv --quiet --clear --seed --python $(PYTHON) .cache/$@
	MESHRAY_BUILD_ENGINE=0 .venv/bin/uv pip install --quiet --compile-bytecode --python .cache/$@ \
		--resolution $(RESOLUTION) --editable '.[ray,examples,env,docker,dev]'
	.cache/$@/bin/python -m pytest -q --numprocesses=2 tests/unit; $(GIVE)

format:  ## format and mend what can be mended by itself
	@scripts/setup.sh check
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench:  ## how fast and how large; the results of one run (root)
	@scripts/setup.sh test
	$(PYTHON) -m tests.bench; $(GIVE)

engine:  ## build the WireGuard engine for this machine (Go is fetched where there is none)
	@scripts/setup.sh engine

dist:  ## build what is published into dist/ and check it: the sdist, a wheel for each platform
	@scripts/setup.sh check
	@scripts/dist.sh; $(GIVE)

release:  ## commit and tag VERSION=x.y.z, then build it; pushes nothing (docs/releasing.md)
	@scripts/setup.sh check
	@$(PYTHON) scripts/release.py "$(VERSION)"
	@$(MAKE) --no-print-directory dist

lock:  ## choose the versions and hashes of the packages that tests, checks and releases use anew
	@scripts/setup.sh check
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --extra ray --extra examples --extra dev --extra docker \
		--output-file requirements/dev.txt pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/go.txt requirements/go.in
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/dist.txt requirements/dist.in

docs:  ## write the references of the commands and of the coordinator's API, and the man pages
	@scripts/setup.sh check
	$(PYTHON) -m meshray.cli.reference > docs/reference.md
	$(PYTHON) -m meshray.coordinator.openapi > docs/openapi.json
	$(PYTHON) -m meshray.cli.manual man
