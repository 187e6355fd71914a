#!/bin/sh
# Makes .venv as uv.lock says. Needs a Python >= 3.11 and pip; no root, no ensurepip, nothing installed system-wide.
# Done already for this lock file: returns at once. All it says goes to stderr, so that stdout stays a program's own.
#
#   setup.sh run      what Eastwest itself needs
#   setup.sh dev      and what checks and tests need (the default)
#   setup.sh interop  and foreign programs that come as packages, for `make interop`
#
# What is there is never taken away: after `dev`, `run` has nothing to do.
set -eu
exec >&2
cd "$(dirname "$0")/.."

UV_VERSION=0.13.6
if [ -z "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    HOME="${TMPDIR:-/tmp}/eastwest-home-$(id -u)"
    mkdir -p "$HOME"
    export HOME
fi
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/eastwest"
STAMP=.venv/.eastwest-setup

say() { echo "setup: $*"; }

die() {
    say "$*"
    exit 1
}

is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        path=$(command -v "$name" 2>/dev/null) || continue
        if is_python "$path"; then
            "$path" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# uv 0.13 or a later 0.x: the lock file's format and the build backend are of that line.
is_uv() {
    version=$("$1" --version 2>/dev/null) || return 1
    version=${version#uv }
    major=${version%%.*}
    rest=${version#*.}
    minor=${rest%%.*}
    [ "$major" -ge 1 ] 2>/dev/null || [ "$minor" -ge 13 ] 2>/dev/null
}

find_uv() {
    for path in "$(command -v uv 2>/dev/null || true)" "$HOME/.local/bin/uv" "$CACHE/uv-$UV_VERSION/bin/uv"; do
        if [ -n "$path" ] && [ -x "$path" ] && is_uv "$path"; then
            echo "$path"
            return
        fi
    done
    return 1
}

# --target leaves the system's packages alone, so an "externally managed" Python does not mind.
install_uv() {
    say "installing uv $UV_VERSION into $CACHE"
    mkdir -p "$CACHE"
    fresh=$(mktemp -d "$CACHE/uv-new.XXXXXX")
    for python in "$1" python3; do
        "$python" -m pip --version >/dev/null 2>&1 || continue
        if PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
            "$python" -m pip install --quiet --target "$fresh" "uv==$UV_VERSION"; then
            rm -rf "$CACHE/uv-$UV_VERSION"
            mv "$fresh" "$CACHE/uv-$UV_VERSION" 2>/dev/null || rm -rf "$fresh" # another setup was first
            return
        fi
        rm -rf "$fresh"
        die "pip could not install uv; its message is above"
    done
    rm -rf "$fresh"
    die "neither uv nor pip is here: install one (on Debian: apt install python3-pip)"
}

fingerprint() { cat uv.lock pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1; }

level() {
    case $1 in
        run) echo 1 ;;
        dev) echo 2 ;;
        interop) echo 3 ;;
        *) die "the level is run, dev or interop, not '$1'" ;;
    esac
}

wanted=${1:-dev}
rank=$(level "$wanted")
now=$(fingerprint)
done_for=""
done_level=""
if [ -f "$STAMP" ] && is_python .venv/bin/python; then
    read -r done_for done_level <"$STAMP" || true
fi
if [ -n "$done_level" ] && [ "$(level "$done_level")" -ge "$rank" ]; then
    wanted=$done_level
    [ "$done_for" != "$now" ] || exit 0
fi
case $wanted in
    run) groups="--no-dev" ;;
    dev) groups="" ;;
    interop) groups="--group interop" ;;
esac

python=$(find_python) || die "Python 3.11 or newer is needed; set PYTHON=/path/to/python3 if it has another name"
uv=$(find_uv) || { install_uv "$python" && uv=$(find_uv); } || die "uv was installed but does not run"
say "making .venv with $python and $("$uv" --version)"

# A certificate authority that pip was told of (a company's proxy, say) holds for uv too.
# ("pip config get" finds nothing in /etc/pip.conf; "list" does.)
cert=${PIP_CERT:-$("$python" -m pip config list 2>/dev/null | sed -n "s/^global\.cert='\(.*\)'\$/\1/p")}
if [ -n "$cert" ]; then
    export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"
fi

# Compiling once here saves every process of a demo from compiling its imports again.
UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_PYTHON="$python" UV_PROJECT_ENVIRONMENT=.venv UV_NO_PROGRESS=1 \
    "$uv" sync --locked --quiet $groups || die "uv could not make .venv; its message is above"
echo "$now $wanted" >"$STAMP"
say "done"
