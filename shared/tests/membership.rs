//! What the plugin does with no agent to ask: never open for a namespace of the mesh, never in the way of others.

use sluice_shared::membership::WhenAgentUnavailable::{Auto, FailClosed, Pass};
use sluice_shared::membership::*;
use std::collections::BTreeMap;

fn membership(when_agent_unavailable: WhenAgentUnavailable) -> Membership {
    let namespaces = [("in", Standing::In), ("out", Standing::Out), ("held", Standing::Held)]
        .map(|(name, standing)| (name.to_owned(), standing));
    Membership { when_agent_unavailable, namespaces: BTreeMap::from(namespaces), ..Membership::default() }
}

#[test]
fn every_standing_under_every_setting() {
    let cases = [
        // namespace, waits under: auto, fail-closed, pass
        ("in", [true, true, true]),
        ("out", [false, false, false]),
        ("held", [true, true, false]),
        ("unknown", [false, true, false]),
    ];
    for (namespace, expected) in cases {
        let waits = [Auto, FailClosed, Pass]
            .map(|setting| matches!(without_agent(Some(&membership(setting)), namespace), Fallback::Wait(_)));
        assert_eq!(waits, expected, "{namespace}");
    }
}

#[test]
fn where_no_agent_has_served_everything_passes() {
    assert!(matches!(without_agent(None, "in"), Fallback::Pass(_)));
}

#[test]
fn every_answer_says_why() {
    for setting in [Auto, FailClosed, Pass] {
        for namespace in ["in", "out", "held", "unknown"] {
            let (Fallback::Pass(why) | Fallback::Wait(why)) =
                without_agent(Some(&membership(setting)), namespace);
            assert!(why.contains("namespace"), "{why}");
        }
    }
}

#[test]
fn the_file_survives_a_round_trip_and_an_older_one_is_read() {
    let written = serde_json::to_string(&membership(FailClosed)).unwrap();
    assert_eq!(serde_json::from_str::<Membership>(&written).unwrap(), membership(FailClosed));
    let sparse: Membership = serde_json::from_str(r#"{"version":1}"#).unwrap();
    assert_eq!(sparse, Membership::default());
    assert_eq!(sparse.when_agent_unavailable, Auto);
    let text = r#"{"version":1,"whenAgentUnavailable":"fail-closed","namespaces":{"a":"held"}}"#;
    let read: Membership = serde_json::from_str(text).unwrap();
    assert_eq!((read.when_agent_unavailable, read.namespaces["a"]), (FailClosed, Standing::Held));
}
