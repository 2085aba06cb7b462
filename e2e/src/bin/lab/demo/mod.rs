//! What Sluice does, as checks that a person can follow: one node with a real ptp chain, two pods of the mesh, two
//! outside it, an outside host.

mod life;
mod paths;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::report::{Report, keep_files};
use sluice_e2e::lab::scene::{Member, PORT, Scene};
use sluice_e2e::lab::topology::{OUTSIDE_V4, Plan};
use sluice_e2e::lab::traffic::dns::NameServer;
use sluice_e2e::lab::traffic::echo::Echo;
use sluice_e2e::lab::ztunnel;
use sluice_shared::admin::State;
use std::time::{Duration, Instant};

/// Everything that the checks look at.
struct Stage {
    scene: Scene,
    /// Of the mesh.
    a: Pod,
    /// Of the mesh.
    b: Pod,
    /// Outside the mesh for good.
    c: Pod,
    /// Outside the mesh until its label says otherwise.
    d: Pod,
    names: NameServer,
    _servers: Vec<Echo>,
}

/// Runs the demo; says whether everything held.
pub fn run(outer: &Outer) -> Result<bool> {
    let mut report = Report::new("demo");
    match Stage::set(outer, &mut report) {
        Ok(mut stage) => {
            paths::mesh_to_mesh(&stage, &mut report);
            paths::plaintext_in(&stage, &mut report);
            paths::out_of_the_mesh(&stage, &mut report);
            paths::names(&stage, &mut report);
            paths::probes(&stage, &mut report);
            life::join_and_leave(&mut stage, &mut report);
            life::agent_restart(&mut stage, &mut report);
            life::end(stage, &mut report);
        }
        Err(why) => {
            report.check("the stage is set", || Err(why));
        }
    }
    report.finish()?;
    if !report.passed() {
        println!("the lab's files are in {}", keep_files("demo", outer.dir())?.display());
    }
    Ok(report.passed())
}

impl Stage {
    /// Runs everything. What fails here makes the rest pointless.
    fn set(outer: &Outer, report: &mut Report) -> Result<Self> {
        outer.resolve_with(OUTSIDE_V4.into())?;
        let proxy = match ztunnel::kind() {
            ztunnel::Kind::StandIn => "ztunnel's stand-in".to_owned(),
            ztunnel::Kind::Real(program) => format!("ztunnel {}", program.display()),
        };
        report
            .step(&format!("a node with ptp, host-local, portmap and sluice-cni; {proxy}; an outside host"));
        // In the order of their addresses. C runs first, to show that it needs nobody.
        let members = [Member::plain("c"), Member::meshed("a"), Member::meshed("b"), Member::plain("d")];
        let mut scene = Scene::build(outer, "demo", &Plan::default(), &json!({}), &members)?;
        let names = NameServer::start(&scene.world.outside)?;
        let begun = Instant::now();
        let c = scene.start_pod("c");
        let took = begun.elapsed();
        report.check("a pod outside the mesh starts with neither agent nor ztunnel", || {
            let c = c.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"))?;
            Ok(format!("{} has {:?} after {} ms", c.name(), c.facts.ips, took.as_millis()))
        });
        let c = c.context("nothing can be shown without the pod outside the mesh")?;
        scene.start().context("start the agent and ztunnel")?;
        let begun = Instant::now();
        let (a, b, d) = (scene.start_pod("a")?, scene.start_pod("b")?, scene.start_pod("d")?);
        let took = begun.elapsed();
        report.check("two pods of the mesh are captured when ADD returns", || {
            let status = scene.agents[0].status()?;
            for pod in [&a, &b] {
                let found = status.pods.iter().find(|found| found.uid == pod.facts.uid);
                let found = found.with_context(|| format!("the agent does not know {}", pod.name()))?;
                ensure!(found.state == State::Enabled, "{} is {}: {}", pod.name(), found.state, found.reason);
            }
            Ok(format!(
                "a and b are enabled; three ADDs of the whole chain took {} ms; backend {}, probes {}, mark guard {}",
                took.as_millis(),
                status.backend.chosen,
                status.probes.chosen,
                status.mark_guard.chosen
            ))
        });
        let mut servers = vec![Echo::start(&scene.world.outside, "outside", PORT)?];
        for pod in [&a, &b, &c, &d] {
            servers.push(Echo::start(&pod.netns, pod.name(), PORT)?);
        }
        Ok(Self { scene, a, b, c, d, names, _servers: servers })
    }
}

/// Long enough for a loaded machine, short enough for a demo.
const PATIENCE: Duration = Duration::from_secs(10);
