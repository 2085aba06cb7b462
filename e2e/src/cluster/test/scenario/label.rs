//! A namespace joins the mesh and leaves it, under load.

use super::{must_not_restart, told_of_end};
use crate::cluster::test::demo::{self, CLIENTS, Counted, DEMO, OUTSIDE, OUTSIDER, PODS};
use crate::cluster::test::shapes::{HTTP, Shape};
use crate::cluster::test::stage::Stage;
use crate::cluster::watch::What;
use crate::cluster::watch::seen::Object;
use crate::lab::capture::{Capture, Packets};
use crate::lab::report::Report;
use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use sluice_shared::contract::PORT_HBONE;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// A client that begins while the namespace is in the mesh: its connections go through ztunnel when it leaves.
const PROXIED: &str = "client-3";
/// A server that the kubelet asks each second over the pod's own address. Nobody else talks to it: one answer that does
/// not come in time is one too many, and makes it not Ready.
const PROBED: &str = "probed";

/// In and out.
pub fn join_and_leave(stage: &mut Stage, report: &mut Report) {
    join(stage, report);
    leave(stage, report);
}

fn join(stage: &Stage, report: &mut Report) {
    report.step("kubectl label namespace demo istio.io/dataplane-mode=ambient, under load");
    let prepared = demo::set(stage).and_then(|()| set_probed(stage));
    let everywhere = stage.listen();
    let begun = SystemTime::now();
    let seen = || -> Result<(Counted, Packets)> {
        prepared?;
        let wire = Capture::start(stage.cluster().fabric(), stage.node(1)?.link(), stage.captures())?;
        let before = demo::counted(stage)?;
        demo::label(stage, DEMO, true)?;
        stage.until_captured(DEMO, &PODS, true)?;
        demo::until_paths(stage, true)?;
        Ok((before, wire.stop()?))
    };
    let seen = seen();
    let seen = || seen.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("labelling the namespace brings its running pods in without a restart", || {
        seen()?;
        must_not_restart(stage, DEMO, &PODS)
    });
    report.check("joining: open connections are kept, no new one fails", || seen()?.0.unharmed(stage));
    report.check("joining: new connections between nodes are mTLS on 15008", || {
        let (tls, all) = seen()?.1.tls_to(PORT_HBONE);
        ensure!(tls > 0 && tls == all, "{tls} of {all} connections to {PORT_HBONE} began as TLS");
        Ok(format!("{tls} connections to {PORT_HBONE} on node1's link, all TLS"))
    });
    report.check("joining: every new connection goes through ztunnel", || demo::until_paths(stage, true));
    report.check("joining: no uncaptured SYN of a pod of the mesh", || {
        stage.judge(everywhere)?.must_hold(&demo::talkers(stage)?)
    });
    report.check("joining: the kubelet's probes reach them all the time", || always_ready(stage, begun));
    report.check("joining: a client outside still reaches them, and is not captured itself", || {
        let outsider = stage.pod(OUTSIDE, OUTSIDER)?;
        ensure!(outsider.redirection.is_none(), "its annotation says {:?}", outsider.redirection);
        let (direct, proxied) = demo::paths(stage, &[(OUTSIDE, OUTSIDER)])?;
        ensure!(direct + proxied > 0, "it makes no connections");
        Ok(format!("{} new connections in 2 s", direct + proxied))
    });
}

fn leave(stage: &Stage, report: &mut Report) {
    report.step("kubectl label namespace demo istio.io/dataplane-mode-");
    let begun = SystemTime::now();
    let left = || -> Result<Counted> {
        let servers = stage.until_ready(DEMO, &["server-1", "server-2"])?;
        let targets = [demo::echo(&servers[0], false)?, demo::echo(&servers[1], true)?];
        stage.apply(&[demo::client(DEMO, PROXIED, &targets).on("node1").pod()])?;
        stage.until_ready(DEMO, &[PROXIED])?;
        let clients = [CLIENTS.as_slice(), &[PROXIED]].concat();
        let clients: Vec<_> = clients.iter().map(|client| (DEMO, *client)).collect();
        let through = stage.totals(DEMO, PROXIED)?.live;
        ensure!(through.proxied == through.opened, "{PROXIED} has connections past ztunnel: {through:?}");
        let before = demo::of(stage, &clients)?;
        demo::label(stage, DEMO, false)?;
        stage.until_captured(DEMO, &PODS, false)?;
        Ok(before)
    };
    let left = left();
    let left = || left.as_ref().map_err(|why| anyhow!("{why:#}"));
    report.check("removing the label takes the pods out without a restart", || {
        left()?;
        must_not_restart(stage, DEMO, &[PODS.as_slice(), &[PROXIED]].concat())
    });
    report.check("leaving: every new connection is direct", || demo::until_paths(stage, false));
    report.check("leaving: open connections are kept, through ztunnel or not", || left()?.unharmed(stage));
    report.check("leaving: the kubelet's probes reach them all the time", || always_ready(stage, begun));
    report.check(
        "leaving: ztunnel is told once the last of a pod's connections through it has ended",
        || {
            let pod = stage.pod(DEMO, PROXIED)?;
            stage.kubectl(&["delete", "pod", "--namespace", DEMO, PROXIED, "--wait=false"])?;
            let own = told_of_end(stage, &pod)?;
            // The servers' own connections through it ended with it, so they are let go too.
            told_of_end(stage, &stage.pod(DEMO, "server-1")?)?;
            Ok(own)
        },
    );
    report.check("back in the mesh for what follows", || {
        stage.kubectl(&["delete", "pod", "--namespace", DEMO, PROBED, "--wait=false"])?;
        demo::set_in_mesh(stage)?;
        demo::until_paths(stage, true)
    });
}

fn set_probed(stage: &Stage) -> Result<()> {
    let mut probe = json!({"httpGet": {"path": "/healthz", "port": HTTP}});
    for (key, value) in [("periodSeconds", 1), ("timeoutSeconds", 3), ("failureThreshold", 1)] {
        probe[key] = json!(value);
    }
    let server = Shape::server(DEMO, PROBED).on("node1").with_in_container("readinessProbe", probe);
    stage.apply(&[server.pod()])?;
    stage.until_ready(DEMO, &[PROBED]).map(drop)
}

/// Fails if the kubelet's probes did not reach [`PROBED`] at some time since `begun`.
fn always_ready(stage: &Stage, begun: SystemTime) -> Result<String> {
    // One that was sent just now is to be heard of.
    sleep(Duration::from_secs(4));
    for change in stage.log().iter().filter(|change| change.at >= begun) {
        let What::Is(Object::Pod(pod)) = &change.what else { continue };
        let after = change.at.duration_since(begun).unwrap_or_default().as_secs_f32();
        let is_one = pod.namespace == DEMO && pod.name == PROBED;
        ensure!(!is_one || pod.ready, "{PROBED} was not Ready after {after:.1} s");
    }
    stage.until_ready(DEMO, &[PROBED])?;
    Ok(format!("{PROBED} was Ready for {:.0} s", begun.elapsed().unwrap_or_default().as_secs_f32()))
}
