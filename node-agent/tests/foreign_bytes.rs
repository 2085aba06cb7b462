//! Whatever parses bytes of others answers with a value or a mistake, whatever the bytes are: never a panic, and never
//! a message that could pass for more than one line of a log.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use proptest::prelude::*;
use sluice_agent::source::cni::decode;
use sluice_agent::source::file::Inventory;
use sluice_shared::wire::Verb;

const ADD: &[u8] = br#"{"version":1,"verb":"add","containerId":"c1","ifname":"eth0","netns":"/run/netns/a",
    "pod":{"namespace":"shop","name":"web"},"uid":"u1","ips":["10.0.0.1","fd00::1"]}"#;
const PODS: &[u8] =
    b"namespaces:\n- {name: shop, labels: {a: b}}\npods:\n- uid: u1\n  name: web\n  namespace: shop\n  \
    ips: [10.0.0.1]\n  probePorts: [80]\n- &x {uid: u2, name: db, namespace: shop, phase: Failed}\n";

/// A good text with a few of its bytes replaced, a part cut out, or a part said twice.
fn damaged(good: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let at = 0..good.len();
    let bytes = proptest::collection::vec((at.clone(), any::<u8>()), 0..4);
    (bytes, at.clone(), at, 0..3).prop_map(move |(replaced, a, b, how)| {
        let mut text = good.to_vec();
        for (index, byte) in replaced {
            text[index] = byte;
        }
        let part = a.min(b)..a.max(b);
        match how {
            0 => drop(text.drain(part)),
            1 => text.extend_from_within(part),
            _ => {}
        }
        text
    })
}

proptest! {
    #[test]
    fn messages_of_the_plugin(bytes in prop_oneof![damaged(ADD), proptest::collection::vec(any::<u8>(), 0..200)]) {
        match decode(&bytes) {
            Ok(Verb::Add(attachment) | Verb::Del(attachment) | Verb::Check(attachment)) => {
                prop_assert!(!attachment.id.container_id.is_empty());
                prop_assert!(!attachment.netns.contains(char::is_control));
            }
            Ok(_) => {}
            Err(refusal) => prop_assert!(!refusal.why.contains(char::is_control), "{}", refusal.why),
        }
    }

    #[test]
    fn versions_of_the_pods_file(bytes in prop_oneof![damaged(PODS), proptest::collection::vec(any::<u8>(), 0..200)]) {
        // What is not UTF-8 is refused before.
        let text = String::from_utf8_lossy(&bytes);
        if let Err(mistake) = Inventory::parse(&text) {
            prop_assert!(!mistake.message.is_empty());
            let lines = text.lines().count();
            prop_assert!(mistake.at.is_none_or(|at| at.line >= 1 && at.line <= lines + 1), "{mistake} in {text:?}");
        }
    }
}

#[test]
fn what_the_damage_starts_from_is_good() {
    assert!(matches!(decode(ADD), Ok(Verb::Add(_))));
    assert_eq!(Inventory::parse(std::str::from_utf8(PODS).unwrap()).unwrap().counts(), (1, 2));
}
