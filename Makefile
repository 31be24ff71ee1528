# Tasks in a clone of meshray. Each installs what it needs; on Debian and Ubuntu nothing has to be prepared.
.DEFAULT_GOAL := help
.PHONY: help demo test nightly check check-lowest check-newest format bench docs site engine dist deb lock release

PYTHON := .venv/bin/python
# After a command that ran as root: give its files to the owner of the clone, and keep the exit status.
GIVE = status=$$?; scripts/setup.sh give; exit $$status

# Starting Ray takes both cores, so a third process runs only modules that mostly wait, in the
# order of tests/scheduling.py.
AT_ONCE ?= --numprocesses=3 --no-loadscope-reorder

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

demo:  ## build a Ray cluster from three isolated hosts on this machine (root)
	@scripts/setup.sh demo
	@$(PYTHON) -m tests.lab.demo; $(GIVE)

test:  ## run every tier of tests that this machine supports; CI=true requires all of them (root)
	@scripts/setup.sh test
	$(PYTHON) -m pytest $(AT_ONCE); $(GIVE)

nightly:  ## ask the doctor about FAULTS=150 faults drawn by SEED=a random number; about 30 minutes (root)
	@scripts/setup.sh test
	MESHRAY_FAULTS=$(or $(FAULTS),150) MESHRAY_FAULTS_SEED=$(or $(SEED),$(shell date +%s)) \
		$(PYTHON) -m pytest -rA tests/lab/test_drawn_faults.py; $(GIVE)

check:  ## check format, lint and types, and run the unit tests; about a minute
	@scripts/setup.sh check
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q --numprocesses=2 tests/unit

check-lowest: RESOLUTION := lowest-direct
check-newest: RESOLUTION := highest
check-lowest:  ## run the unit tests with the lowest versions that pyproject.toml allows, in a separate environment
check-newest:  ## run the unit tests with the newest versions that pyproject.toml allows, in a separate environment
check-lowest check-newest:
	@scripts/setup.sh check
	.venv/bin/uv venv --quiet --clear --seed --python $(PYTHON) .cache/$@
	MESHRAY_BUILD_ENGINE=0 .venv/bin/uv pip install --quiet --compile-bytecode --python .cache/$@ \
		--resolution $(RESOLUTION) --editable '.[ray,examples,env,docker,dev]'
	.cache/$@/bin/python -m pytest -q --numprocesses=2 tests/unit; $(GIVE)

format:  ## format the code and apply the linter's fixes
	@scripts/setup.sh check
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench:  ## run the benchmarks, or only those of NAMES="relay stream", and print the results (root)
	@scripts/setup.sh test
	$(PYTHON) -m tests.bench $(NAMES); $(GIVE)

engine:  ## build the WireGuard engine for this machine (downloads Go if it is missing)
	@scripts/setup.sh engine

dist:  ## build and check the sdist and a wheel for each platform in dist/
	@scripts/setup.sh check
	@scripts/dist.sh; $(GIVE)

deb:  ## build a Debian package from each wheel of `make dist`, with meshray's dependencies
	@scripts/setup.sh check
	@scripts/deb.sh; $(GIVE)

release:  ## commit, tag and build VERSION=x.y.z without pushing it (docs/releasing.md)
	@scripts/setup.sh check
	@$(PYTHON) scripts/release.py "$(VERSION)"
	@$(MAKE) --no-print-directory dist

lock:  ## update the locked versions of the packages for tests, checks and releases
	@scripts/setup.sh check
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --extra ray --extra examples --extra dev --extra docker \
		--output-file requirements/dev.txt pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/go.txt requirements/go.in
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/dist.txt requirements/dist.in
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/hadolint.txt requirements/hadolint.in
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/site.txt requirements/site.in
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/deb.txt pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/ansible.txt requirements/ansible.in

docs:  ## generate the references of the commands and of the coordinator's API, the man pages and the dashboard
	@scripts/setup.sh check
	$(PYTHON) -m meshray.cli.reference > docs/reference.md
	$(PYTHON) -m meshray.coordinator.openapi > docs/openapi.json
	$(PYTHON) -m meshray.cli.manual man
	$(PYTHON) scripts/grafana_dashboard.py > .cache/dashboard.json && mv .cache/dashboard.json templates/monitoring/

site:  ## build the documentation's site in .cache/site; a broken link is an error
	@scripts/setup.sh check
	@scripts/site.sh; $(GIVE)
