//! The agent on its node: what it watches, what its settings do, and how it stands up to a ztunnel that comes anew.

mod listeners;

use sluice_e2e::lab::suite::{self, test};

fn main() {
    let tests = vec![test("closed_listeners_are_seen_and_opened_again", listeners::closed)];
    suite::run("node", tests);
}
