//! A primary CNI's own programs and files: plugins that were built of its sources, and what runs beside them on a node.

use super::describe::Cell;
use super::words::Words;
use crate::lab::agent::PATIENCE;
use crate::lab::eventually;
use crate::lab::process::{Launch, Process};
use crate::lab::topology::Node;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// Where real plugins are that are not the distribution's, below the build's directory.
const BUILT_PLUGINS: [&str; 2] = ["cluster/bin/primaries", "cluster/bin/cni"];

/// Where plugins are that this project builds of others' sources, if they have been built.
#[must_use]
pub fn built_plugins() -> Vec<PathBuf> {
    let this = std::env::current_exe().unwrap_or_default();
    let target = this.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    let Some(target) = target else { return Vec::new() };
    BUILT_PLUGINS.iter().map(|below| target.join(below)).filter(|dir| dir.is_dir()).collect()
}

/// Writes the files and starts the programs that the primary has on a node; returns when pods can be attached.
///
/// # Errors
/// Which file cannot be written, or which program does not start, and its last words.
pub fn company(cell: &Cell, words: &Words, node: &Node) -> Result<Vec<Process>> {
    for (path, text) in &cell.files {
        let path = PathBuf::from(words.put_into(path));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(&path, words.put_into(text)).with_context(|| format!("write {}", path.display()))?;
    }
    let mut programs = Vec::new();
    for (name, command) in &cell.programs {
        let (program, arguments) =
            command.split_first().with_context(|| format!("programs.{name}: empty"))?;
        let found = built_plugins().into_iter().map(|dir| dir.join(program)).find(|path| path.is_file());
        let program = found.unwrap_or_else(|| PathBuf::from(program));
        let launch = Launch::new(program, &node.netns)
            .in_cgroup(&node.cgroup(name)?)
            .args(arguments.iter().map(|argument| words.put_into(argument)));
        programs.push(launch.start(name, &node.logs())?);
    }
    for path in &cell.awaits {
        eventually(&format!("{} to be there", path.display()), PATIENCE, || {
            programs.iter_mut().try_for_each(Process::must_run)?;
            ensure!(path.exists(), "it is not");
            Ok(())
        })
        .map_err(|why| programs.iter().fold(why, |why, program| why.context(program.last_words())))?;
    }
    Ok(programs)
}
