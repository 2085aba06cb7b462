//! What breaks around the agent, and what must go on all the same.

mod agent;
mod input;
mod ztunnel;

use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::scene::BACKENDS;
use sluice_e2e::lab::suite::{self, test};

fn main() {
    let mut tests = vec![
        test("a_dead_agent_fails_closed_and_loses_nothing", agent::dead),
        test("a_hung_agent_delays_nobody_for_long", agent::hung),
        test("an_agent_that_nobody_can_reach_is_not_ready", agent::unreachable),
        test("an_agent_killed_in_mid_add_leaves_nothing_half_done", agent::killed_in_mid_add),
        test("a_ztunnel_restart_refuses_no_connection", ztunnel::restart),
        test("a_ztunnel_upgrade_refuses_no_connection", ztunnel::upgrade),
        test("a_hung_ztunnel_is_dropped_for_the_next", ztunnel::hung),
        test("a_pod_that_ztunnel_refuses_is_not_enabled", ztunnel::refuses),
        test("a_pods_file_with_mistakes_changes_nothing", input::pods_file),
        test("bad_messages_are_answered_and_change_nothing", input::messages),
        test("callers_that_are_not_root_are_refused", input::not_root),
        test("garbage_on_the_ztunnel_socket_changes_nothing", input::ztunnel_socket),
    ];
    for backend in BACKENDS {
        let name = format!("{backend}::a_ztunnel_that_stays_away_gives_an_error_in_the_end");
        tests.push(test(name, move |outer: &Outer| ztunnel::stays_away(outer, backend)));
    }
    suite::run("faults", tests);
}
