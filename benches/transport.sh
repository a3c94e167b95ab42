#!/bin/sh
# Measures every row of the transport's table and prints the table:
#   benches/transport.sh quick|full ROWS.json [FOLDER for the drawings]
# A bench that fails leaves its rows out; the others go on, and the exit code says so. ROWS.json is
# begun anew. Needs root, what benches/README.md names, and a machine with nothing else to do.
set -eu

case ${1:-} in
    quick) options=--quick ;;
    full) options= ;;
    *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac
rows=${2:?where the rows go}
root=$(cd "$(dirname "$0")/.." && pwd)
built=$root/target/release

cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml" --bin dwcp
cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml" -p dwcp-benches --bins
: >"$rows"
failed=
for bench in paths queue share cpu kill step outage; do
    "$built/$bench" $options --json "$rows" || failed="$failed $bench"
done
"$built/report" table "$rows"
if [ -n "${3:-}" ]; then
    "$built/report" plot "$3" "1 Gbit/s" "$rows"
fi
if [ -n "$failed" ]; then
    echo "without figures:$failed" >&2
    exit 1
fi
