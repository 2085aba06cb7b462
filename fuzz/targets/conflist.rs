//! Somebody else's network configuration list. What goes in comes out again, and nothing else changes by a byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_shared::conflist::{Entry, contains, insert, remove};

fuzz_target!(|text: &str| {
    let entry = Entry { timeout_seconds: Some(7), ..Entry::default() };
    let Ok(with) = insert(text, &entry) else { return };
    assert_eq!(contains(&with), Ok(true));
    assert_eq!(insert(&with, &entry).as_ref(), Ok(&with), "a second time changes nothing");
    let without = remove(&with);
    assert_eq!(without.as_ref().map(|without| contains(without)), Ok(Ok(false)));
    if contains(text) == Ok(false) {
        assert_eq!(without.as_deref(), Ok(text), "taking it out does not give back what was there");
    }
    let list: serde_json::Value = serde_json::from_str(&with).expect("JSON");
    assert_eq!(
        list["plugins"].as_array().and_then(|plugins| plugins.last()).map(|last| &last["type"]),
        Some(&"sluice-cni".into())
    );
});
