//! Which backend a node gets, found by trying.

use crate::child;
use crate::fixture::{Ns, Way, kernel, plan};
use sluice_agent::kernel::linux::LinuxKernel;
use sluice_agent::kernel::linux::iptables::Variant;
use sluice_agent::kernel::{Kernel, KernelError};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::op::KernelOp;
use std::os::unix::fs::symlink;
use std::path::Path;

pub const TESTS: &[(&str, fn())] = &[
    ("nftables_is_taken_where_it_works", prefers_nftables),
    ("what_the_operator_chose_is_tried_too", chosen),
    ("iptables_programs_are_found_by_trying", iptables_found),
    ("without_programs_iptables_says_what_is_missing", without_programs),
    ("a_script_that_fails_names_its_line", failing_script),
    ("the_mark_guard_is_tried_as_the_plan_is", guard),
    ("a_mark_guard_that_iptables_refuses_is_found_out", guard_refused),
    ("trying_host_rules_leaves_the_host_alone", try_host),
];

fn prefers_nftables() {
    let (backend, because) = kernel().probe_backends(&plan(), None).expect("one works");
    assert_eq!(backend, Backend::Nftables);
    assert!(because.contains("the whole plan"), "{because}");
}

fn chosen() {
    let (backend, because) = kernel().probe_backends(&plan(), Some(Backend::Iptables)).expect("it works");
    assert_eq!(backend, Backend::Iptables);
    assert!(because.contains("chosen by the configuration"), "{because}");
}

fn iptables_found() {
    let kernel = kernel();
    assert_eq!(kernel.probe_iptables(&plan()).expect("one works"), Variant::Default);
    // Without a probe it is found when it is needed.
    let world = crate::fixture::World::new();
    let plan = plan();
    let ops = lower(Backend::Iptables, Step::Enroll { plan: &plan, live: false });
    world.kernel.run(&world.netns, &ops).expect("enrol");
    assert!(world.kernel.observe(&world.netns).expect("observe").rules.is_some());
}

fn without_programs() {
    let said = child::probe_iptables_without_programs();
    for program in ["iptables: ", "iptables-legacy: ", "iptables-nft: "] {
        assert!(said.contains(program), "{said}");
    }
    assert!(said.contains("No such file"), "{said}");
    // What to do about it, once and not for each program.
    assert_eq!(said.matches("an image that has iptables too").count(), 1, "{said}");
}

fn guard() {
    for way in Way::ALL {
        let kernel = kernel();
        if let Way::Iptables(variant) = way {
            kernel.use_iptables(variant);
        }
        kernel.guard_works(way.backend(), &plan()).expect("this kernel can");
    }
}

/// An iptables that takes every plan but one with a guard.
fn guard_refused() {
    let installed = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .map(|parent| Path::new(parent).join("xtables"));
    let installed = installed.iter().find(|path| path.is_dir()).expect("iptables' extensions");
    // On the tests' own /run.
    let directory = Path::new("/run/xtables-without-cgroup");
    std::fs::create_dir_all(directory).expect("make a directory");
    for extension in std::fs::read_dir(installed).expect("list").flatten() {
        if extension.file_name() != "libxt_cgroup.so" {
            symlink(extension.path(), directory.join(extension.file_name())).expect("link");
        }
    }
    let said = child::guard_with_extensions_in(directory);
    assert!(said.starts_with("Err") && said.contains("cgroup"), "{said}");
}

fn failing_script() {
    let world = crate::fixture::World::new();
    let mut ops = lower(Backend::Iptables, Step::Enroll { plan: &plan(), live: false });
    for op in &mut ops {
        if let KernelOp::IptablesRestore(script) = op {
            script.text = script.text.replacen("-j RETURN", "-j NOWHERE", 1);
        }
    }
    for variant in [Variant::Legacy, Variant::Nft] {
        world.kernel.use_iptables(variant);
        let error = world.kernel.run(&world.netns, &ops).expect_err("there is no such target");
        assert!(error.to_string().contains("NOWHERE"), "{variant}: {error}");
        assert!(matches!(error, KernelError::Call { .. }));
    }
}

fn try_host() {
    let host = Ns::new();
    host.run(|| {
        let kernel = LinuxKernel::new(Path::new("/proc/thread-self/ns/net")).expect("own namespace");
        let before = host.snapshot();
        let ops = lower(Backend::Nftables, Step::Replace(&plan()));
        kernel.try_host(&ops).expect("this kernel can");
        assert_eq!(host.snapshot(), before);
        assert_eq!(kernel.observe_host().expect("observe"), None);
    });
}
