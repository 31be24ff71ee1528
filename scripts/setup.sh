#!/bin/sh
# Makes this clone ready to work with: Debian packages that are missing, and the virtual environment .venv.
#
#   scripts/setup.sh check    Python packages only; no root needed where Python can make virtual environments
#   scripts/setup.sh demo     and what the demo's hosts are made of
#   scripts/setup.sh test     and what the other tiers of tests need
#   scripts/setup.sh engine   and the WireGuard engine, built from its source; part of test, and of demo where there is Go
#   scripts/setup.sh give     only gives what root made here to whom the clone belongs; after `sudo make …`
#
# Needs nothing but a Debian or Ubuntu, as root or through sudo. Run again, it does what is left to do: usually nothing.
set -eu
umask 022
cd "$(dirname "$0")/.."
goal=${1:-demo}
venv=.venv
stamp=$venv/.ready
# The optional packages that this release does not have.
asked=.cache/packages-not-to-be-had

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
is_debian() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# The first Python that meshray runs on: python3, else the newest other one.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

# Debian keeps the part of Python that makes virtual environments in a package of its own.
python_packages() {
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'
    fi
}

kernel_has_wireguard() {
    is_root && unshare --net ip link add meshray-probe type wireguard 2>/dev/null
}

# From whichever packages: Docker's own ones and Debian's cannot be installed side by side.
has_docker() {
    command -v dockerd >/dev/null && command -v containerd >/dev/null && command -v runc >/dev/null
}

wanted_packages() {
    [ -x $venv/bin/python ] || python_packages
    case $goal in demo | test)
        echo iproute2 iptables iputils-ping nftables util-linux wireguard-go wireguard-tools
    esac
    case $goal in test)
        has_docker || echo docker.io
        echo binutils faketime gcc openssh-client openssh-server passt sudo tinyproxy-bin
        if [ "$(uname -m)" = x86_64 ] && ! kernel_has_wireguard; then
            # Ubuntu's kernels have WireGuard; Debian's plain one (not the cloud one, which lacks 9p) boots in QEMU.
            echo busybox-static kmod qemu-system-x86 udev
            grep -q '^ID=debian' /etc/os-release && echo linux-image-amd64
        fi
    esac
}

# What single tests try themselves against, where the release has it: they say so when they are left out.
optional_packages() {
    case $goal in test)
        echo dbus docker-cli firewalld iperf3 munge shellcheck slurm-client slurmctld slurmd systemd ufw vagrant
    esac
}

not_installed() {
    for package in "$@"; do
        status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || echo "$package"
    done
}

# shellcheck disable=SC2046,SC2086  # lists of words on purpose
install_packages() {
    missing=$(not_installed $(wanted_packages) | xargs)
    optional=$(not_installed $(optional_packages) | xargs)
    if ! is_root; then
        [ -z "$missing" ] || fail "missing Debian packages: $missing. Say: sudo make $goal"
        return 0
    fi
    [ -n "$missing$optional" ] || return 0
    # Nothing new to try: a release without one of the optional packages is not asked for it every time.
    [ -n "$missing" ] || [ "$(cat $asked 2>/dev/null)" != "$optional" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    for package in $optional; do
        ! apt-cache show "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    # The tests start their own inside their hosts; installing them is not to change this machine's firewall or to open
    # a way into it.
    for service in docker.io:docker.socket docker.io:docker docker.io:containerd firewalld:firewalld munge:munge \
        openssh-server:ssh slurmctld:slurmctld slurmd:slurmd; do
        case " $missing " in *" ${service%:*} "*)
            if [ -d /run/systemd/system ]; then
                say "${service%:*} is installed for the tests, masked: systemctl unmask ${service#*:} if you want to use it"
                systemctl mask "${service#*:}"
            fi
        esac
    done
    if [ -n "$missing" ]; then
        say "installing Debian packages: $missing"
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
    fi
    mkdir -p "$(dirname $asked)"
    not_installed $(optional_packages) | xargs > $asked
}

# What .venv was made from. The path is part of it: programs in a virtual environment hold it.
fingerprint() {
    pwd
    cat pyproject.toml scripts/setup.sh requirements/*.txt | sha256sum
}

make_venv() {
    if [ "$(cat $stamp 2>/dev/null)" = "$(fingerprint)" ] && $venv/bin/python -c '' 2>/dev/null; then
        return
    fi
    if ! $venv/bin/python -c '' 2>/dev/null || { [ -e $stamp ] && [ "$(head -n 1 $stamp)" != "$(pwd)" ]; }; then
        python=$(find_python)
        [ -n "$python" ] || fail "no Python 3.10 to 3.14 found; install one, then say: make $goal"
        say "making $venv with $python"
        "$python" -m venv --clear $venv
    fi
    say "installing Python packages into $venv (Ray is large: this can take a few minutes)"
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
    install_locked
    # What the lock does not hold is not looked for: only meshray itself is left.
    $venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
    fingerprint > $stamp
}

# Exactly the files of the lock. An index that lacks some of them is said, and then any version will do that pyproject.toml
# allows; a file that is not the one of the lock ends it, and so does everything on a build server.
install_locked() {
    mkdir -p .cache
    if $venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt 2>.cache/pip.log; then
        return
    fi
    cat .cache/pip.log >&2
    ! grep -q 'DO NOT MATCH THE HASHES' .cache/pip.log || fail "a package is not the one that requirements/dev.txt names"
    [ -z "${CI:-}" ] || fail "the packages of requirements/dev.txt cannot be installed"
    say "the packages of requirements/dev.txt cannot all be had here: installing what pyproject.toml allows instead"
    $venv/bin/python -m pip install --quiet --editable '.[ray,examples,dev,docker]'
}

# Go: the machine's where it is new enough, else the one of requirements/go.txt, which is no more than files in .cache.
find_go() {
    if go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then
        echo go
        return
    fi
    if [ ! -x .cache/go/go/bin/go ] || ! cmp -s requirements/go.txt .cache/go.txt; then
        [ "$goal" != demo ] || return 0
        say "fetching Go to build the engine"
        rm -rf .cache/go
        $venv/bin/python -m pip install --quiet --target .cache/go --no-deps --require-hashes \
            --requirement requirements/go.txt >&2 || return 0
        cp requirements/go.txt .cache/go.txt
    fi
    echo "$(pwd)/.cache/go/go/bin/go"
}

# The engine is built once for each of its sources.
make_engine() {
    folder=meshray/wireguard/engine
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' meshray/__init__.py)
    mark="$version $(cat $folder/*.go $folder/go.mod $folder/go.sum | sha256sum)"
    [ "$(cat .cache/engine 2>/dev/null)" != "$mark" ] || [ ! -x $folder/meshray-engine ] || return 0
    go=$(find_go)
    if [ -z "$go" ]; then
        [ "$goal" = demo ] || fail "no Go 1.26 or later, and none could be fetched: the engine cannot be built"
        return 0
    fi
    say "building the WireGuard engine"
    (cd $folder && CGO_ENABLED=0 "$go" build -trimpath -ldflags "-s -w -X main.version=$version" -o meshray-engine .) ||
        fail "the engine does not build"
    mkdir -p .cache && echo "$mark" > .cache/engine
}

# Through sudo in somebody's clone: environment, caches and compiled files are that user's, who goes on without sudo.
give_back() {
    owner=$(stat -c %u:%g .)
    if is_root && [ "${owner%:*}" -ne 0 ]; then
        find . -uid 0 -exec chown -h "$owner" {} +
    fi
}

if [ "$goal" = give ]; then
    give_back
    exit
fi
if is_debian; then
    install_packages
else
    say "this is no Debian or Ubuntu: install iproute2, nftables, iptables, wireguard-tools and wireguard-go yourself"
fi
make_venv
case $goal in demo | test | engine) make_engine ;; esac
# Many short programs of ours are started: none is to compile them again, also where Python may write no such files.
$venv/bin/python -m compileall -q meshray tests || true
give_back
