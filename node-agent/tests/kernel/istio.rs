//! A namespace as istio-cni leaves it, made by the programs that istio-cni runs.

use crate::fixture::Ns;
use std::fmt::Write;

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
        Programs::Native => drop(pod.nft(&native())),
        _ => [false, true].into_iter().for_each(|v6| by.restore(pod, v6, &iptables(v6))),
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

fn iptables(v6: bool) -> String {
    let (here, probe) = if v6 { ("::1/128", PROBES[1]) } else { ("127.0.0.1/32", PROBES[0]) };
    let not_ztunnel = "-m mark ! --mark 0x539/0xfff";
    let tables: [(&str, &[String]); 3] = [
        (
            "mangle",
            &[
                "ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff".into(),
                "ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask \
                 0xffffffff"
                    .into(),
            ],
        ),
        (
            "nat",
            &[
                "ISTIO_PRERT -i virt0 -p tcp -j REDIRECT --to-ports 15001".into(),
                "ISTIO_PRERT -i virt0 -p tcp -j RETURN".into(),
                format!("ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT"),
                format!("ISTIO_PRERT ! -d {here} -p tcp ! --dport 15008 {not_ztunnel} -j REDIRECT --to-ports 15006"),
                format!("ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT"),
                format!("ISTIO_OUTPUT ! -o lo -p udp {not_ztunnel} -m udp --dport 53 -j REDIRECT --to-port 15053"),
                format!("ISTIO_OUTPUT ! -d {here} -p tcp --dport 53 {not_ztunnel} -j REDIRECT --to-ports 15053"),
                "ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT".into(),
                format!("ISTIO_OUTPUT ! -d {here} -o lo -j ACCEPT"),
                format!("ISTIO_OUTPUT ! -d {here} -p tcp {not_ztunnel} -j REDIRECT --to-ports 15001"),
            ],
        ),
        (
            "raw",
            &[
                "ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1".into(),
                format!("ISTIO_PRERT -p udp {not_ztunnel} -m udp --sport 53 -j CT --zone 1"),
            ],
        ),
    ];
    let mut script = String::new();
    for (table, rules) in tables {
        let _ = writeln!(script, "*{table}\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]");
        let _ = writeln!(script, "-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT");
        for rule in rules {
            let _ = writeln!(script, "-A {rule}");
        }
        script.push_str("COMMIT\n");
    }
    script
}

fn native() -> String {
    let [v4, v6] = PROBES;
    let not_ztunnel = "mark and 0xfff != 0x539";
    let table = |name: &str, kind: &str, out: &str, priority: i32, chains: &str| {
        format!(
            "table inet istio-ambient-{name} {{\n\
             chain prerouting {{ type {kind} hook prerouting priority {priority}; jump istio-prerouting; }}\n\
             chain output {{ type {out} hook output priority {priority}; jump istio-output; }}\n{chains}}}\n"
        )
    };
    let chain = |name: &str, rules: &[String]| format!("chain istio-{name} {{\n{}\n}}\n", rules.join("\n"));
    let nat = chain(
        "prerouting",
        &[
            "iifname virt0 meta l4proto tcp counter redirect to :15001".into(),
            "iifname virt0 meta l4proto tcp counter return".into(),
            format!("meta l4proto tcp ip saddr {v4} counter accept"),
            format!("meta l4proto tcp ip6 saddr {v6} counter accept"),
            format!("ip daddr != 127.0.0.1/32 tcp dport != 15008 {not_ztunnel} counter redirect to :15006"),
            format!("ip6 daddr != ::1/128 tcp dport != 15008 {not_ztunnel} counter redirect to :15006"),
        ],
    ) + &chain(
        "output",
        &[
            format!("meta l4proto tcp ip daddr {v4} counter accept"),
            format!("meta l4proto tcp ip6 daddr {v6} counter accept"),
            format!("oifname != lo {not_ztunnel} udp dport 53 counter redirect to :15053"),
            format!("ip daddr != 127.0.0.1/32 tcp dport 53 {not_ztunnel} counter redirect to :15053"),
            format!("ip6 daddr != ::1/128 tcp dport 53 {not_ztunnel} counter redirect to :15053"),
            "meta l4proto tcp mark and 0xfff == 0x111 counter accept".into(),
            "oifname lo ip daddr != 127.0.0.1/32 counter accept".into(),
            "oifname lo ip6 daddr != ::1/128 counter accept".into(),
            format!("meta l4proto tcp ip daddr != 127.0.0.1/32 {not_ztunnel} counter redirect to :15001"),
            format!("meta l4proto tcp ip6 daddr != ::1/128 {not_ztunnel} counter redirect to :15001"),
        ],
    );
    let mangle = chain(
        "prerouting",
        &["meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111".into()],
    ) + &chain("output", &["ct mark and 0xfff == 0x111 counter meta mark set ct mark".into()]);
    let raw = chain("output", &["udp dport 53 meta mark and 0xfff == 0x539 counter ct zone set 1".into()])
        + &chain("prerouting", &["udp sport 53 meta mark and 0xfff != 0x539 counter ct zone set 1".into()]);
    table("nat", "nat", "nat", -100, &nat)
        + &table("mangle", "filter", "route", -150, &mangle)
        + &table("raw", "filter", "filter", -300, &raw)
}
