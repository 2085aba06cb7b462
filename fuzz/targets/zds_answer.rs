//! What comes from whoever is at the other end of ztunnel's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_agent::zds::codec::{decode_hello, decode_response};

fuzz_target!(|packet: &[u8]| {
    let _ = decode_hello(packet);
    match decode_response(packet) {
        // Success is never read into anything that does not say so: a wrong one lets a pod's traffic in.
        Ok(Ok(())) => assert!(packet.contains(&0x0a)),
        Ok(Err(reason)) => {
            assert!(!reason.is_empty() && reason.chars().count() <= 400 && !reason.contains('\n'));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
