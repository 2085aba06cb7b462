//! The pods file of `source: file`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_agent::source::file::Inventory;

fuzz_target!(|text: &str| {
    match Inventory::parse(text) {
        Ok(inventory) => assert_eq!(Inventory::parse(text), Ok(inventory)),
        Err(mistake) => {
            assert!(!mistake.message.is_empty());
            // YAML also ends a line at a carriage return, and in YAML 1.1 at three characters of Unicode.
            let lines = text.split(['\r', '\n', '\u{85}', '\u{2028}', '\u{2029}']).count();
            assert!(mistake.at.is_none_or(|at| (1..=lines + 1).contains(&at.line)), "{mistake}");
        }
    }
});
