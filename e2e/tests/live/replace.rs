//! Invariant 6: rules are replaced in one transaction.

use anyhow::{Result, ensure};
use sluice_e2e::lab::eventually;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::process::Launch;
use sluice_e2e::lab::traffic::load::Path;
use sluice_shared::admin::State;
use sluice_shared::contract::{ANNOTATION_DNS_CAPTURE, MODE_AMBIENT};
use std::time::{Duration, Instant};

/// How many for a backend that executes a program per family, whose thousand would take minutes.
const WITH_PROGRAMS: usize = 100;

pub fn a_thousand(outer: &Outer, backend: &str) -> Result<()> {
    let wanted = if backend == "nftables" { 1_000 } else { WITH_PROGRAMS };
    let (mut scene, c, d, _servers) = super::scene(outer, "replace", backend)?;
    let older = super::load(&c, &d)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    let joined = Instant::now();
    let younger = super::load_proxied(&c, &d)?;
    // Each commit to the namespace's nf_tables, whoever makes it, has a new generation.
    let monitor = Launch::new("nft", &d.netns).arg("monitor").start("monitor", &scene.node().logs())?;
    let begun = Instant::now();
    let (mut asked, mut commits, mut read) = (0, 0, 0);
    while commits < wanted {
        ensure!(begun.elapsed() < Duration::from_secs(120), "{commits} commits of {wanted}");
        // Whole lines only: the last one may still be on its way.
        let new = monitor.stdout_from(read)?;
        let new = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
        commits += new.matches("# new generation").count();
        read += new.len() as u64;
        asked += 1;
        scene.agents[0].pods.edit(&d.facts.uid, |facts| {
            facts.annotations.insert(ANNOTATION_DNS_CAPTURE.into(), (asked % 2 == 0).to_string());
        })?;
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{commits} commits in {:.1} s, {asked} changes asked for", begun.elapsed().as_secs_f32());
    scene.agents[0].until(&d.facts, State::Enabled)?;
    eventually("the load to go on", Duration::from_secs(5), || older[0].tally().must_be_whole())?;
    let leaves = Instant::now();
    for load in older.into_iter().chain(younger) {
        let tally = load.stop()?;
        println!("{tally}");
        tally.must_be_whole()?;
        let direct = tally.begun(joined..leaves, Path::Direct);
        ensure!(direct == 0, "{direct} new connections escaped: {tally}");
    }
    scene.ztunnels[0].must_be_content()
}
