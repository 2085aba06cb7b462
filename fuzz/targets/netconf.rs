//! What a runtime puts on the plugin's stdin.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::cni::{MAX_TIMEOUT, NetConf, addresses};
use std::net::IpAddr;

fuzz_target!(|stdin: &[u8]| {
    let Ok(netconf) = NetConf::parse(stdin) else { return };
    if let Some(result) = netconf.prev_result {
        // What we print is what we were given: the very bytes, not a copy that was read and written again.
        let text = result.get().as_bytes();
        assert!(
            stdin.as_ptr_range().contains(&text.as_ptr()) && text.starts_with(b"{") && text.ends_with(b"}")
        );
        let found = addresses(result).ips;
        for (index, ip) in found.iter().enumerate() {
            assert!(!found[..index].contains(ip), "{ip} twice");
            assert!(!matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()), "{ip} is IPv4");
        }
    }
    if let Ok(settings) = netconf.settings() {
        assert!(settings.agent_socket.starts_with('/') && settings.agent_socket.len() <= 107);
        assert!(settings.state_dir.starts_with('/') && !settings.state_dir.contains('\0'));
        assert!(!settings.timeout.is_zero() && settings.timeout <= MAX_TIMEOUT);
        // An empty prefix would take whole namespaces out of the mesh.
        assert!(
            settings
                .exempt_pods
                .iter()
                .all(|pods| !pods.namespace.is_empty() && !pods.name_prefix.is_empty())
        );
    }
    let _ = netconf.valid_attachments();
});
