#!/bin/sh
# System packages that some tests need and pip cannot bring. Installed where this runs as root on Debian or Ubuntu;
# elsewhere it says what is missing, and the tests that need it skip, but for CI, where nothing may be skipped.
set -eu
exec >&2

PACKAGES="softhsm2 dbus-daemon"

missing=""
for package in $PACKAGES; do
    case $package in
        softhsm2) command -v softhsm2-util >/dev/null 2>&1 || missing="$missing $package" ;;
        dbus-daemon) command -v dbus-daemon >/dev/null 2>&1 || missing="$missing $package" ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "system: installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "system: not installed:$missing (as root: apt install$missing)"
[ "${CI:-}" != true ]
