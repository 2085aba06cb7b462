//! Our own programs take what the chart gives them.

use super::helm::{Rendered, render, renderings, root};
use std::path::PathBuf;
use std::process::{Command, Output};

/// `make` says where the agent is; else it is where Cargo puts it.
fn agent() -> PathBuf {
    let dir = std::env::var_os("SLUICE_BIN_DIR").map(PathBuf::from);
    dir.unwrap_or_else(|| root().join("../target/debug")).join("sluice-agent")
}

fn each(check: impl Fn(&Rendered)) {
    for values in renderings() {
        check(&render(&values.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn the_agent_takes_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    each(|rendered| {
        let file = dir.path().join("agent.yaml");
        let text = rendered.one("ConfigMap")["data"]["agent.yaml"].as_str().unwrap();
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(agent());
        command.arg("--config").arg(&file).arg("--print-config").env("SLUICE_NODE_NAME", "node1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{text}\n{}", stderr(&output));
    });
}

#[test]
#[ignore = "needs helm: make chart-test"]
fn the_installer_takes_its_arguments() {
    each(|rendered| {
        if rendered.pod()["containers"].as_array().unwrap().len() == 1 {
            return;
        }
        let install = rendered.container("install");
        assert_eq!(install["command"], serde_json::json!(["/usr/local/bin/sluice-install"]));
        let args = install["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
        // It reads them in order, and ends at the first that it does not know: which must be this one.
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-install"));
        let output = command.args(args).arg("--not-an-option").output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("'--not-an-option'"), "{said}");
        // The probe looks, and finds nothing on this machine; a wrong argument would be exit code 2.
        let probe = install["readinessProbe"]["exec"]["command"].as_array().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let rest = probe[1..].iter().map(|arg| {
            let arg = arg.as_str().unwrap();
            arg.replace("-dir=/", &format!("-dir={}/", dir.path().display()))
        });
        let output = Command::new(env!("CARGO_BIN_EXE_sluice-install")).args(rest).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    });
}
