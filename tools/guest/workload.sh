#!/bin/bash
# Process 1 of a guest with a real workload, called by init.sh with NAME,SEED. The names:
#   redis  250,000 keys, then updates without end, nine of ten in the hottest tenth
#   web    nginx serving 200 pages to ab over loopback
#   build  gcc compiling generated files while sqlite takes inserts
# On the console: READY when the working set is in memory, "TICK n" for every unit of work, and with
# every fifth "VERIFY name bad=n": the checksum of 8 MiB that never change, and a check of the
# workload's own. So a migration that loses or mixes up memory is noticed. A check that fails says
# before it what differs: "BAD what: how". None may fail since the guest was slow or stood still: a
# migration does that to it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts /scratch
mount -t tmpfs scratch /scratch
mount -t tmpfs run /run
export TMPDIR=/scratch HOME=/scratch
/lab/busybox ip link set lo up
exec >/dev/ttyS0 2>&1 </dev/null
IFS=, read -r workload seed <<<"$1"
seed=${seed:-1}

still() {
  /lab/loadgen fill 30000 "$seed" | head -c 8388608
}
still >/scratch/still
sum=$(sha256sum </scratch/still)
bad=0

# differs NAME FILE COMMAND...: says where a file is not what the command makes. That may be
# nowhere, if it was read wrongly before and is read well now.
differs() {
  local said="BAD $1: $(stat -c %s "$2") bytes,"
  "${@:3}" | cmp -l - "$2" 2>/dev/null | awk -v said="$said" '
    { page = int(($1 - 1) / 4096) }
    !(page in seen) { seen[page]; if (++count <= 20) pages = pages " " page }
    END { printf "%s %d differ, in %d pages:%s\n", said, NR, count, pages }'
}

still_is_whole() {
  [ "$(sha256sum </scratch/still)" = "$sum" ] && return
  differs still /scratch/still still
  return 1
}

tick() { # tick N CHECK...: a unit of work is done
  local n=$1
  shift
  echo "TICK $n"
  [ $((n % 5)) = 0 ] || return 0
  still_is_whole || bad=$((bad + 1))
  "$@" || bad=$((bad + 1))
  echo "VERIFY $workload bad=$bad"
}

# Reads all programs once, as a machine that has run for a while has: the page cache is most of a
# real guest's memory.
warm() {
  find /usr/bin /usr/lib /usr/share -xdev -type f -print0 | xargs -0 cat >/dev/null 2>&1
}

run_redis() {
  mkdir -p /scratch/redis
  redis-server --port 6379 --daemonize yes --save "" --appendonly no --dir /scratch/redis >/dev/null
  until [ "$(redis-cli ping 2>/dev/null)" = PONG ]; do sleep 0.1; done
  /lab/loadgen fill 250000 "$seed" | redis-cli --pipe | tail -1
  keys=$(redis-cli dbsize)
  redis_is_whole() {
    local now
    now=$(redis-cli dbsize)
    [ "$now" = "$keys" ] && grep -q "errors: 0" /scratch/updates.log && return
    echo "BAD redis: $now keys of $keys, $(tail -1 /scratch/updates.log)"
    return 1
  }
  warm
  echo READY
  local n=0
  while :; do
    n=$((n + 1))
    /lab/loadgen update 1500 $((seed * 1000 + n)) 250000 |
      redis-cli --pipe --pipe-timeout 0 >/scratch/updates.log
    tick $n redis_is_whole
    sleep 0.5
  done
}

run_web() {
  mkdir -p /var/log/nginx /var/lib/nginx /scratch/pages
  page() { /lab/loadgen fill 60 $((seed * 1000 + $1)); }
  local n
  for n in $(seq 200); do page $n >/scratch/pages/$n.html; done
  cat >/scratch/nginx.conf <<'CONF'
user root; worker_processes 2; pid /run/nginx.pid; events {}
http { access_log /scratch/access.log; server { listen 8080; root /scratch/pages; } }
CONF
  # nginx closes first, so its end of each connection waits for a minute. A guest of 512 MiB lets
  # 2048 wait and drops the others at once, so that ab gets a reset now and then. It counts that as
  # a failed request, or, if it is among the last, waits for it for 30 idle seconds and gives up.
  # So the ends of all ports may wait.
  echo 65536 >/proc/sys/net/ipv4/tcp_max_tw_buckets
  nginx -c /scratch/nginx.conf
  # What nginx serves, byte by byte. The word of ab is none on memory: it has timeouts.
  web_is_whole() {
    rm -f /scratch/got
    /lab/busybox wget -q -O /scratch/got http://127.0.0.1:8080/$number.html
    page $number | cmp -s - /scratch/got && return
    differs web /scratch/got page $number
    return 1
  }
  warm
  echo READY
  n=0
  while :; do
    n=$((n + 1))
    number=$((n % 200 + 1))
    ab -q -n 200 -c 4 http://127.0.0.1:8080/$number.html >/scratch/ab.log 2>&1
    grep -q '^Failed requests: *0$' /scratch/ab.log || echo "NOTE ab:" $(tail -3 /scratch/ab.log)
    tick $n web_is_whole
    sleep 0.2
  done
}

run_build() {
  warm
  mkdir -p /scratch/build
  cd /scratch/build || exit
  build_is_whole() {
    [ $code = 0 ] || { echo "BAD build: gcc said $code"; return 1; }
  }
  (
    n=0
    while :; do
      n=$((n + 1))
      /lab/loadgen sql 2000 $((seed * 1000 + n))
    done | sqlite3 -cmd 'PRAGMA journal_mode=WAL; PRAGMA cache_size=-32000;
      CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, document TEXT);
      CREATE INDEX names ON users(name);' /var/tmp/users.db >/dev/null
  ) &
  local n=0
  while :; do
    n=$((n + 1))
    /lab/loadgen c 40 $((seed * 1000 + n)) >f.c
    gcc -O2 -g -c f.c -o f$((n % 20)).o
    code=$?
    [ $n = 3 ] && echo READY
    tick $n build_is_whole
  done
}

case $workload in
  redis) run_redis ;;
  web) run_web ;;
  build) run_build ;;
  *) echo "BUG: no workload $workload" ;;
esac
