#!/bin/sh
# Moves one guest by QEMU's own means and by dwcp, in turn, over one emulated link:
#   benches/qemu.sh run GUEST LINK REPEAT [ROWS.json]
# MODES are the means to take (all), FLAGS more flags for dwcp, LIMIT the seconds after which a
# migration is given up as not converging (400).
# The other two words are for the bench of peers, which calls them around each migration of the
# daemons'. Needs root and `cargo xtask lab setup --real`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dwcp=$here/../target/release/dwcp
# Both hosts and both QEMUs share the cores: nobody may spin.
flags="--poll park --memory 2GiB ${FLAGS:-}"

run() {
    cargo build --quiet --release --locked --bin dwcp
    pki="$dwcp pki init {dir}/pki && $dwcp pki host here {dir}/pki && $dwcp pki host there {dir}/pki"
    # The socket appears when the link stands: what comes before is no part of a migration.
    source="$dwcp carry --listen-unix {sock}.new --to {peer}:{port} --pki {dir}/pki/here --json $flags"
    shown=' | while read -r said; do case $said in *linked*) mv {sock}.new {sock} ;; esac; done'
    sink="$pki && exec $dwcp carry --listen 0.0.0.0:{port} --connect-unix {sock}"
    sink="$sink --pki {dir}/pki/there $flags"
    cargo xtask peers --guest "$1" --link "$2" --repeat "$3" --json "${4:-/dev/null}" \
        --limit "${LIMIT:-400}" \
        --modes "${MODES:-tcp,multifd4,multifd4-zstd1,multifd4-zstd3,xbzrle,raw,carry,daemon}" \
        --relay raw "$source --mode passthrough$shown" "$sink --mode passthrough" \
        --relay carry "$source$shown" "$sink" \
        --mover daemon "$here/qemu.sh prepare" "$here/qemu.sh move"
}

prepare() {
    cd "$DWCP_LAB_FOLDER"
    "$dwcp" pki init pki && "$dwcp" pki host here pki && "$dwcp" pki host there pki
    start "$DWCP_LAB_SOURCE_NETNS" here
    start "$DWCP_LAB_SINK_NETNS" there
    "$dwcp" vm attach guest --qmp "$DWCP_LAB_SOURCE_QMP" --socket here.sock
    "$dwcp" vm attach guest --qmp "$DWCP_LAB_SINK_QMP" --incoming --accept-from here \
        --socket there.sock
}

# A daemon in the background, once it answers.
start() {
    ip netns exec "$1" "$dwcp" daemon --socket "$2.sock" --listen "0.0.0.0:$DWCP_LAB_PORT" \
        --pki "pki/$2" --state "state-$2" $flags >"$2.log" 2>&1 &
    until "$dwcp" status --socket "$2.sock" >/dev/null 2>&1; do
        kill -0 $! || { cat "$2.log" >&2; exit 1; }
    done
}

move() {
    cd "$DWCP_LAB_FOLDER"
    exec "$dwcp" migrate guest --to "$DWCP_LAB_SINK_ADDRESS:$DWCP_LAB_PORT" --socket here.sock
}

"$@"
