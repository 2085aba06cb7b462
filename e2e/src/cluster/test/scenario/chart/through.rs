//! What must hold whenever helm changes something, while clients talk and pods come and go.

use super::{CHURN, REPLICAS};
use crate::cluster::test::demo::{self, Counted, DEMO, PODS};
use crate::cluster::test::sandboxes::Failures;
use crate::cluster::test::scenario::{each, until_all};
use crate::cluster::test::stage::Stage;
use crate::cluster::test::wire::Wire;
use crate::cluster::watch::seen::Pod;
use crate::lab::report::Report;
use anyhow::{Result, anyhow, ensure};

/// What pods that start meanwhile must be.
#[derive(Clone, Copy, PartialEq)]
pub enum Meanwhile {
    /// There is a time without Sluice: they start.
    Started,
    /// Those of the mesh are captured from their first packet on.
    Captured,
}

/// What must hold whenever helm changes something.
pub fn through(
    stage: &Stage,
    report: &mut Report,
    what: &str,
    meanwhile: Meanwhile,
    act: impl FnOnce(&Stage) -> Result<String>,
) {
    report.step(&format!("{what}, while pods are replaced"));
    let begin = || -> Result<(Wire, Counted, [Failures; 2])> {
        let failed = [stage.failed_sandboxes(CHURN[0].0)?, stage.failed_sandboxes(CHURN[1].0)?];
        let begun = (stage.listen()?, demo::counted(stage)?, failed);
        for (name, _) in CHURN {
            let deployment = format!("deployment/{name}");
            stage.kubectl(&["rollout", "restart", &deployment, "--namespace", name])?;
        }
        Ok(begun)
    };
    let restarted = restarts(stage);
    let begun = begin();
    let done = act(stage);
    report.check(&format!("{what}: done"), || done);
    let (wire, before, failed_before) = match begun {
        Ok((wire, before, failed)) => (Ok(wire), Ok(before), failed),
        Err(why) => (Err(anyhow!("{why:#}")), Err(why), Default::default()),
    };
    report.check(&format!("{what}: pods that start meanwhile do, at the first attempt"), || {
        let mut tentative = 0;
        for ((name, mode), before) in CHURN.iter().zip(&failed_before) {
            let captured = meanwhile == Meanwhile::Captured && mode.is_some();
            let as_wanted =
                if captured { |pod: &Pod| pod.ready && pod.hbone() } else { |pod: &Pod| pod.ready };
            stage.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--namespace", name])?;
            until_all(stage, name, REPLICAS, as_wanted)?;
            tentative += stage.failed_sandboxes(name)?.since(before).must_be_the_primarys(REPLICAS)?;
        }
        Ok(format!(
            "{} pods; {tentative} times the primary CNI waited 5 s in vain for its IPv6 addresses",
            REPLICAS * CHURN.len()
        ))
    });
    report.check(&format!("{what}: new connections go through ztunnel"), || demo::until_paths(stage, true));
    report.check(&format!("{what}: open connections are kept, no new one fails"), || before?.unharmed(stage));
    report.check(&format!("{what}: no pod is restarted"), || {
        let (before, now) = (restarted?, restarts(stage)?);
        ensure!(now == before, "restart counts of {} were {before:?} and are {now:?}", PODS.join(", "));
        Ok(format!("{} containers as before", PODS.len()))
    });
    if meanwhile == Meanwhile::Captured {
        report.check(&format!("{what}: no uncaptured SYN, of new pods either"), || {
            let seen = stage.seen();
            let new = seen.labelled(CHURN[0].0, "app", CHURN[0].0);
            ensure!(new.len() == REPLICAS, "{} of {REPLICAS} new pods are there", new.len());
            for node in stage.cluster().nodes() {
                let here = new.iter().any(|pod| pod.node == node.name());
                ensure!(here, "no new pod was started on {}", node.name());
            }
            stage.judge(wire)?.must_hold(&[demo::talkers(stage)?, each(new)].concat())
        });
    }
}

/// How often each application was restarted until now.
fn restarts(stage: &Stage) -> Result<Vec<u64>> {
    PODS.iter().map(|name| Ok(stage.pod(DEMO, name)?.restarts)).collect()
}
