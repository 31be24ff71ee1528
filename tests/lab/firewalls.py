"""Rules of NAT routers and of hosts that drop inbound packets, as text for `nft -f -` and as commands."""

from __future__ import annotations

from typing import Literal

#: easy: the mapping keeps the source port, so a node that learned it from one peer can use it for another. symmetric:
#: another port for every destination.
NatKind = Literal["easy", "symmetric"]
#: The destinations that a router allows its LAN: all; all but UDP; web servers with TLS only; only itself (where a
#: proxy may run).
Outbound = Literal["all", "no-udp", "tcp-443", "nothing"]
#: The tools for a host's firewall.
FirewallKind = Literal["nft", "iptables", "ufw"]

_MASQUERADE = {"easy": "masquerade", "symmetric": "masquerade random,fully-random"}
_ACCEPTED = {
    "all": "accept",
    "no-udp": "meta l4proto != udp accept",
    "tcp-443": "tcp dport 443 accept",
    "nothing": "drop",
}


def nat_rules(kind: NatKind, outbound: Outbound = "all", *, wan: str = "wan", lan: str = "lan") -> str:
    """Return the rules of a home router: the LAN may open connections, nothing new comes in.

    New packets on the WAN side are dropped, not rejected: a rejected packet leaves a conntrack entry behind which makes
    the next outgoing mapping take another port, unlike home routers do. Destinations that are not allowed for the LAN
    are dropped too.
    """
    return f"""
table inet router {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{wan}" ct state new drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "{lan}" oifname "{wan}" {_ACCEPTED[outbound]}
    }}
}}
table ip router_nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{wan}" {_MASQUERADE[kind]}
    }}
}}
"""


#: A router that sends no report when a packet was too large for its next link.
EAT_ICMP = """
table ip eats_icmp {
    chain output {
        type filter hook output priority filter; policy accept;
        icmp type destination-unreachable drop
    }
}
"""

_NFT_DROP_INBOUND = """nft -f - <<'RULES'
table inet host_firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state established,related accept
    }
}
RULES"""
_IPTABLES_DROP_INBOUND = """set -e
for tables in iptables ip6tables; do
    $tables -A INPUT -i lo -j ACCEPT
    $tables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    $tables -P INPUT DROP
done"""
# The machine's own ufw configuration was copied with /etc: start with the package's.
_UFW_DROP_INBOUND = """set -e
ufw --force reset
ufw default deny incoming
ufw --force enable"""

#: Shell text that makes a host drop unsolicited packets (ping included, except with ufw, which accepts ping).
DROP_INBOUND: dict[FirewallKind, str] = {
    "nft": _NFT_DROP_INBOUND,
    "iptables": _IPTABLES_DROP_INBOUND,
    "ufw": _UFW_DROP_INBOUND,
}
