//! What must always be true of captured pods, of others, and of the host: by behaviour, on both backends.

mod closed;
mod drift;
mod others;
mod paths;

use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::BACKENDS;
use sluice_e2e::lab::suite::{self, test};
use sluice_e2e::lab::topology::Families;

type OnBackend = fn(&Outer, &'static str) -> anyhow::Result<()>;

fn main() {
    let mut tests = Vec::new();
    for backend in BACKENDS {
        for (name, families) in [("v4", Families::V4), ("v6", Families::V6), ("dual", Families::Dual)] {
            tests.push(test(format!("{backend}::{name}::captured_both_ways"), move |outer: &Outer| {
                paths::captured_both_ways(outer, backend, families)
            }));
        }
        let on_each: [(&str, OnBackend); 10] = [
            ("annotations_change_a_live_pod", paths::annotations),
            ("a_forged_mark_is_captured", paths::forged_mark),
            ("nothing_leaves_before_the_ack", closed::before_the_ack),
            ("no_ztunnel_no_pod", closed::no_ztunnel),
            ("drift_in_a_pod_is_healed", drift::in_a_pod),
            ("drift_on_the_host_is_healed", drift::on_the_host),
            ("the_hosts_namespace_is_refused", others::hosts_namespace),
            ("another_pods_namespace_is_refused", others::another_pods_namespace),
            ("others_start_with_everything_dead", others::start_with_everything_dead),
            ("an_unknown_membership_is_never_allow", closed::unknown_membership),
        ];
        for (name, body) in on_each {
            tests.push(test(format!("{backend}::{name}"), move |outer: &Outer| body(outer, backend)));
        }
    }
    suite::run("invariants", tests);
}
