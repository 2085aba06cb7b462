//! `membership.json`, by which the plugin decides with no agent to ask.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::membership::{Fallback, Membership, Standing, without_agent};

fuzz_target!(|bytes: &[u8]| {
    let Ok(membership) = Membership::parse(bytes) else { return };
    let again = serde_json::to_vec(&membership).expect("serializable");
    assert_eq!(Membership::parse(&again).as_ref(), Ok(&membership));
    for (namespace, standing) in &membership.namespaces {
        let fallback = without_agent(Some(&membership), namespace);
        match standing {
            Standing::In => {
                assert!(matches!(fallback, Fallback::Wait(_)), "a meshed pod would start in plaintext")
            }
            Standing::Out => assert!(matches!(fallback, Fallback::Pass(_))),
            Standing::Held => {}
        }
    }
});
