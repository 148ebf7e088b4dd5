#!/usr/bin/env bash
# Three network namespaces as three hosts on one switch, each with an address, a process and a certificate of its own; with
# delay and loss where the kernel has them. One host is cut off and comes back, and every node's view is checked each time.
#
#   examples/hosts.sh
#
# Needs `ip` (iproute2) and the right to make namespaces: root, or user namespaces for everybody. Ends with 0 if all is as
# it should be, and with 77, after saying why, where the machine does not allow it.
cd "$(dirname "$0")/.."

skip() { echo "SKIPPED: $*" >&2; exit 77; }

if [ "${1-}" != --inside ]; then
    command -v ip >/dev/null || skip "there is no ip: install iproute2"
    command -v unshare >/dev/null || skip "there is no unshare: install util-linux"
    cargo build --quiet --locked --example node --example certs
    # In namespaces of its own, which end with this script and take all processes and devices along.
    own=(--net --mount --pid --fork --kill-child)
    for as in "--user --map-root-user" ""; do
        if unshare $as "${own[@]}" sh -c 'mount -t tmpfs none /run && ip link add test type bridge' 2>/dev/null; then
            exec unshare $as "${own[@]}" examples/hosts.sh --inside
        fi
    done
    skip "this machine allows no network namespaces with bridges, neither to users nor to $(id -un)"
fi

. examples/common/cluster.sh
mount -t tmpfs none /run # where `ip netns` keeps its names
trap 'clean_up' EXIT

ip link add switch type bridge
ip link set switch up
for host in 1 2 3; do
    ip netns add "host$host"
    ip link add "port$host" type veth peer name eth0 netns "host$host"
    ip link set "port$host" master switch up
    ip -n "host$host" address add "10.77.0.$host/24" dev eth0
    ip -n "host$host" link set eth0 up
    ip -n "host$host" link set lo up
done

# What a packet meets on its way to a host.
impairments() {
    local host
    if tc qdisc add dev port1 root netem 2>/dev/null; then
        for host in 1 2 3; do tc qdisc replace dev "port$host" root netem delay 10ms 2ms loss 1%; done
        echo "10 ± 2 ms of delay each way, and 1 % of loss"
    elif nft add table bridge faults 2>/dev/null; then
        nft 'add chain bridge faults forward { type filter hook forward priority 0; }'
        nft add rule bridge faults forward ip protocol udp numgen random mod 100 '<' 1 drop
        echo "1 % of loss, but no delay: this kernel has no netem"
    else
        echo "neither delay nor loss: this machine has neither netem nor nft"
    fi
}

say "Three hosts: 10.77.0.1 to 10.77.0.3, with $(impairments)."
# Each host has a certificate in the name of its node, and they share no cookie.
"$(dirname "$(node_program)")/certs" --out "$work/pki" --node a@10.77.0.1 --node b@10.77.0.2 --node c@10.77.0.3 >/dev/null
identity=(--pki "$work/pki")
start a ip netns exec host1 -- --name a@10.77.0.1
start b ip netns exec host2 -- --name b@10.77.0.2 --join a@10.77.0.1
start c ip netns exec host3 -- --name c@10.77.0.3 --join a@10.77.0.1 --join b@10.77.0.2

for node in a b c; do
    within 30 "$node sees all three alive" answers "$node" who "$(view a=alive b=alive c=alive)"
    within 30 "$node is ready" said "$node" "* ready"
    say "$node: $(ask "$node" who)"
done
[ "$(ask a call c@10.77.0.3 hello)" = "call HELLO" ] || fail "a cannot call c"
say "a called c, whose round trip is $(ask a ping c@10.77.0.3 | cut -d' ' -f2)."

# Both sides will claim a name that has been somebody's before.
[ "$(ask a register desk)" = "register desk" ] || fail "a cannot register a name"
for node in b c; do within 20 "$node knows the name" answers "$node" names "names desk=${name[a]}"; done
[ "$(ask a unregister desk)" = "unregister desk" ] || fail "a cannot unregister its name"
for node in b c; do within 20 "$node knows that it is free" answers "$node" names names; done

ip link set port3 nomaster
say "The cable of c is pulled."
for node in a b; do
    within 60 "$node sees c dead" answers "$node" who "$(view a=alive b=alive c=dead)"
    say "$node: $(ask "$node" who); $(ask "$node" health)"
done
within 60 "c sees the others dead" answers c who "$(view a=dead b=dead c=alive)"
say "c: $(ask c who); $(ask c health)"
error=$(ask a call c@10.77.0.3 hello)
[[ $error == "error call: "* ]] || fail "a called c, which is cut off: $error"
say "a calls c: $error"
for node in a c; do
    [ "$(ask "$node" register desk)" = "register desk" ] || fail "$node cannot register a name"
done
[ "$(ask b names)" = "names desk=a@10.77.0.1:4370" ] || fail "b sees other names: $(ask b names)"
say "Each side goes on alone, and gives the name \"desk\" to a mailbox of its own."

ip link set port3 master switch
say "The cable is back."
# Which of the two claims is the older one the nodes know; here it is enough that they agree.
agree() {
    owner=$(ask a names | sed -n 's/^names desk=\(.\)@.*/\1/p')
    [ -n "$owner" ] || return 1
    for node in a b c; do answers "$node" names "names desk=${name[$owner]}" || return 1; done
}

for node in a b c; do
    within 60 "$node sees all three alive again" answers "$node" who "$(view a=alive b=alive c=alive)"
done
within 30 "all see one owner of the name" agree
for node in a b c; do say "$node: $(ask "$node" who); $(ask "$node" names)"; done
[ "$owner" = a ] && loser=c || loser=a
within 10 "$loser is told that it lost the name" said "$loser" "* lost desk to ${name[$owner]}"
[ "$(ask a call c@10.77.0.3 hello)" = "call HELLO" ] || fail "a cannot call c again"
say "All three see each other again, $owner has the name, and $loser was told that it lost it."

for node in c b a; do leave "$node"; done
say "Every node said of every member what it should."
