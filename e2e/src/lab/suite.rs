//! A test program whose tests run in the private world, one after the other: they share two cores and a kernel.

use super::outer::{self, Outer};
use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// A test: makes a world of its own in the outer one.
pub type Test = fn(&Outer) -> Result<()>;

/// Runs the tests and ends the program. Without root it fails: a test that cannot run has not passed.
pub fn run(tests: &[(&str, Test)]) -> ! {
    let mut arguments = Arguments::from_args();
    let names_only = arguments.list;
    let world = if names_only { None } else { Some(enter()) };
    let shared = world.map(Arc::new);
    let trials = tests.iter().map(|(name, test)| {
        let (test, shared) = (*test, shared.clone());
        Trial::test(*name, move || {
            let outer = shared.as_deref().ok_or_else(|| Failed::from("only listed"))?;
            test(outer).map_err(|why| Failed::from(format!("{why:#}")))
        })
    });
    let trials = trials.collect();
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(outer) = &shared {
        outer.cgroups().remove();
    }
    conclusion.exit()
}

fn enter() -> Outer {
    outer::enter().unwrap_or_else(|why| {
        eprintln!("the tests of the lab cannot run: {why:#}");
        std::process::exit(1)
    })
}
