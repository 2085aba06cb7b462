//! Puts a side of a description into a network namespace.

use super::describe::Side;
use crate::lab::netns::Netns;
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Sets everything up, in the order in which each needs the other.
///
/// # Errors
/// What was refused, in the words of the program that was asked.
pub fn apply(netns: &Netns, side: &Side) -> Result<()> {
    ip(netns, &commands("link add", &side.links))?;
    ip(netns, &commands("link set", &side.set))?;
    for (key, value) in &side.sysctls {
        netns.sysctl(key, value)?;
    }
    for (verb, entries) in [
        ("addr add", &side.addresses),
        ("route add", &side.routes),
        ("neigh replace", &side.neighbours),
        ("rule add", &side.rules),
        ("rule del", &side.rules_taken_away),
    ] {
        ip(netns, &commands(verb, entries))?;
    }
    if !side.nft.is_empty() {
        nft(netns, &side.nft)?;
    }
    for command in &side.run {
        run(netns, command)?;
    }
    Ok(())
}

/// Takes away what does not go with a pod's link: rules, and whatever `undo` says. What is gone already is no error.
pub fn undo(netns: &Netns, side: &Side) {
    for rule in commands("rule del", &side.rules) {
        let _ = ip(netns, &[rule]);
    }
    for command in &side.undo {
        let _ = run(netns, command);
    }
}

/// Loads a file of nft's.
///
/// # Errors
/// With nft's own words.
pub fn nft(netns: &Netns, text: &str) -> Result<()> {
    let output = netns.output(Command::new("nft").args(["-f", "-"]), text.as_bytes())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft in {}: {}; the file was:\n{text}", netns.name(), said.trim());
    Ok(())
}

fn run(netns: &Netns, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("an empty command in a description")?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    netns.must(program, &arguments).map(drop)
}

/// `ip` commands, each with its family where the entry says so.
fn commands(verb: &str, entries: &[String]) -> Vec<(bool, String)> {
    let command = |entry: &String| match entry.strip_prefix("-6 ") {
        Some(entry) => (true, format!("{verb} {entry}")),
        None => (false, format!("{verb} {entry}")),
    };
    entries.iter().map(command).collect()
}

fn ip(netns: &Netns, commands: &[(bool, String)]) -> Result<()> {
    for v6 in [false, true] {
        let lines: Vec<&str> =
            commands.iter().filter(|(only_v6, _)| *only_v6 == v6).map(|(_, line)| line.as_str()).collect();
        if lines.is_empty() {
            continue;
        }
        let text = format!("{}\n", lines.join("\n"));
        let family: &[&str] = if v6 { &["-6"] } else { &[] };
        let output = netns.output(Command::new("ip").args(family).args(["-batch", "-"]), text.as_bytes())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip in {}: {}; the commands were:\n{text}",
            netns.name(),
            said.trim()
        );
    }
    Ok(())
}
