//! What happens to connections when things change.

use super::Stage;
use anyhow::{Context, Result, ensure};
use sluice_e2e::lab::netns::Netns;
use sluice_e2e::lab::report::Report;
use sluice_e2e::lab::scene::PORT;
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6};
use sluice_e2e::lab::traffic::load::{Load, LoadPlan, Path, Tally};
use sluice_shared::admin::State;
use sluice_shared::contract::{MODE_AMBIENT, NFT_TABLE};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long each state is looked at under load.
const LOOK: Duration = Duration::from_secs(3);
/// A connection that begins this close to a change may take either path.
const MOMENT: Duration = Duration::from_millis(100);

/// Load in both directions of a pod.
struct Both {
    out: Load,
    inward: Load,
}

impl Both {
    fn start(pod: &Netns, out: Vec<SocketAddr>, client: &Netns, inward: Vec<SocketAddr>) -> Result<Self> {
        let plan = |targets| LoadPlan { targets, live: 20, ..LoadPlan::default() };
        Ok(Self { out: Load::start(pod, plan(out))?, inward: Load::start(client, plan(inward))? })
    }

    fn stop(self) -> Result<[Tally; 2]> {
        Ok([self.out.stop()?, self.inward.stop()?])
    }
}

fn outside() -> Vec<SocketAddr> {
    [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|ip| SocketAddr::new(ip, PORT)).to_vec()
}

pub fn join_and_leave(stage: &mut Stage, report: &mut Report) {
    report.step("d, running, joins the mesh and leaves it: 40 live connections, 100 new ones a second");
    let run = || -> Result<_> {
        let d = &stage.d;
        let targets = d.facts.ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        let load = Both::start(&d.netns, outside(), &stage.c.netns, targets)?;
        std::thread::sleep(LOOK);
        let before = Instant::now();
        stage.scene.relabel(d, Some(MODE_AMBIENT))?;
        let status = stage.scene.agents[0].until(&d.facts, State::Enabled)?;
        let joined = Instant::now();
        std::thread::sleep(LOOK);
        let leaves = Instant::now();
        stage.scene.relabel(d, None)?;
        stage.scene.agents[0].until(&d.facts, State::Outside)?;
        let left = Instant::now();
        std::thread::sleep(LOOK);
        Ok((load.stop()?, [before, joined, leaves, left], status.kept_connections))
    };
    let outcome = run();
    let outcome = || outcome.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"));
    report.check("a live pod joins and leaves with 0 failed connections", || {
        let (tallies, _, _) = outcome()?;
        for tally in tallies {
            tally.must_be_whole()?;
        }
        Ok(format!("out: {}\nin:  {}", tallies[0], tallies[1]))
    });
    report.check("every new connection takes the path of its time", || {
        let (tallies, [before, joined, leaves, left], kept) = outcome()?;
        let mut said = Vec::new();
        for (way, tally) in ["out", "in"].iter().zip(tallies) {
            let begun = tally.new.first().context("no connection at all")?.begun;
            let end = tally.new.last().context("no connection at all")?.begun;
            let meshed = *joined..*leaves - MOMENT;
            let around = [begun..*before - MOMENT, *left..end];
            let proxied = tally.begun(meshed.clone(), Path::Proxied);
            let escaped = tally.begun(meshed, Path::Direct);
            let direct: usize = around.iter().map(|span| tally.begun(span.clone(), Path::Direct)).sum();
            let stray: usize = around.iter().map(|span| tally.begun(span.clone(), Path::Proxied)).sum();
            ensure!(
                proxied > 0 && escaped == 0,
                "{way}: while in the mesh {proxied} proxied, {escaped} escaped"
            );
            ensure!(direct > 0 && stray == 0, "{way}: outside the mesh {direct} direct, {stray} proxied");
            said.push(format!(
                "{way}: {direct} direct before and after, {proxied} of {proxied} proxied between"
            ));
        }
        Ok(format!("{}; {kept} older connections kept their path", said.join("; ")))
    });
}

pub fn agent_restart(stage: &mut Stage, report: &mut Report) {
    report.step("the agent is killed, stays away for 2 s, and is started again; load on a and b");
    let targets: Result<Vec<SocketAddr>> =
        [true, false].iter().map(|v4| Ok(SocketAddr::new(stage.b.ip(*v4)?, PORT))).collect();
    let run = |stage: &mut Stage| -> Result<_> {
        let targets = targets?;
        let mut out = outside();
        out.extend(&targets);
        let load = Both::start(&stage.a.netns, out, &stage.c.netns, targets)?;
        std::thread::sleep(LOOK / 2);
        stage.scene.agent().kill()?;
        std::thread::sleep(Duration::from_secs(2));
        stage.scene.agent().start()?;
        for pod in [&stage.a, &stage.b] {
            stage.scene.agents[0].until(&pod.facts, State::Enabled)?;
        }
        std::thread::sleep(LOOK / 2);
        load.stop()
    };
    let outcome = run(stage);
    let outcome = || outcome.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"));
    report.check("the agent's death and return fail 0 connections", || {
        let tallies = outcome()?;
        for tally in tallies {
            tally.must_be_whole()?;
        }
        Ok(format!("a → b, outside: {}\nc → b:         {}", tallies[0], tallies[1]))
    });
    report.check("and let 0 connections escape", || {
        let mut proxied = 0;
        for tally in outcome()? {
            let direct = tally.new.iter().filter(|short| short.outcome == Ok(Path::Direct)).count();
            ensure!(direct == 0, "{direct} went directly: {tally}");
            proxied += tally.new.len();
        }
        Ok(format!("all {proxied} new connections were proxied"))
    });
}

pub fn end(stage: Stage, report: &mut Report) {
    report.step("the pods are deleted");
    let Stage { mut scene, a, b, c, d, .. } = stage;
    report.check("DEL cleans up", || {
        for pod in [&a, &b, &c, &d] {
            scene.stop_pod(pod)?;
            // A runtime repeats DEL, without a netns.
            let mut again = pod.attachment.clone();
            again.netns.clear();
            let node = scene.node();
            node.runner.del(&node.list, &again).with_context(|| format!("DEL of {} again", pod.name()))?;
        }
        sluice_e2e::lab::eventually("the agent to forget the pods", super::PATIENCE, || {
            let left = scene.agents[0].status()?.pods;
            ensure!(
                left.is_empty(),
                "it still knows {:?}",
                left.iter().map(|pod| &pod.name).collect::<Vec<_>>()
            );
            Ok(())
        })?;
        let leases = leases_left(&scene)?;
        ensure!(leases.is_empty(), "leases are left: {leases:?}");
        let journal = left_in(&scene, &[&a.facts.uid, &b.facts.uid, &c.facts.uid, &d.facts.uid])?;
        ensure!(journal.is_empty(), "files of the pods are left: {journal:?}");
        let table = scene.node().netns.must("nft", &["list", "ruleset"])?;
        for ip in [&a, &b, &d].iter().flat_map(|pod| &pod.facts.ips) {
            ensure!(!mentions(&table, *ip), "the host's table {NFT_TABLE} still has {ip}:\n{table}");
        }
        Ok("four pods, each twice; no pod, file, lease or host rule is left".into())
    });
    report.check("ztunnel had nothing to complain of, and both programs end well", || {
        for mut ztunnel in std::mem::take(&mut scene.ztunnels) {
            ztunnel.must_be_content()?;
            ztunnel.stop()?;
        }
        scene.agent().stop()?;
        Ok("0 protocol errors".into())
    });
}

/// Addresses that host-local still holds.
fn leases_left(scene: &sluice_e2e::lab::scene::Scene) -> Result<Vec<String>> {
    let node = scene.node();
    let entries = std::fs::read_dir(node.dir.join("leases").join(&node.list.name))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.parse::<IpAddr>().is_ok()).collect())
}

/// Files of these pods in the agent's run directory.
fn left_in(
    scene: &sluice_e2e::lab::scene::Scene,
    uids: &[&sluice_shared::ids::PodUid],
) -> Result<Vec<String>> {
    let (mut dirs, mut found) = (vec![scene.node().dir.join("run")], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if uids.iter().any(|uid| name.contains(uid.as_str())) {
                found.push(name);
            }
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(found)
}

fn mentions(table: &str, ip: IpAddr) -> bool {
    let ip = ip.to_string();
    table.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':')).any(|word| word == ip)
}
