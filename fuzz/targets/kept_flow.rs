//! An element of the sets of kept connections, as a dump of the kernel shows it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::nft::flow_of_key;

fuzz_target!(|key: &[u8]| {
    let Some(flow) = flow_of_key(key) else { return };
    assert!(matches!(key.len(), 16 | 40));
    assert_eq!(flow.local.0.is_ipv4(), key.len() == 16);
    let half = key.len() / 2;
    let swapped: Vec<u8> = key[half..].iter().chain(&key[..half]).copied().collect();
    let back = flow_of_key(&swapped).expect("of the same length");
    assert_eq!((back.local, back.remote), (flow.remote, flow.local));
});
