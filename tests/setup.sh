#!/bin/sh
# Installs what building and testing need, or says exactly what to install. Runs in a blink when nothing is missing.
set -eu

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
command -v make >/dev/null 2>&1 || missing="$missing make"
# The tests are clients like those out there, and ask an authority like those (pebble).
if [ "${1:-}" = tests ] || [ "${1:-}" = all ]; then
    command -v curl >/dev/null 2>&1 || missing="$missing curl"
    command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
    command -v pebble >/dev/null 2>&1 || missing="$missing pebble"
fi
# Those from PyPI live in an environment of their own.
if [ "${1:-}" = all ]; then
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        echo "installing:$missing"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    elif command -v apt-get >/dev/null 2>&1; then
        echo "missing:$missing" >&2
        echo "install with: sudo apt-get install -y$missing" >&2
        exit 1
    else
        echo "missing: install your system's packages of$missing" >&2
        exit 1
    fi
fi

# Debian's own cargo is often older.
oldest=89
if command -v cargo >/dev/null 2>&1; then
    minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
    case "$minor" in
        *[!0-9]*) ;;
        *) if [ "$minor" -lt "$oldest" ]; then
            echo "cargo 1.$minor is too old: meridian needs Rust 1.$oldest or later; install it with rustup" >&2
            exit 1
        fi ;;
    esac
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "missing: Rust (cargo) 1.89 or later; install it with rustup, https://rustup.rs" >&2
    exit 1
fi
