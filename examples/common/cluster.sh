# Sourced by three_nodes.sh and hosts.sh: nodes with a prompt as processes, what they say, and waits that end.
#
# A node is known by a word, as in `start a ...`: its commands go through $work/a.in, what it says comes to $work/a.log,
# its name is in ${name[a]}, its process in ${pid[a]}.

set -euo pipefail

node_program() { echo "${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/../../target}/debug/examples/node"; }

declare -A name pid input
work=$(mktemp -d)
identity=(--cookie-file "$work/cookie") # or certificates
began=$SECONDS

say() { printf '%3d s  %s\n' $((SECONDS - began)) "$*"; }

# Whatever happens, nothing is left behind.
clean_up() {
    local status=$?
    trap - EXIT
    exec 2>/dev/null # the shell would tell of each
    for process in "${pid[@]}"; do kill -9 "$process" || true; done
    wait || true
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
    printf '\nFAILED after %d s: %s\n' $((SECONDS - began)) "$*" >&2
    for node in "${!pid[@]}"; do
        printf '\n-- the last that %s said:\n' "$node" >&2
        tail -n 15 "$work/$node.log" >&2
    done
    exit 1
}

# within SECONDS WHAT COMMAND...: runs the command again and again until it succeeds, or fails the script.
within() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "not in time: $what"
        sleep 0.1
    done
}

# crash WORD...: kills nodes, which have no time for a good-bye.
crash() {
    local node
    for node in "$@"; do
        kill -9 "${pid[$node]}"
        wait "${pid[$node]}" 2>/dev/null || true
        unset "pid[$node]"
    done
}

# leave WORD: tells a node to leave in good order, and waits until its process has ended well.
leave() {
    echo quit >&"${input[$1]}"
    within 20 "$1 says bye" said "$1" bye
    wait "${pid[$1]}" || fail "$1 ended with $?"
    unset "pid[$1]"
}

# start WORD PREFIX... -- OPTIONS...: starts a node, by way of the prefix if there is one, and waits for its name.
start() {
    local node=$1 prefix=()
    shift
    while [ "$1" != -- ]; do prefix+=("$1"); shift; done
    shift
    rm -f "$work/$node.in" "$work/$node.log"
    mkfifo "$work/$node.in"
    # Open for reading too, so that neither side waits for the other here.
    exec {input[$node]}<>"$work/$node.in"
    "${prefix[@]}" "$(node_program)" --script "${identity[@]}" "$@" \
        <"$work/$node.in" >"$work/$node.log" 2>&1 &
    pid[$node]=$!
    within 20 "$node says its name" grep -qs '^node ' "$work/$node.log"
    name[$node]=$(sed -n 's/^node //p' "$work/$node.log")
}

# ask WORD COMMAND...: types a command, and prints the answer to it.
ask() {
    local node=$1 command=$2 before
    shift
    before=$(grep -cE "^(error )?$command\b" "$work/$node.log" || true)
    echo "$*" >&"${input[$node]}"
    for _ in {1..200}; do
        if [ "$(grep -cE "^(error )?$command\b" "$work/$node.log" || true)" -gt "$before" ]; then
            grep -E "^(error )?$command\b" "$work/$node.log" | tail -n 1
            return
        fi
        kill -0 "${pid[$node]}" 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}

# view WORD=STATE...: the answer to `who` of a node that sees these members in these states.
view() {
    local line=who node
    for node in "$@"; do line+=" ${name[${node%=*}]}=${node#*=}"; done
    echo "$line"
}

# answers WORD COMMAND ANSWER: whether the answer to a command is that.
answers() { [ "$(ask "$1" "$2")" = "$3" ]; }

# said WORD TEXT: whether a node has said that.
said() { grep -qF -- "$2" "$work/$1.log"; }
