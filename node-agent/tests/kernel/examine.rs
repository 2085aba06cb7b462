//! What `sluicectl doctor` tries of the kernel, and that nothing of it is left.

use crate::child;
use crate::fixture::{Ns, kernel};
use crate::packets::TestCgroups;
use sluice_agent::kernel::linux::cgroup;
use sluice_agent::kernel::{Examiner, HostProc, Kernel, ThisKernel};
use std::collections::BTreeSet;

pub const TESTS: &[(&str, fn())] = &[
    ("a_doctor_tries_the_whole_plan_and_leaves_nothing", leaves_nothing),
    ("a_doctor_sees_the_programs_of_others", sees_programs),
    ("what_cannot_be_tried_is_no_fault_of_the_kernel_s", without_rights),
];

fn this_kernel() -> ThisKernel {
    ThisKernel { proc: HostProc::default() }
}

/// Everything that a rule, a route or a socket of ours would change.
fn all_of(ns: &Ns) -> String {
    let ip = |what: &str| ns.command("ip", &what.split(' ').collect::<Vec<_>>(), "");
    let nft = ns.command("nft", &["list", "ruleset"], "");
    [nft, ip("rule"), ip("-6 rule"), ip("route show table all"), ip("-6 route show table all"), ip("-o link")]
        .join("\n")
}

fn leaves_nothing() {
    let host = Ns::new();
    let before = all_of(&host);
    let found = host.run(|| this_kernel().trials().expect("root may try"));
    assert_eq!(all_of(&host), before, "the namespace that it ran in is as it was");
    // What the other tests of this program rely on.
    assert_eq!(found.nftables, Ok(()));
    assert_eq!(found.nftables_v4, None);
    assert!(found.iptables.is_err_and(|why| why.contains("not tried")));
    assert_eq!(found.mark_guard, Ok(Ok(())));
    assert_eq!((found.transparent_v4, found.transparent_v6), (Ok(()), Ok(())));
    assert!(!found.release.is_empty());
}

fn sees_programs() {
    const COOKIES: &str = "sluice_cookie";
    let tree = TestCgroups::new("doctor-programs");
    let kubelet = cgroup::at_path(&HostProc::default(), &tree.path("ztunnel")).expect("the cgroup is there");
    let kernel = kernel();
    let ids = || -> BTreeSet<u32> {
        let facts = this_kernel().bpf().expect("root may list programs");
        assert_eq!(facts.cookies, Ok(()));
        let sock_ops = facts.programs.iter().filter(|program| program.kind == 13 && program.name == COOKIES);
        sock_ops.map(|program| program.id).collect()
    };
    let before = ids();
    kernel.attach_cookies(&kubelet).expect("attach");
    assert!(!ids().is_subset(&before), "a program that is there is seen");
    kernel.detach_cookies(&kubelet).expect("detach");
}

fn without_rights() {
    for capability in ["sys_admin", "net_admin"] {
        let said = child::examined_without(capability);
        assert!(said.starts_with("Err(Unlooked"), "without {capability}: {said}");
        assert!(said.contains("run it as root"), "without {capability}: {said}");
    }
}
