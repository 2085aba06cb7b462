//! A question on the admin socket, and an answer as sluicectl reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::admin::{AdminReply, AdminRequest};

fuzz_target!(|line: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<AdminRequest>(line) {
        let again = serde_json::to_vec(&request).expect("serializable");
        assert_eq!(serde_json::from_slice::<AdminRequest>(&again).expect("ours"), request);
    }
    if let Ok(reply) = serde_json::from_slice::<AdminReply>(line) {
        let again = serde_json::to_vec(&reply).expect("serializable");
        assert_eq!(serde_json::from_slice::<AdminReply>(&again).expect("ours"), reply);
    }
});
