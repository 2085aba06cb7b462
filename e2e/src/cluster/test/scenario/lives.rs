//! How pods end: by themselves, to come back under the same name, and by force.

use super::{each, told_of_end};
use crate::cluster::test::demo::{self, DEMO, OUTSIDE, PLAIN};
use crate::cluster::test::leaks::{Talker, judge};
use crate::cluster::test::lives::lives;
use crate::cluster::test::shapes::{Shape, namespace, service};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Context, Result, anyhow, ensure};
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

const JOB: &str = "job";
const STATEFUL: &str = "stateful";
const FORCED: &str = "forced";

/// A Job completes; its pod stays in the API, and is let go all the same.
pub fn job(stage: &mut Stage, report: &mut Report) {
    report.step("a Job of the mesh, whose pod completes");
    let wire = stage.listen();
    let done = || -> Result<Pod> {
        demo::set_in_mesh(stage)?;
        let to = demo::echo(&stage.pod(DEMO, "server-1")?, true)?;
        let shape = Shape::of(JOB, JOB, &["once", "--to", &to, "--expect", "proxied", "--patience", "20"]);
        stage.apply(&[namespace(JOB, Some("ambient")), shape.on("node2").job()])?;
        stage.until("the job's pod to complete", PATIENCE, |seen| {
            let pods = seen.labelled(JOB, "app", JOB);
            let pod = pods.first().context("it has no pod")?;
            ensure!(pod.phase == "Succeeded", "{} is {}", pod.name, pod.phase);
            Ok((*pod).clone())
        })
    };
    let done = done();
    let done = || done.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("a Job completes, and its connection went through ztunnel", || {
        Ok(format!("{} is {}", done()?.name, done()?.phase))
    });
    report.check("its pod is let go though it stays in the API", || {
        let told = told_of_end(stage, done()?)?;
        stage.until("the annotation to go", PATIENCE, |seen| {
            let pod = seen.pod(JOB, &done()?.name)?;
            ensure!(!pod.hbone(), "it says {:?}", pod.redirection);
            Ok(())
        })?;
        Ok(told)
    });
    report.check("the Job: no uncaptured SYN", || stage.judge(wire)?.must_hold(&each([done()?])));
    report.check("the Job goes", || stage.remove(&[JOB]).map(|()| "removed".into()));
}

/// A StatefulSet's pod is deleted, and comes back under the same name and with the same address.
pub fn stateful(stage: &mut Stage, report: &mut Report) {
    report.step("a StatefulSet's pod is deleted, and comes back with the same name and address");
    let name = format!("{STATEFUL}-0");
    let wire = stage.listen();
    let back = || -> Result<(Pod, Pod)> {
        demo::set_in_mesh(stage)?;
        let shape = Shape::client(STATEFUL, STATEFUL, &inside_and_outside(stage)?, 2, 20).on("node1");
        let shape = demo::ready_once_open(shape);
        stage.apply(&[
            namespace(STATEFUL, Some("ambient")),
            service(STATEFUL, STATEFUL),
            shape.stateful_set(),
        ])?;
        stage.until(&format!("{name} to be there"), PATIENCE, |seen| seen.pod(STATEFUL, &name).map(drop))?;
        stage.until_ready(STATEFUL, &[&name])?;
        let first = stage.until_captured(STATEFUL, &[&name], true)?.remove(0);
        give_next(stage, &first)?;
        stage.kubectl(&["delete", "pod", "--namespace", STATEFUL, &name, "--wait=false"])?;
        let second = stage.until(&format!("another {name}"), PATIENCE, |seen| {
            let pod = seen.pod(STATEFUL, &name)?;
            ensure!(pod.uid != first.uid, "it is the old one");
            ensure!(pod.ready && pod.hbone(), "it is {} and {:?}", pod.phase, pod.redirection);
            Ok(pod.clone())
        })?;
        Ok((first, second))
    };
    let back = back();
    let back = || back.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("a StatefulSet's pod that comes back with the same name and address is captured", || {
        let (first, second) = back()?;
        ensure!(first.ips == second.ips, "it came back with {:?} instead of {:?}", second.ips, first.ips);
        let clients = [(STATEFUL, name.as_str())];
        let (direct, proxied) = demo::paths(stage, &clients)?;
        ensure!(direct == 0 && proxied > 0, "{direct} of its connections are direct, {proxied} proxied");
        Ok(format!(
            "{name} has {:?} again, another uid, and {proxied} connections through ztunnel",
            second.ips
        ))
    });
    report.check("of the one before, nothing is left at ztunnel", || told_of_end(stage, &back()?.0));
    report.check("the StatefulSet: no uncaptured SYN, of the first pod and of the second", || {
        let (first, second) = back()?;
        stage.judge(wire)?.must_hold(&each([first, second]))
    });
    report.check("the StatefulSet goes", || stage.remove(&[STATEFUL]).map(|()| "removed".into()));
}

/// A server of the mesh, and one outside: ztunnel has a SYN of its own for each connection to that one.
fn inside_and_outside(stage: &Stage) -> Result<[String; 2]> {
    Ok([demo::echo(&stage.pod(DEMO, "server-2")?, true)?, demo::echo(&stage.pod(OUTSIDE, PLAIN)?, true)?])
}

/// Has host-local give `pod`'s addresses to the next pod of its node: it goes on after the last one that it gave.
fn give_next(stage: &Stage, pod: &Pod) -> Result<()> {
    let dir = stage.node(1)?.path("/run/cni-ipam-state/kindnet")?;
    for (range, ip) in pod.ips.iter().enumerate() {
        let before = match ip {
            IpAddr::V4(ip) => IpAddr::from((u32::from(*ip) - 1).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(*ip) - 1).to_be_bytes()),
        };
        let file = dir.join(format!("last_reserved_ip.{range}"));
        ensure!(file.is_file(), "host-local keeps no {}", file.display());
        crate::lab::write_whole(&file, &before.to_string())?;
    }
    Ok(())
}

/// A pod under load is deleted with force: the API forgets it while its containers still run.
pub fn forced(stage: &mut Stage, report: &mut Report) {
    report.step("kubectl delete pod --force --grace-period=0, under load");
    let wire = stage.listen();
    let gone = || -> Result<Pod> {
        demo::set_in_mesh(stage)?;
        let shape = Shape::client(FORCED, FORCED, &inside_and_outside(stage)?, 2, 50).on("node1");
        let shape = demo::ready_once_open(shape);
        stage.apply(&[namespace(FORCED, Some("ambient")), shape.pod()])?;
        stage.until_ready(FORCED, &[FORCED])?;
        let pod = stage.until_captured(FORCED, &[FORCED], true)?.remove(0);
        sleep(Duration::from_secs(1));
        stage.kubectl(&["delete", "pod", "--namespace", FORCED, FORCED, "--force", "--grace-period=0"])?;
        Ok(pod)
    };
    let gone = gone();
    let gone = || gone.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("a pod deleted with force is let go", || {
        let told = told_of_end(stage, gone()?)?;
        super::nothing_left(stage, FORCED)?;
        Ok(told)
    });
    report.check("as long as its containers run, no uncaptured SYN", || {
        let packets = wire?.close()?;
        let mut lives = lives(&stage.log(), SystemTime::UNIX_EPOCH);
        // For the API it has ended; its address is nobody else's so soon, and what it begins is still its own.
        for life in lives.iter_mut().filter(|life| gone().is_ok_and(|gone| life.uid == gone.uid)) {
            let addresses = life.addresses.iter_mut().map(|(_, span)| span);
            addresses.chain(&mut life.captured).for_each(|span| span.until = None);
        }
        judge(&packets, &lives).must_hold(&[Talker::new(gone()?, demo::TALKS)])
    });
    report.check("its namespace goes", || stage.remove(&[FORCED]).map(|()| "removed".into()));
}
