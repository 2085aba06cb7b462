//! Pods that the mesh leaves alone, and pods that it takes for reasons of their own.

use super::each;
use crate::cluster::test::demo::{self, OUTSIDE, PLAIN};
use crate::cluster::test::manifests::SELECTOR;
use crate::cluster::test::shapes::{Shape, namespace};
use crate::cluster::test::stage::Stage;
use crate::lab::report::Report;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

const MIXED: &str = "mixed";
const UNLABELLED: &str = "unlabelled";

/// A pod, why it is as it is, and whether it is captured.
struct Kind {
    what: &'static str,
    namespace: &'static str,
    name: &'static str,
    captured: bool,
    change: fn(Shape) -> Shape,
}

const KINDS: [Kind; 6] = [
    Kind {
        what: "a pod with istio.io/dataplane-mode=none in a namespace of the mesh is left alone",
        namespace: MIXED,
        name: "opted-out",
        captured: false,
        change: |shape| shape.mode("none"),
    },
    Kind {
        what: "a pod of the host's network is left alone, whatever its labels say",
        namespace: MIXED,
        name: "host",
        captured: false,
        change: |shape| shape.mode("ambient").with("hostNetwork", json!(true)),
    },
    Kind {
        what: "a pod with a sidecar is left alone",
        namespace: MIXED,
        name: "sidecar",
        captured: false,
        change: Shape::with_sidecar,
    },
    Kind {
        what: "a pod of kube-system is left alone, whatever its labels say",
        namespace: "kube-system",
        name: "system",
        captured: false,
        change: |shape| shape.mode("ambient"),
    },
    Kind {
        what: "a pod with istio.io/dataplane-mode=ambient is captured in a namespace without the label",
        namespace: UNLABELLED,
        name: "picked",
        captured: true,
        change: |shape| shape.mode("ambient"),
    },
    Kind {
        what: "a pod that a selector of the configuration names is captured",
        namespace: UNLABELLED,
        name: "selected",
        captured: true,
        change: |shape| shape.label(SELECTOR.0, SELECTOR.1),
    },
];

/// Each kind connects to a server outside the mesh, which says whether it saw the pod itself.
pub fn outside(stage: &mut Stage, report: &mut Report) {
    report.step(
        "pods that opt out, use the host's network, have a sidecar, are the system's; and pods that opt in",
    );
    let wire = stage.listen();
    let made = || -> Result<()> {
        demo::set_in_mesh(stage)?;
        let to = demo::echo(&stage.pod(OUTSIDE, PLAIN)?, true)?;
        let mut objects = vec![namespace(MIXED, Some("ambient")), namespace(UNLABELLED, None)];
        for kind in &KINDS {
            let shape = Shape::idle(kind.namespace, kind.name).on("node2");
            let shape = shape.init("first", &["once", "--to", &to, "--patience", "20"]);
            objects.push((kind.change)(shape).pod());
        }
        stage.apply(&objects)
    };
    let made = made();
    for kind in &KINDS {
        report.check(kind.what, || {
            made.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"))?;
            stage.until_ready(kind.namespace, &[kind.name])?;
            let pod = stage.until_captured(kind.namespace, &[kind.name], kind.captured)?.remove(0);
            let said = stage.said(&pod, "first")?;
            let answer: Value =
                serde_json::from_str(&said.last().map(|line| line.text.clone()).unwrap_or_default())?;
            ensure!(answer["direct"] == !kind.captured, "its connection: {answer}");
            let seen = if kind.captured { "ztunnel's socket" } else { "its own socket" };
            Ok(format!("the server saw {seen}; the annotation says {:?}", pod.redirection))
        });
    }
    report.check("opting in by label or selector: no uncaptured SYN", || {
        let captured = KINDS.iter().filter(|kind| kind.captured);
        let pods: Result<Vec<_>> = captured.map(|kind| stage.pod(kind.namespace, kind.name)).collect();
        stage.judge(wire)?.must_hold(&each(&pods?))
    });
    report.check("these pods go", || {
        stage.kubectl(&["delete", "pod", "--namespace=kube-system", "system", "--wait=false"])?;
        stage.remove(&[MIXED, UNLABELLED]).map(|()| "removed".into())
    });
}
