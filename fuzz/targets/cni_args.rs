//! `CNI_ARGS`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::cni::PodArgs;

fuzz_target!(|text: &str| {
    let Ok(args) = PodArgs::parse(text) else { return };
    let mut again = String::new();
    if let Some(pod) = &args.pod {
        assert!((1..=63).contains(&pod.namespace.len()) && (1..=253).contains(&pod.name.len()));
        again = format!("K8S_POD_NAME={};K8S_POD_NAMESPACE={}", pod.name, pod.namespace);
    }
    if let Some(uid) = &args.uid {
        again = format!("{again};K8S_POD_UID={uid}");
    }
    assert_eq!(PodArgs::parse(&again), Ok(args), "{again}");
});
