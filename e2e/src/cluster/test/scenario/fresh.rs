//! A new pod is captured before anything of it runs.

use super::each;
use crate::cluster::test::demo::{self, OUTSIDE, PLAIN};
use crate::cluster::test::leaks::judge;
use crate::cluster::test::lives::{Span, lives};
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::Stage;
use crate::lab::report::Report;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::{Duration, SystemTime};

const FRESH: &str = "fresh";
/// How many pods begin at once; the rule must not depend on luck.
const MANY: usize = 8;

/// An init container connects as the first thing that happens in its pod.
pub fn first_packet(stage: &mut Stage, report: &mut Report) {
    report.step(&format!("{MANY} new pods of the mesh, whose first init container connects at once"));
    let names: Vec<String> = (1..=MANY).map(|index| format!("fresh-{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wire = stage.listen();
    let made = || -> Result<()> {
        demo::set_in_mesh(stage)?;
        let targets = [stage.pod(demo::DEMO, "server-1")?, stage.pod(OUTSIDE, PLAIN)?];
        let mut objects = vec![namespace(FRESH, Some("ambient"))];
        for (index, name) in names.iter().enumerate() {
            let to = demo::echo(&targets[index % 2], index % 4 < 2)?;
            // One attempt: what is held at the beginning must be held, not refused.
            let ask = ["once", "--to", &to, "--expect", "proxied", "--patience", "20"];
            let shape = Shape::idle(FRESH, name).on(if index % 2 == 0 { "node1" } else { "node2" });
            objects.push(shape.init("first", &ask).init("second", &ask).pod());
        }
        stage.apply(&objects)?;
        stage.until_ready(FRESH, &names)?;
        stage.until_captured(FRESH, &names, true).map(drop)
    };
    let made = made();
    report.check("a new pod is captured before its first init container runs", || {
        made?;
        for name in &names {
            let pod = stage.pod(FRESH, name)?;
            let said = stage.said(&pod, "first")?;
            let answer: Value =
                serde_json::from_str(&said.last().map(|line| line.text.clone()).unwrap_or_default())?;
            ensure!(answer["direct"] == false, "{name}'s first connection: {answer}");
            ensure!(pod.restarts == 0, "{name} was restarted {} times", pod.restarts);
        }
        Ok(format!("{MANY} pods: the first connection of each went through ztunnel, at the first attempt"))
    });
    report.check("their very first SYN is not on the wire", || {
        let pods: Result<Vec<_>> = names.iter().map(|name| stage.pod(FRESH, name)).collect();
        stage.judge(wire)?.must_hold(&each(&pods?))
    });
    control(stage, report);
    report.check("the new pods go", || stage.remove(&[FRESH]).map(|()| "their namespace is removed".into()));
}

/// A rule that finds nothing anywhere shows nothing: the same captures, with a pod outside the mesh for which it is
/// pretended that it should have been captured.
fn control(stage: &Stage, report: &mut Report) {
    report.check("control: the SYN of a pod outside the mesh is found by the same rule", || {
        let name = "control";
        let wire = stage.listen()?;
        let to = demo::echo(&stage.pod(demo::DEMO, "server-1")?, true)?;
        let shape =
            Shape::idle(OUTSIDE, name).on("node2").init("first", &["once", "--to", &to, "--patience", "20"]);
        stage.apply(&[shape.pod()])?;
        stage.until_ready(OUTSIDE, &[name])?;
        let packets = wire.close()?;
        stage.kubectl(&["delete", "pod", "--namespace", OUTSIDE, name, "--wait=false"])?;
        let mut lives = lives(&stage.log(), SystemTime::now());
        for life in lives.iter_mut().filter(|life| life.name == format!("{OUTSIDE}/{name}")) {
            life.captured = vec![Span { from: life.seen - Duration::from_secs(1), until: None }];
        }
        let leaks = judge(&packets, &lives).leaks;
        let found = leaks.iter().filter(|leak| leak.pod.ends_with(name)).count();
        ensure!(found > 0, "the rule does not find it, so it would find no leak either");
        Ok(format!("found: {}", leaks[0]))
    });
}
