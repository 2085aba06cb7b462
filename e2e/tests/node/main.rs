//! The agent on its node: what it watches, what its settings do, and how it stands up to a ztunnel that comes anew.

mod backends;
mod contained;
mod guard;
mod ipv6;
mod listeners;
mod many;
mod migration;
mod pretender;
mod probes;
mod selftest;
mod times;

use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::BACKENDS;
use sluice_e2e::lab::suite::{self, test};

type OnBackend = fn(&Outer, &'static str) -> anyhow::Result<()>;

fn main() {
    let mut tests = vec![
        test("closed_listeners_are_seen_and_opened_again", listeners::closed),
        test("in_a_container_with_few_capabilities_everything_works", contained::everything_works),
        test("without_any_of_its_capabilities_the_agent_says_so", contained::every_capability_is_needed),
        test("a_pod_of_the_mesh_that_pretends_to_be_ztunnel_is_turned_away", pretender::of_the_mesh),
        test("who_pretends_to_be_ztunnel_gets_no_pod_past_the_mesh", pretender::nobody_knows),
        test("a_new_ztunnel_gets_its_snapshot_of_sixty_pods_soon", many::snapshot),
    ];
    tests.extend([
        test("probes_by_cookie_pass_and_nobody_else_does", probes::cookie),
        test("where_no_cookie_works_status_says_why", probes::no_cookie),
        test("where_the_kubelet_has_no_cgroup_status_says_why", probes::no_cgroup),
        test("probes_by_cookie_pass_over_a_restart_of_the_agent", |outer: &Outer| {
            probes::over_a_restart(outer, "nftables", "cookie")
        }),
    ]);
    tests.extend(
        selftest::CASES.iter().map(|case| test(case.name, |outer: &Outer| selftest::takes(outer, case))),
    );
    tests.extend([
        test("probes_pass_while_auto_changes_its_choice", selftest::without_a_gap),
        test("a_restarted_agent_goes_on_with_the_probes_that_were_chosen", selftest::over_a_restart),
        test("probes_that_the_operator_chose_are_tested_and_kept", selftest::of_the_operators_choice),
        test("a_pod_that_breaks_the_self_test_does_not_weaken_the_node", selftest::of_a_pod_that_lies),
        test("a_changed_topology_is_tested_anew", selftest::when_the_topology_changes),
        test("in_a_container_the_agent_can_test_every_strategy", selftest::in_a_container),
    ]);
    for by in ["legacy", "nft", "native"] {
        let name = format!("pods_of_istio_cni_by_{by}_are_taken_over_under_load");
        tests.push(test(name, move |outer: &Outer| migration::taken_over(outer, by)));
    }
    for backend in BACKENDS {
        let on_each: [(&str, OnBackend); 7] = [
            ("a_ztunnel_in_a_new_cgroup_passes_and_a_forged_mark_does_not", guard::new_cgroup),
            ("another_backend_takes_over_from_it_and_gives_way_to_it", backends::changed),
            ("probes_by_source_reach_declared_ports_only", probes::source),
            ("no_probe_passes_with_none", probes::none),
            ("probes_pass_over_a_restart_of_the_agent", |outer, backend| {
                probes::over_a_restart(outer, backend, "snat")
            }),
            ("ipv6_is_left_alone_when_off", ipv6::off),
            ("drift_is_healed_in_time_or_twice_that_when_loaded", times::of_drift),
        ];
        for (name, body) in on_each {
            tests.push(test(format!("{backend}::{name}"), move |outer: &Outer| body(outer, backend)));
        }
    }
    suite::run("node", tests);
}
