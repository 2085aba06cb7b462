//! Whole outputs, a file a feature: `tests/golden/FEATURE.txt` as people read it, `.restore` for iptables, `.nft.hex` for
//! nf_tables. `SLUICE_BLESS=1 cargo test -p sluice-shared` writes them anew; then read the diff.

use super::generate::{cgroup, cookies};
use super::order::{host_plan, istios};
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::host::{self, HostStep};
use sluice_shared::ids::Ifname;
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::netfilter::{from_plan, host_by_label};
use sluice_shared::op::{KernelOp, NftBatch};
use sluice_shared::plan::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

/// A new pod with nothing special.
fn new_pod() -> RedirectPlan {
    RedirectPlan {
        ipv6: true,
        stage: Stage::Redirect(Older::None),
        capture_inbound: true,
        capture_dns: false,
        virtual_interfaces: Vec::new(),
        probe: ProbeDoor::Closed,
        guard: MarkGuard::Off,
        hold: Hold::Drop,
    }
}

fn features() -> Vec<(&'static str, RedirectPlan)> {
    let flow = |local: &str, remote: &str| Flow {
        local: (local.parse().unwrap(), 8080),
        remote: (remote.parse().unwrap(), 40001),
    };
    let older = [flow("10.0.0.5", "192.0.2.7"), flow("fd00::5", "2001:db8::7")];
    let addresses = ["10.0.0.1", "fd00::1"].map(|text| text.parse().unwrap());
    vec![
        ("new-pod", new_pod()),
        ("live-commit", RedirectPlan { stage: Stage::Redirect(Older::AnyMidStream), ..new_pod() }),
        (
            "live-kept",
            RedirectPlan { stage: Stage::Redirect(Older::Kept(BTreeSet::from(older))), ..new_pod() },
        ),
        ("drain", RedirectPlan { stage: Stage::Drain, capture_dns: true, ..new_pod() }),
        ("dns", RedirectPlan { capture_dns: true, ..new_pod() }),
        ("bypass-inbound", RedirectPlan { capture_inbound: false, ..new_pod() }),
        (
            "virtual-interfaces",
            RedirectPlan {
                virtual_interfaces: ["k6t-eth0", "net1"].map(|name| Ifname::new(name).unwrap()).into(),
                ..new_pod()
            },
        ),
        (
            "probe-snat",
            RedirectPlan { probe: ProbeDoor::Snat { v4: PROBE_SOURCE_V4, v6: PROBE_SOURCE_V6 }, ..new_pod() },
        ),
        (
            "probe-source",
            RedirectPlan {
                probe: ProbeDoor::Source {
                    addresses: BTreeSet::from(addresses),
                    ports: BTreeSet::from([8080, 9090]),
                },
                ..new_pod()
            },
        ),
        (
            "probe-cookie",
            RedirectPlan {
                probe: ProbeDoor::Cookie {
                    cookies: cookies()[..2].iter().copied().collect(),
                    addresses: BTreeSet::from(addresses),
                    ports: BTreeSet::from([8080, 9090]),
                },
                ..new_pod()
            },
        ),
        (
            "mark-guard",
            RedirectPlan {
                guard: MarkGuard::Cgroups(["system", "kube/zt", "kube/app"].map(cgroup).into()),
                ..new_pod()
            },
        ),
        ("mark-guard-nobody", RedirectPlan { guard: MarkGuard::Cgroups(BTreeSet::new()), ..new_pod() }),
        ("reject", RedirectPlan { hold: Hold::Reject, ..new_pod() }),
        ("ipv4-only", RedirectPlan { ipv6: false, capture_dns: true, ..new_pod() }),
    ]
}

#[test]
fn outputs_are_as_blessed() {
    let mut stale = Vec::new();
    for (feature, plan) in features() {
        let enroll = Step::Enroll { plan: &plan, live: false };
        compare(&mut stale, format!("{feature}.txt"), &from_plan(&plan).to_string());
        compare(&mut stale, format!("{feature}.restore"), &restore(&lower(Backend::Iptables, enroll)));
        compare(&mut stale, format!("{feature}.nft.hex"), &nft(&lower(Backend::Nftables, enroll)));
    }
    let (plan, install) = (host_plan(), |plan| HostStep::Install(plan));
    compare(&mut stale, "host.txt".to_owned(), &host_by_label(&plan).to_string());
    compare(&mut stale, "host.restore".to_owned(), &restore(&host::lower(Backend::Iptables, install(&plan))));
    compare(&mut stale, "host.nft.hex".to_owned(), &nft(&host::lower(Backend::Nftables, install(&plan))));
    compare(&mut stale, "remove.nft.hex".to_owned(), &nft(&lower(Backend::Nftables, Step::Remove)));
    let take_over = Step::TakeOver { plan: &new_pod(), remains: &istios() };
    compare(&mut stale, "take-over.nft.hex".to_owned(), &nft(&lower(Backend::Nftables, take_over)));
    assert!(stale.is_empty(), "not as blessed: {stale:?}; SLUICE_BLESS=1 writes them anew");
}

fn compare(stale: &mut Vec<String>, name: String, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&name);
    if std::env::var_os("SLUICE_BLESS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, actual).unwrap();
    } else if std::fs::read_to_string(path).unwrap_or_default() != actual {
        // Netlink headers, marks and labels are in the machine's byte order.
        if cfg!(target_endian = "little") || !name.ends_with(".hex") {
            stale.push(name);
        }
    }
}

fn restore(ops: &[KernelOp]) -> String {
    let scripts = ops.iter().filter_map(|op| match op {
        KernelOp::IptablesRestore(script) => Some(format!("# {}\n{}", script.family, script.text)),
        _ => None,
    });
    scripts.collect()
}

/// Each message under its label, 32 bytes a line.
fn nft(ops: &[KernelOp]) -> String {
    let batch = |op: &KernelOp| match op {
        KernelOp::NftBatch(batch) => Some(batch.clone()),
        _ => None,
    };
    let NftBatch { bytes, labels } = ops.iter().find_map(batch).unwrap();
    let mut text = String::new();
    let mut rest = &bytes[..];
    for (sequence, label) in labels.iter().enumerate() {
        let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
        writeln!(text, "# {sequence} {label}").unwrap();
        for line in rest[..length].chunks(32) {
            let words: Vec<String> =
                line.chunks(4).map(|word| word.iter().map(|b| format!("{b:02x}")).collect()).collect();
            writeln!(text, "{}", words.join(" ")).unwrap();
        }
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
    text
}
