//! Who may be entered, and what comes out of it.

use crate::fixture::{Ns, World, kernel, plan};
use sluice_agent::kernel::{Kernel, KernelError, Netns, Pool};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::nft;
use sluice_shared::op::{KernelOp, NftBatch};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("the_hosts_namespace_is_refused_whatever_the_handle_says", host_is_refused),
    ("what_is_no_netns_is_refused", no_netns),
    ("a_job_that_was_in_a_pod_and_panics_costs_its_thread_only", panic_restores),
    ("every_refused_message_is_named", refusals_are_named),
    ("a_batch_larger_than_the_socket_buffer_commits", large_batch),
    ("jobs_run_in_the_pod_and_come_back", comes_back),
];

fn host_is_refused() {
    let kernel = kernel();
    let path = Path::new("/proc/self/ns/net");
    let open = kernel.open(path).expect_err("the host's namespace was opened as a pod's");
    assert!(matches!(open, KernelError::HostNetns { .. }), "{open}");
    let adopt = kernel.adopt(File::open(path).expect("open").into()).expect_err("it was adopted");
    assert!(adopt.to_string().contains("pods' rules are never written there"), "{adopt}");
    // A handle that lies about what it holds.
    let pod = World::new();
    let forged = Netns::new(File::open(path).expect("open").into(), pod.netns.id());
    let before = std::fs::read_to_string("/proc/self/net/route").expect("read");
    let plan = plan();
    let ops = lower(Backend::Nftables, Step::Enroll { plan: &plan, live: true });
    let run = kernel.run(&forged, &ops).expect_err("rules were written to the host's namespace");
    assert!(matches!(run, KernelError::HostNetns { .. }), "{run}");
    assert_eq!(before, std::fs::read_to_string("/proc/self/net/route").expect("read"));
}

fn no_netns() {
    let kernel = kernel();
    for (path, why) in [
        ("/proc/self/ns/none", "No such file"),
        ("/proc/self/ns/mnt", "another type"),
        ("/proc/self/status", "not a namespace"),
        ("/tmp", "not a namespace"),
    ] {
        let error = kernel.open(Path::new(path)).expect_err(path);
        assert!(matches!(error, KernelError::NotANetns { .. }), "{path}: {error}");
        assert!(error.to_string().contains(why), "{path}: {error}");
    }
    let adopted = kernel.adopt(File::open("/dev/null").expect("open").into()).expect_err("/dev/null");
    assert!(adopted.to_string().contains("not a namespace"), "{adopted}");
}

fn own_inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").expect("stat").ino()
}

fn comes_back() {
    let world = World::new();
    let home = own_inode();
    let addresses = world.kernel.addresses(&world.netns).expect("addresses");
    assert!(addresses.contains(&"10.7.0.2".parse().expect("address")), "{addresses:?}");
    assert!(!addresses.iter().any(std::net::IpAddr::is_loopback), "{addresses:?}");
    assert_eq!(own_inode(), home);
}

fn panic_restores() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let home = own_inode();
    let pod = Ns::new();
    let kernel = Arc::new(kernel());
    let netns = Arc::new(kernel.adopt(pod.fd()).expect("adopt"));
    let pool = Pool::new(kernel, Some(1)).expect("pool");
    let inside = Arc::clone(&netns);
    let failed = runtime.block_on(pool.run(move |kernel| -> Result<(), KernelError> {
        kernel.observe(&inside)?;
        panic!("on purpose")
    }));
    assert!(failed.expect_err("a panic is an error").to_string().contains("on purpose"));
    let there = runtime.block_on(pool.run(|_| Ok(own_inode()))).expect("the next job runs");
    assert_eq!(there, home);
}

fn refusals_are_named() {
    let world = World::new();
    let plan = plan();
    let [.., KernelOp::NftBatch(batch)] = &lower(Backend::Nftables, Step::Replace(&plan))[..] else {
        panic!("a replacement ends with a batch")
    };
    // The second message's type becomes one that nf_tables does not have.
    let mut bytes = batch.bytes.clone();
    let first = u32::from_ne_bytes(bytes[0..4].try_into().expect("4 bytes")) as usize;
    bytes[first + 4] = 0x7f;
    let broken = NftBatch { bytes, labels: batch.labels.clone() };
    let error = world.kernel.run(&world.netns, &[KernelOp::NftBatch(broken)]).expect_err("it is broken");
    assert!(error.to_string().contains(&format!("message 1, {}", batch.labels[1])), "{error}");
    assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, None, "all or nothing");
}

fn large_batch() {
    use sluice_shared::plan::{Flow, Older, Stage};
    let world = World::new();
    let flows = (0..20_000_u32).map(|n| Flow {
        local: ("10.7.0.2".parse().expect("address"), 1024 + (n % 60_000) as u16),
        remote: (std::net::Ipv4Addr::from(0x0a08_0000 + n).into(), 443),
    });
    let flows: BTreeSet<Flow> = flows.collect();
    let stage = Stage::Redirect(Older::Kept(flows.clone()));
    let plan = sluice_shared::plan::RedirectPlan { stage, ..plan() };
    let ops = lower(Backend::Nftables, Step::Enroll { plan: &plan, live: true });
    world.kernel.run(&world.netns, &ops).expect("a batch of megabytes");
    // At once: the kernel would still be moving the elements of a set that had no size.
    let shown = world.kernel.observe(&world.netns).expect("observe").rules;
    let read = world.kernel.kept_flows(&world.netns).expect("read back");
    assert_eq!(read.len(), flows.len());
    assert!(read == flows, "other connections than those written");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(world.kernel.observe(&world.netns).expect("observe").rules, shown);
    world.kernel.run(&world.netns, &[KernelOp::NftBatch(nft::remove())]).expect("remove");
}
