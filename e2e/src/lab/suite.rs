//! A test program whose tests run in the private world, one after the other: they share two cores and a kernel.

use super::outer::{self, Outer};
use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

type Body = Box<dyn Fn(&Outer) -> Result<()> + Send>;

/// A test: makes a world of its own in the outer one.
pub struct Test {
    name: String,
    body: Body,
}

/// A test called `name`.
pub fn test(name: impl Into<String>, body: impl Fn(&Outer) -> Result<()> + Send + 'static) -> Test {
    Test { name: name.into(), body: Box::new(body) }
}

/// Runs the tests and ends the program. Without root it fails: a test that cannot run has not passed. When one fails,
/// the lab's files are kept in `target/reports/<suite>-files`.
pub fn run(suite: &str, tests: Vec<Test>) -> ! {
    let mut arguments = Arguments::from_args();
    let outer = if arguments.list { None } else { Some(Arc::new(enter())) };
    let trials = tests.into_iter().map(|test| {
        let outer = outer.clone();
        Trial::test(test.name, move || {
            let outer = outer.as_deref().ok_or_else(|| Failed::from("only listed"))?;
            (test.body)(outer).map_err(|why| Failed::from(format!("{why:#}")))
        })
    });
    let trials = trials.collect();
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(outer) = &outer {
        if conclusion.has_failed() {
            match super::report::keep_files(suite, outer.dir()) {
                Ok(kept) => println!("the lab's files are in {}", kept.display()),
                Err(why) => println!("the lab's files could not be kept: {why:#}"),
            }
        }
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
