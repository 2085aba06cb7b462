//! What is read to find a running pod's namespace: cgroups of processes, and a runtime's verbose status.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_agent::adopt::cgroup;
use sluice_agent::adopt::cri::verbose;
use std::collections::HashMap;
use std::path::Component;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes).into_owned();
    for uid in cgroup::pods(&text) {
        assert!(cgroup::belongs(std::slice::from_ref(&uid), &uid, |_| false));
    }
    if let Ok(place) = verbose::place(&HashMap::from([("info".to_owned(), text)])) {
        assert_ne!(place.pid, Some(0));
        if let Some(path) = place.path {
            assert!(path.is_absolute() && !path.components().any(|part| part == Component::ParentDir));
        }
    }
});
