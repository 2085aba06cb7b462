//! `sluicectl doctor`: what on a node will get in the mesh's way, before it does.
//!
//! [`Facts`] are what was gathered, each thing with the reason where it could not be looked at; [`diagnose`] makes a
//! [`Report`] of them. What was not looked at is in the report too: silence would read as health.
//!
//! | module | what it judges |
//! |---|---|
//! | `chain` | the CNI directories: who is the primary, how we would get into its chain, what is left over |
//! | `primary` | what the primary CNI is known to do to a mesh: Cilium, AWS, Calico, OVN-Kubernetes |
//! | `kernel` | what the kernel can do, by trial, and who forbids it |
//! | `node` | sysctls, limits, NodeLocal DNS |
//! | `mesh` | another mesh on the same node |
//! | `policy` | NetworkPolicies that leave out port 15008 |
//! | `product` | the agent, ztunnel, and the files by which our own parts tell each other things |

mod catalogue;
mod chain;
mod facts;
mod kernel;
mod mesh;
mod node;
mod policy;
mod primary;
mod product;
mod text;

#[cfg(test)]
mod tests;

pub use catalogue::{ALL, Check};
pub use facts::{
    Agent, BpfFacts, BpfProgram, CgroupTree, Cluster, CniFacts, DaemonSet, Facts, KernelTrials, Limits, Look,
    Note, NoteKind, Notes, PluginFile, Trial, Unlooked,
};
pub use mesh::MESH_PLUGINS;
pub use policy::NetworkPolicy;

use serde::Serialize;
use std::collections::BTreeSet;

/// The version of the report's JSON.
pub const REPORT_VERSION: u32 = 1;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know; nothing has to be done.
    Note,
    /// It bites in the circumstances that it names, or it could not be told whether it does.
    Warning,
    /// The mesh does not work on this node as it is, or pods will not start.
    Problem,
}

/// Something that was seen, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// A file, an object of the API server, or whoever said it.
    pub place: String,
    /// The line in that file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is there.
    pub value: String,
}

/// One thing that gets in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check that found it: one of [`ALL`], described in `docs/doctor.md`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is so, in one line.
    pub what: String,
    /// What that was seen by.
    pub evidence: Vec<Evidence>,
    /// Why it matters.
    pub why: &'static str,
    /// What to do: a command, or a setting.
    pub fix: String,
}

/// Something that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What to do so that it is.
    pub how: String,
    /// The checks that could not be made, or only in part.
    pub checks: Vec<&'static str>,
    /// Whether it needs the API server, and nobody said how to reach it: then it is no fault of this run.
    pub not_asked_for: bool,
}

/// What a node's examination has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`REPORT_VERSION`]
    pub version: u32,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// What was not looked at.
    pub not_looked_at: Vec<Unseen>,
    /// The checks that were made in full and found nothing.
    pub passed: Vec<&'static str>,
}

/// What has come together so far.
#[derive(Debug, Default)]
struct Diagnosis {
    findings: Vec<Finding>,
    unseen: Vec<Unseen>,
    looked: BTreeSet<&'static str>,
}

/// Judges what was gathered.
#[must_use]
pub fn diagnose(facts: &Facts) -> Report {
    let mut diagnosis = Diagnosis::default();
    chain::check(facts, &mut diagnosis);
    primary::check(facts, &mut diagnosis);
    kernel::check(facts, &mut diagnosis);
    node::check(facts, &mut diagnosis);
    mesh::check(facts, &mut diagnosis);
    policy::check(facts, &mut diagnosis);
    product::check(facts, &mut diagnosis);
    diagnosis.report()
}

impl Finding {
    fn new(
        check: &'static Check,
        severity: Severity,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let (what, fix) = (what.into(), fix.into());
        Self { id: check.id, severity, what, evidence: Vec::new(), why: check.why, fix }
    }

    fn seen(mut self, place: impl Into<String>, value: impl Into<String>) -> Self {
        self.evidence.push(Evidence { place: place.into(), line: None, value: value.into() });
        self
    }

    /// With the first line of `text` that says `needle`; of the whole text where no line does.
    fn seen_in(mut self, place: impl Into<String>, text: &str, needle: &str) -> Self {
        let (line, value) = match text.lines().enumerate().find(|(_, line)| line.contains(needle)) {
            // Compact JSON is one long line.
            Some((index, line)) if line.len() <= 200 => (Some(index + 1), line.trim().to_owned()),
            Some((index, _)) => (Some(index + 1), needle.to_owned()),
            None => (None, needle.to_owned()),
        };
        self.evidence.push(Evidence { place: place.into(), line, value });
        self
    }
}

impl Diagnosis {
    fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// What was seen, for these checks; `None`, and said, when it was not looked at.
    fn look<'a, T>(
        &mut self,
        what: &str,
        checks: &[&'static Check],
        fact: Result<&'a T, &Unlooked>,
    ) -> Option<&'a T> {
        match fact {
            Ok(seen) => {
                self.looked.extend(checks.iter().map(|check| check.id));
                Some(seen)
            }
            Err(unlooked) => {
                self.miss(what, checks, unlooked);
                None
            }
        }
    }

    /// For checks that more than this decides: what is missing is said, what is there does not make them complete.
    fn peek<'a, T>(
        &mut self,
        what: &str,
        checks: &[&'static Check],
        fact: Result<&'a T, &Unlooked>,
    ) -> Option<&'a T> {
        fact.map_err(|unlooked| self.miss(what, checks, unlooked)).ok()
    }

    fn miss(
        &mut self,
        what: &str,
        checks: &[&'static Check],
        Unlooked { why, how, not_asked_for }: &Unlooked,
    ) {
        let checks = checks.iter().map(|check| check.id).collect();
        let (what, why, how) = (what.to_owned(), why.clone(), how.clone());
        let unseen = Unseen { what, why, how, checks, not_asked_for: *not_asked_for };
        match self.unseen.iter_mut().find(|said| said.what == unseen.what && said.why == unseen.why) {
            Some(said) => said.checks.extend(unseen.checks),
            None => self.unseen.push(unseen),
        }
    }

    fn report(self) -> Report {
        let Self { mut findings, mut unseen, looked } = self;
        // Stable, so that within one severity the order is that of the checks.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        for unseen in &mut unseen {
            unseen.checks.sort_unstable();
            unseen.checks.dedup();
        }
        let missed = |id: &str| unseen.iter().any(|unseen| unseen.checks.contains(&id));
        let found = |id: &str| findings.iter().any(|finding| finding.id == id);
        let passed = looked.into_iter().filter(|id| !missed(id) && !found(id)).collect();
        Report { version: REPORT_VERSION, findings, not_looked_at: unseen, passed }
    }
}

impl Report {
    /// How many findings are of this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// For an exit code: the worst finding. What should have been looked at and was not is a warning too; with
    /// `complete`, so is what nobody asked for.
    #[must_use]
    pub fn worst(&self, complete: bool) -> Option<Severity> {
        let blind = self.not_looked_at.iter().any(|unseen| complete || !unseen.not_asked_for);
        let found = self.findings.iter().map(|finding| finding.severity).max();
        found.max(blind.then_some(Severity::Warning))
    }
}

impl Severity {
    /// As in the report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}
