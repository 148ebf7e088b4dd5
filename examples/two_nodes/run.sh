#!/usr/bin/env bash
# Starts both programs on loopback, as processes of their own, and checks what they print. Ends with 0 if the sums are
# right, 2 if not, and 3 if the calculator was never ready.
set -euo pipefail
cd "$(dirname "$0")"

# The versions of dependencies that distribute itself is tested with; an application would keep its own lock file.
[ -e Cargo.lock ] || cp ../../Cargo.lock .
cargo build --quiet
programs=${CARGO_TARGET_DIR:-target}/debug

work=$(mktemp -d)
calculator=
clean_up() {
    [ -z "$calculator" ] || kill -9 "$calculator" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

"$programs/calculator" a@127.0.0.1:0 "$work/cookie" >"$work/a.log" &
calculator=$!
for _ in {1..100}; do
    if grep -q ' is ready$' "$work/a.log"; then break; fi
    sleep 0.1
done
name=$(sed -n 's/ is ready$//p' "$work/a.log")
if [ -z "$name" ]; then
    echo "FAILED: the calculator was not ready within 10 s" >&2
    exit 3
fi

timeout 20 "$programs/customer" b@127.0.0.1:0 "$work/cookie" "$name" 3 4 5 >"$work/b.log" || true
kill -INT "$calculator"
wait "$calculator" || true
calculator=

expect() {
    if ! diff <(printf '%s\n' "${@:2}") "$work/$1.log" >&2; then
        echo "FAILED: node $1 should have printed the lines marked < and printed those marked >" >&2
        exit 2
    fi
}
expect a "$name is ready" "calculator got 3, the sum is 3" "calculator got 4, the sum is 7" \
    "calculator got 5, the sum is 12" "$name has left"
expect b "the calculator is on $name" "sent 3, the sum is 3" "sent 4, the sum is 7" "sent 5, the sum is 12"
sed 's/^/a | /' "$work/a.log"
sed 's/^/b | /' "$work/b.log"
