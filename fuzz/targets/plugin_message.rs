//! A packet on the agent's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_agent::source::cni::decode;
use sluice_shared::wire::{Request, Verb, WIRE_VERSION};

fuzz_target!(|packet: &[u8]| {
    match decode(packet) {
        Ok(verb) => {
            if let Verb::Add(attachment) | Verb::Del(attachment) | Verb::Check(attachment) = &verb {
                assert!(
                    !attachment.id.container_id.is_empty() && !attachment.netns.contains(char::is_control)
                );
            }
            let again = serde_json::to_vec(&Request { version: WIRE_VERSION, verb: verb.clone() });
            assert_eq!(decode(&again.expect("serializable")), Ok(verb));
        }
        Err(refusal) => assert!(!refusal.why.contains(char::is_control), "{:?}", refusal.why),
    }
});
