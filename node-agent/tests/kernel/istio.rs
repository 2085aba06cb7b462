//! A namespace as istio-cni leaves it, made by the programs that istio-cni runs.

use crate::fixture::Ns;

const IPTABLES: [&str; 2] = [
    include_str!("../../../shared/tests/istio-cni/pod4.restore"),
    include_str!("../../../shared/tests/istio-cni/pod6.restore"),
];
const NATIVE: &str = include_str!("../../../shared/tests/istio-cni/pod.nft");

/// How istio-cni programs pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// `iptables-legacy`
    Legacy,
    /// `iptables-nft`
    Nft,
    /// `nft`, tables of its own (`nativeNftables`)
    Native,
}

/// The source that its host rules give the kubelet's probes.
const PROBES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

impl Programs {
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Nft, Self::Native];

    fn restore(self, ns: &Ns, v6: bool, script: &str) {
        let kind = if self == Self::Legacy { "legacy" } else { "nft" };
        let program = format!("ip{}tables-{kind}-restore", if v6 { "6" } else { "" });
        ns.command(&program, &["--noflush"], script);
    }
}

/// Captures a pod as istio-cni does with everything switched on: DNS, IPv6, and one virtual interface.
pub fn capture(pod: &Ns, by: Programs) {
    for (family, any) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        pod.ip(&format!("{family} route replace local {any} dev lo table 100 scope host"));
        pod.ip(&format!("{family} rule add fwmark 0x111/0xfff lookup 100 pref 32764"));
    }
    match by {
        Programs::Native => drop(pod.nft(NATIVE)),
        _ => [false, true].into_iter().for_each(|v6| by.restore(pod, v6, IPTABLES[usize::from(v6)])),
    }
}

/// Gives the kubelet's probes of these pods their source, as istio-cni does on the host.
pub fn exempt_probes(host: &Ns, by: Programs, pods: &[&str]) {
    if by == Programs::Native {
        let of = |v6: bool| {
            let of = |ip: &&&str| ip.contains(':') == v6;
            let elements: Vec<&str> = pods.iter().filter(of).copied().collect();
            format!("elements = {{ {} }};", elements.join(", "))
        };
        host.nft(&format!(
            "table inet istio-ambient-nat {{\n\
             set istio-inpod-probes-v4 {{ type ipv4_addr; {} }}\n\
             set istio-inpod-probes-v6 {{ type ipv6_addr; {} }}\n\
             chain postrouting {{ type nat hook postrouting priority 100;\n\
             meta l4proto tcp skuid 0 ip daddr @istio-inpod-probes-v4 counter snat ip to {}\n\
             meta l4proto tcp skuid 0 ip6 daddr @istio-inpod-probes-v6 counter snat ip6 to {}\n}}\n}}\n",
            of(false),
            of(true),
            PROBES[0],
            PROBES[1],
        ));
        return;
    }
    for (v6, family) in [(false, "inet"), (true, "inet6")] {
        let set = format!("istio-inpod-probes-v{}", if v6 { 6 } else { 4 });
        host.command("ipset", &["create", &set, "hash:ip", "family", family, "comment"], "");
        for pod in pods.iter().filter(|pod| pod.contains(':') == v6) {
            host.command("ipset", &["add", &set, pod, "comment", "a-uid"], "");
        }
        by.restore(
            host,
            v6,
            &format!(
                "*nat\n:ISTIO_POSTRT - [0:0]\n-I POSTROUTING 1 -j ISTIO_POSTRT\n\
                 -A ISTIO_POSTRT -m owner --socket-exists -p tcp -m set --match-set {set} dst -j SNAT --to-source {}\n\
                 COMMIT\n",
                PROBES[usize::from(v6)],
            ),
        );
    }
}
