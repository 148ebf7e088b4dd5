#!/usr/bin/env bash
# Three nodes in three processes on loopback. Every node's view of every member is checked: first that all live, then
# what the others say when one is killed, is started again, and leaves. Ends with 0 if all is as it should be.
#
#   examples/three_nodes.sh
cd "$(dirname "$0")/.."
. examples/common/cluster.sh

cargo build --quiet --locked --example node
began=$SECONDS

start a -- --name a@127.0.0.1:0 --preset local
start b -- --name b@127.0.0.1:0 --preset local --join "${name[a]}"
start c -- --name c@127.0.0.1:0 --preset local --join "${name[a]}"
say "${name[a]}, ${name[b]} and ${name[c]} run, each in a process of its own."

for node in a b c; do
    within 20 "$node sees all three alive" answers "$node" who "$(view a=alive b=alive c=alive)"
    within 10 "$node finds nothing wrong" answers "$node" health "health healthy"
    say "$node: $(ask "$node" who)"
done

within 20 "b is ready" said b "* ready"
[ "$(ask b register desk)" = "register desk" ] || fail "b cannot register a name"
for node in a c; do
    within 10 "$node knows the name" answers "$node" names "names desk=${name[b]}"
done
[ "$(ask a watch desk)" = "watch desk" ] || fail "a cannot watch the name"
[ "$(ask c send desk hello)" = "send desk" ] || fail "c cannot send to the name"
within 10 "b has the message" said b "* message for desk from ${name[c]}: hello"
[ "$(ask a call "${name[c]}" hello)" = "call HELLO" ] || fail "a cannot call c"
say "b registered a name, which a and c know; c sent to it; a called c."

crash b
say "b is killed."
for node in a c; do
    within 40 "$node sees b dead" answers "$node" who "$(view a=alive b=dead c=alive)"
    [ "$(ask "$node" names)" = names ] || fail "$node still knows the name of b: $(ask "$node" names)"
    say "$node: $(ask "$node" who); $(ask "$node" health)"
done
within 10 "a is told that the desk is gone" said a "* gone desk: "
say "a: $(grep -F '* gone desk' "$work/a.log" | cut -c3-)"

start b -- --name "${name[b]}" --preset local --join "${name[a]}"
for node in a b c; do
    within 20 "$node sees b alive again" answers "$node" who "$(view a=alive b=alive c=alive)"
done
within 10 "b is ready" said b "* ready"
[ "$(ask b names)" = names ] || fail "b has a name from its former life: $(ask b names)"
say "b is started again under its name. b: $(ask b who)"

leave c
within 10 "a sees that c left" answers a who "$(view a=alive b=alive c=left)"
say "c left in good order. a: $(ask a who); $(ask a health)"

commands='wait 3\nready\nregister pipe\nsend pipe hello\ncall %s hello\n'
answers=$(printf "$commands" "${name[a]}" | timeout 60 "$(node_program)" --script "${identity[@]}" \
    --name d@127.0.0.1:0 --preset local --join "${name[a]}" | grep -v '^\*')
name[d]=$(sed -n 's/^node //p' <<<"$answers")
expected=("node ${name[d]}" "wait ${name[a]} ${name[b]} ${name[d]}" ready "register pipe" "send pipe" "call HELLO" bye)
diff <(printf '%s\n' "${expected[@]}") - <<<"$answers" || fail "d, with commands from a pipe, should have said the lines marked <"
within 10 "a sees that d left" answers a who "$(view a=alive b=alive c=left d=left)"
say "d joined, did what it was told by a pipe, and left when that ended. a: $(ask a who)"

leave b
leave a
say "Every node said of every member what it should."
