//! What held and what did not: said as it happens, in a table at the end, and in a file for programs.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A run's checks.
#[derive(Debug)]
pub struct Report {
    name: String,
    begun: Instant,
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What should hold, as a sentence.
    pub name: String,
    /// Whether it does.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

#[derive(Serialize)]
struct Summary<'a> {
    passed: usize,
    failed: usize,
    checks: &'a [Check],
}

impl Report {
    /// A report that will be `target/reports/<name>.json`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), begun: Instant::now(), checks: Vec::new() }
    }

    /// Says what happens now.
    pub fn step(&self, what: &str) {
        println!("\n[{:5.1} s] {what}", self.begun.elapsed().as_secs_f32());
    }

    /// Notes one check. An error is a failed check: the run goes on.
    pub fn check(&mut self, name: &str, look: impl FnOnce() -> Result<String>) -> bool {
        let outcome = look();
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|why| format!("{why:#}"));
        println!(
            "  {} {name}\n       {}",
            if ok { "ok  " } else { "FAIL" },
            detail.replace('\n', "\n       ")
        );
        self.checks.push(Check { name: name.to_owned(), ok, detail });
        ok
    }

    /// Whether everything held, and there was something to hold.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// Prints the table and writes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<()> {
        let failed = self.checks.iter().filter(|check| !check.ok).count();
        let passed = self.checks.len() - failed;
        println!("\n{}", "-".repeat(100));
        for check in &self.checks {
            let first = check.detail.lines().next().unwrap_or_default();
            println!("{}  {:<62}  {first}", if check.ok { "ok  " } else { "FAIL" }, check.name);
        }
        println!("{}", "-".repeat(100));
        println!("{passed} passed, {failed} failed, {:.1} s", self.begun.elapsed().as_secs_f32());
        let path = reports_dir()?.join(format!("{}.json", self.name));
        let summary = Summary { passed, failed, checks: &self.checks };
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?)
            .with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }
}

/// Copies the lab's files (logs, configurations, captures) to `target/reports/<name>-files`, since the lab's own
/// directory ends with it.
///
/// # Errors
/// When something cannot be copied.
pub fn keep_files(name: &str, dir: &Path) -> Result<PathBuf> {
    let to = reports_dir()?.join(format!("{name}-files"));
    if to.exists() {
        std::fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
    }
    copy(dir, &to)?;
    Ok(to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        // Sockets are left out: without a program behind them they say nothing.
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// `target/reports`, beside the directory that the running program is in.
///
/// # Errors
/// When it cannot be made.
pub fn reports_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("which program is this?")?;
    let target = this.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    let dir = target.map_or_else(|| PathBuf::from("target"), PathBuf::from).join("reports");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}
