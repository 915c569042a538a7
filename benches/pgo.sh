#!/bin/sh
# The binary for production, laid out by a profile of its own work (profile-guided optimisation): `make release-pgo`.
# Built twice, with the load of `make compare` and of `make compare-tls` in between, so that it takes half an hour on two cores. Says where the binary is.
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
out=$PWD/target/pgo
tools=$PWD/target/tools
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

# A profile is read by the LLVM of the compiler: by the tool of the same version only.
profdata() {
    for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "$(command -v "llvm-profdata-$llvm" || true)" \
        "$tools/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
        if [ -x "$tool" ]; then
            export LD_LIBRARY_PATH="$tools/usr/lib/llvm-$llvm/lib:$tools/usr/lib/$(uname -m)-linux-gnu:${LD_LIBRARY_PATH:-}"
            exec "$tool" "$@"
        fi
    done
    return 1
}

if ! (profdata --version) >/dev/null 2>&1; then
    # Unpacked, not installed.
    if command -v apt-get >/dev/null; then
        mkdir -p "$tools"
        (cd "$tools" && apt-get download "llvm-$llvm" "libllvm$llvm" && for package in *llvm*.deb; do
            dpkg-deb -x "$package" . && rm "$package"
        done) || true
    fi
    if ! (profdata --version) >/dev/null; then
        echo "error: no llvm-profdata of LLVM $llvm; install the rustup component llvm-tools, or the package llvm-$llvm" >&2
        exit 1
    fi
fi

build() {
    # With --target, build scripts and macros are left alone.
    RUSTFLAGS="$1" "$cargo" build --locked --release --target "$host" --target-dir "$out"
}

rm -rf "$out/raw"
build "-Cprofile-generate=$out/raw"
binary=$out/$host/release/meridian
python3 benches/compare/compare.py --install --peers '' --meridian "profile=$binary" \
    --scenarios ka64,ka256,close,b100k --rounds 1 --seconds 4 >&2
python3 benches/compare/secured.py --install --peers '' --meridian "profile=$binary" --rounds 1 --seconds 4 >&2
(profdata merge -o "$out/merged.profdata" "$out"/raw/*.profraw)
build "-Cprofile-use=$out/merged.profdata"
echo "$binary"
