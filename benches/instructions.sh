#!/bin/sh
# User instructions of one keep-alive request in the engine alone (`benches/instructions.rs`), counted by valgrind: a figure without noise. It is
# held against the one in `instructions.tsv` for this toolchain and kind of processor. More than 3 % above it is an error; a pair that has
# no figure gets one; UPDATE=1 writes what was counted.
set -eu
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
    echo "error: no valgrind; install the package valgrind" >&2
    exit 1
fi

figures=benches/instructions.tsv
toolchain=$(rustc --version | cut -d' ' -f1-2)
vendor=$(sed -n 's/^vendor_id[[:space:]]*: //p' /proc/cpuinfo | head -1)
key="$toolchain	${vendor:-$(uname -m)}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

echo "building the bench, then counting: minutes the first time" >&2

# What so many requests take, the start of the program with them.
count() {
    runner="valgrind --tool=callgrind --callgrind-out-file=$folder/$1"
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    env "CARGO_TARGET_${host}_RUNNER=$runner" "${CARGO:-cargo}" bench --locked --quiet --bench instructions -- "$1" >"$folder/said" 2>&1 ||
        { cat "$folder/said" >&2; return 1; }
    sed -n 's/^totals: //p' "$folder/$1"
}

few=$(count 1000)
many=$(count 5000)
counted=$(((many - few) / 4000))
known=$(awk -F'\t' -v key="$key" '$1 "\t" $2 == key { print $3 }' "$figures")

echo "$counted instructions for a request ($(echo "$key" | tr '\t' ' ')); known: ${known:-none}"
if [ -z "$known" ]; then
    printf '%s\t%s\n' "$key" "$counted" >>"$figures"
    echo "recorded in $figures"
elif [ "${UPDATE:-0}" = 1 ]; then
    awk -F'\t' -v OFS='\t' -v key="$key" -v counted="$counted" '$1 "\t" $2 == key { $3 = counted } { print }' "$figures" >"$folder/figures"
    cp "$folder/figures" "$figures"
elif [ $((counted * 100)) -gt $((known * 103)) ]; then
    echo "error: more than 3 % above what is known; mend it, or say why and record it with UPDATE=1 make instructions" >&2
    exit 1
fi
