#!/usr/bin/env bash
# The guide in README.md from end to end: the same commands, and what must come of them.
#
#   examples/two-services/run.sh [DIR]     DIR: a new directory with a short path; /tmp/two-services unless told
#
# Needs .venv (make setup) and curl. Everything it starts has ended when it ends, and DIR is removed; with KEEP=1 in
# the environment DIR stays, with logs in it. Exit code 0: every step did what the guide says. ORDERS_PORT and
# STOCK_PORT choose other ports than the guide's.
set -euo pipefail

place=${1:-/tmp/two-services}
checkout=$(cd "$(dirname "$0")/../.." && pwd)
patience=${PATIENCE:-30} # seconds that a step may take on a busy machine

title() { printf '\n== %s\n' "$*"; }

# expect TEXT...: run the commands on standard input, and again until their output holds every TEXT.
expect() {
    local commands output text missing end=$((SECONDS + patience))
    commands=$(cat)
    echo "$commands" | sed 's/^/$ /'
    while :; do
        output=$(eval "$commands" 2>&1) || true
        missing=
        for text in "$@"; do
            case $output in *"$text"*) ;; *) missing=$text ;; esac
        done
        if [ -z "$missing" ]; then
            echo "$output"
            return
        fi
        if [ $SECONDS -ge $end ]; then
            printf '%s\nFAILED: no %s in the above\n' "$output" "$missing"
            exit 1
        fi
        sleep 0.3
    done
}

# there PATH: wait for a file that a program in the background makes.
there() {
    local end=$((SECONDS + patience))
    until [ -e "$1" ]; do
        if [ $SECONDS -ge $end ]; then
            echo "FAILED: no $1; the logs say:"
            tail -n 5 logs/*
            exit 1
        fi
        sleep 0.1
    done
}

finish() {
    local status=$? pids
    pids=$(jobs -p)
    if [ -n "$pids" ]; then
        # shellcheck disable=SC2086 # several pids
        kill $pids 2>/dev/null || true
        wait
    fi
    if [ -n "${made:-}" ] && [ -z "${KEEP:-}" ]; then
        cd / && rm -rf "$place"
    fi
    [ $status = 0 ] && printf '\nEvery step did what the guide says.\n'
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

title "a place"
cd "$checkout"
export PATH="$PWD/.venv/bin:$PATH"
example=$PWD/examples/two-services
envoy=$(echo "$PWD"/.venv/lib/python3*/site-packages/envoy/_bin/envoy)
umask 022
mkdir -m 711 "$place" && cd "$place"
made=yes
mkdir logs bin run
mkdir -m 700 run/orders run/stock
cp "$example"/*.py .
cp -r "$example/estate" .
for name in orders stock; do ln "$envoy" bin/envoy-$name 2>/dev/null || cp "$envoy" bin/envoy-$name; done
sed -i "s|/tmp/two-services|$place|; s|18441|${ORDERS_PORT:-18441}|; s|18442|${STOCK_PORT:-18442}|" estate/*/*.yaml

title "each service a user of its own, where that can be"
python=/usr/bin/python3; [ -x $python ] || python=python3
as_orders= as_stock= uid_orders= uid_stock=
if [ "$(id -u)" = 0 ]; then
    as_orders="setpriv --reuid=42001 --regid=42001 --clear-groups" uid_orders=--uid=42001
    as_stock="setpriv --reuid=42002 --regid=42002 --clear-groups" uid_stock=--uid=42002
    chown 42001:42001 run/orders
    chown 42002:42002 run/stock
    sed -i 's|unix:path:.*envoy-orders|unix:uid:42001|; s|unix:path:.*envoy-stock|unix:uid:42002|' estate/workloads/all.yaml
fi
grep selectors estate/workloads/all.yaml

title "the authority"
expect "initialised trust domain shop.example" "next: eastwest server run" <<'COMMANDS'
eastwest server init --data data --trust-domain shop.example --port 0
COMMANDS
eastwest server run --data data >logs/server.log 2>&1 &
there data/server/agent.port

title "the estate"
expect "of 6 pairs of caller and operation 1 are allowed" "nothing to compare with" <<'COMMANDS'
eastwest plan estate --data data
COMMANDS
expect "applied: version" <<'COMMANDS'
eastwest apply estate --data data
COMMANDS

title "the node's agent"
eastwest bundle show --data data >bundle.pem
(umask 077 && eastwest token create --data data --group machines >join.token)
eastwest agent run --data data --server 127.0.0.1:$(cat data/server/agent.port) \
    --bundle bundle.pem --join-token-file join.token >logs/agent.log 2>&1 &
there data/agent/agent.sock

title "the two programs, a sidecar each"
$as_orders $python orders.py run/orders/app.sock run/orders/egress.sock >logs/orders.log 2>&1 &
$as_stock $python stock.py run/stock/app.sock >logs/stock.log 2>&1 &
eastwest sidecar run --data data --envoy bin/envoy-orders --egress-socket run/orders/egress.sock \
    --node-id orders $uid_orders >logs/orders-sidecar.log 2>&1 &
eastwest sidecar run --data data --envoy bin/envoy-stock --egress-socket run/stock/egress.sock \
    --node-id stock $uid_stock >logs/stock-sidecar.log 2>&1 &
there run/orders/egress.sock
there run/stock/egress.sock
expect "spiffe://shop.example/dev/shop/orders" "spiffe://shop.example/dev/shop/stock" "in step" <<'COMMANDS'
eastwest mesh status --data data
COMMANDS

title "a call that is allowed, and three that are not"
expect '{"item": "tea", "left": 7}' <<'COMMANDS'
curl -sS --unix-socket run/orders/egress.sock http://stock/items/tea
COMMANDS
expect '"code":"OPERATION_NOT_PERMITTED"' '"message":"the caller may not do this operation"' <<'COMMANDS'
curl -sS --unix-socket run/orders/egress.sock -X POST http://stock/items/tea/reservations
COMMANDS
expect '"code":"UNLISTED_OPERATION"' <<'COMMANDS'
curl -sS --unix-socket run/orders/egress.sock http://stock/admin
COMMANDS
port=$(sed -n 's/.*port: \([0-9]*\).*/\1/p' estate/services/stock.yaml)
expect '"code":"MTLS_REQUIRED"' <<'COMMANDS'
curl -sS http://127.0.0.1:$port/items/tea
COMMANDS

title "your own program meets the same refusal"
expect '"error": "stock said no", "status": 403' 'OPERATION_NOT_PERMITTED' <<'COMMANDS'
curl -sS --unix-socket run/orders/app.sock -X POST http://orders/orders/tea
COMMANDS

title "who called what"
expect "allow" "orders-reads-the-stock" "OPERATION_NOT_PERMITTED" "UNLISTED_OPERATION" "MTLS_REQUIRED" \
    "spiffe://shop.example/dev/shop/orders" <<'COMMANDS'
eastwest decisions --data data
COMMANDS

title "another policy"
cat >>estate/policies/shop.cedar <<'CEDAR'

@id("orders-reserves-what-it-sold")
@owner("group:shop")
@reason("what was ordered must not be sold twice")
permit (
  principal == Workload::"spiffe://shop.example/dev/shop/orders",
  action == Action::"stock:items:reserve",
  resource == Service::"stock"
);
CEDAR
expect "newly allowed" "spiffe://shop.example/dev/shop/orders" "stock:items:reserve" <<'COMMANDS'
eastwest plan estate --data data
COMMANDS
expect "applied: version" <<'COMMANDS'
eastwest apply estate --data data
COMMANDS
expect '{"ordered": "tea", "left": ' <<'COMMANDS'
curl -sS --unix-socket run/orders/app.sock -X POST http://orders/orders/tea
COMMANDS

title "is it enforced, and is the record whole?"
expect "in step" <<'COMMANDS'
eastwest mesh status --data data
COMMANDS
expect "the log shop.example/eastwest-log is whole" <<'COMMANDS'
eastwest log verify --data data
COMMANDS
expect "x509_svid.issued" "spiffe://shop.example/dev/shop/stock" "policy.activated" "node.attested" <<'COMMANDS'
eastwest log show --data data
COMMANDS
