#!/bin/sh
# Builds the documentation's site from docs/ with mkdocs, in strict mode: a broken link, an unknown heading or a page
# that the navigation lacks is an error.
#
#   make site
#   scripts/site.sh FOLDER     into another folder than .cache/site
#
# Needs .venv (scripts/setup.sh check). The tools come from requirements/site.txt.
set -eu
umask 022
folder=$(realpath --canonicalize-missing "${1:-$(dirname "$0")/../.cache/site}")
cd "$(dirname "$0")/.."
venv=.cache/site-tools

say() { printf 'site: %s\n' "$*" >&2; }
# This includes the path, which programs in a virtual environment contain.
fingerprint() { pwd; sha256sum < requirements/site.txt; }

if [ "$(cat $venv/.ready 2>/dev/null)" != "$(fingerprint)" ]; then
    say "installing the tools into $venv"
    .venv/bin/python -m venv --clear $venv
    PIP_DISABLE_PIP_VERSION_CHECK=1 $venv/bin/python -m pip install --quiet --require-hashes \
        --requirement requirements/site.txt
    fingerprint > $venv/.ready
fi
# Not --quiet: it drops warnings before strict mode counts them.
NO_MKDOCS_2_WARNING=1 $venv/bin/python -m mkdocs build --strict --clean --site-dir "$folder"
say "the site is in $folder"
