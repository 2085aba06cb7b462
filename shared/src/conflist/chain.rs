//! What is to be written and removed so that our entry is in the chain once, in one way; or in none.

#[cfg(test)]
mod tests;

use super::directory::{Directory, DropIn, File, Found, OWNED_NAMES, Primary, is_owned, is_parked};
use super::way::{DropIns, Way, choose, is_network_name};
use super::{ConflistError, Entry, contains, drop_in, insert, remove, stands, succession, wrap};

/// What the node wants.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Our entry.
    pub entry: &'a Entry,
    /// The way that the operator asks for; `None` for the least invasive one.
    pub way: Option<Way>,
    /// What the runtime does with drop-ins.
    pub drop_ins: DropIns,
    /// The network whose directory a meta-plugin reads (Multus' auxiliary chain); no primary is looked for then.
    pub auxiliary_chain: Option<&'a str>,
    /// Whether an istio-cni that was here is replaced: its entry goes as ours comes, and files of its own go.
    pub replace_istio: bool,
    /// Whether an entry may be added where none is: the agent serves, or has served here before.
    pub may_add: bool,
    /// Whether a list of our own may stay without the primary's file: after a reboot, until the primary has written it.
    pub outlive: bool,
}

/// One change of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Change a file of somebody else's, if it still has the text `from`.
    Edit {
        /// Its name.
        file: String,
        /// What it says now.
        from: String,
        /// What it shall say.
        to: String,
    },
    /// Write our own list.
    PutOwned {
        /// Its name.
        file: String,
        /// Its text.
        text: String,
        /// The file whose mode, owner and label it gets.
        like: String,
    },
    /// Remove our own list.
    RemoveOwned {
        /// Its name.
        file: String,
    },
    /// Remove a file that is istio-cni's own.
    RemoveIstios {
        /// Its name.
        file: String,
    },
    /// Write our drop-in for a network.
    PutDropIn {
        /// The network.
        network: String,
        /// Its text.
        text: String,
    },
    /// Remove our drop-in for a network.
    RemoveDropIn {
        /// The network.
        network: String,
    },
}

/// Where our entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// How it got there.
    pub way: Way,
    /// Why that way.
    pub why: String,
    /// The file that it is in, below the directory.
    pub file: String,
    /// The primary's file.
    pub primary: Option<String>,
    /// The types of the primary's plugins.
    pub types: Vec<String>,
}

/// What to do. What is removed comes before what is added, so that we are never in the chain twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order.
    pub steps: Vec<Step>,
    /// Where our entry is after them, or why it is nowhere, or not known to be anywhere.
    pub outcome: Result<Chained, String>,
}

/// The one place that our entry shall be in.
enum Target<'a> {
    File(&'a str),
    /// A list, and the one that it is a copy of.
    Copied(&'a str, &'a str),
    DropIn(&'a str),
    Nowhere,
}

/// What to do, so that our entry is in the chain.
#[must_use]
pub fn plan(directory: &Directory, wish: &Wish<'_>) -> Plan {
    if wish.replace_istio
        && let Some(without) = succession::without_istio(directory)
    {
        let planned = planned(&without, wish);
        // Its entry keeps pods of the mesh from bypassing it until ours does.
        if planned.outcome.is_ok() {
            return succession::onto(directory, &without, planned);
        }
    }
    planned(directory, wish)
}

fn planned(directory: &Directory, wish: &Wish<'_>) -> Plan {
    if let Some(chain) = wish.auxiliary_chain {
        return auxiliary(directory, chain, wish);
    }
    let primary = match directory.primary() {
        Primary::Found(primary) => primary,
        Primary::Unreadable { name, why } => {
            return Plan { steps: Vec::new(), outcome: Err(format!("{name} cannot be understood: {why}")) };
        }
        Primary::Absent { behind } => return absent(directory, behind, wish),
    };
    let ours_is_there =
        directory.drop_ins.iter().any(|drop_in| Some(&drop_in.network) == primary.network.as_ref());
    let (way, why) = match choose(&primary, wish.way, wish.drop_ins, ours_is_there) {
        Ok(chosen) => chosen,
        Err(why) => return Plan { steps: leave(directory), outcome: Err(why) },
    };
    match way {
        Way::InPlace => in_place(directory, &primary, why, wish),
        Way::Owned => owned(directory, &primary, why, wish),
        Way::DropIn => {
            let network = primary.network.clone().unwrap_or_default();
            // The list is asked whether it could take our entry at all.
            let text = insert(primary.text, wish.entry).and_then(|_| drop_in(wish.entry));
            drop_in_for(directory, &network, text, Some(&primary), why, wish)
        }
    }
}

/// What to do, so that nothing of ours is left: parked files included.
#[must_use]
pub fn leave(directory: &Directory) -> Vec<Step> {
    all_but(directory, &Target::Nowhere)
}

impl Directory {
    /// What the directory is after these steps, when nobody else changes it.
    #[must_use]
    pub fn after(&self, steps: &[Step]) -> Self {
        let Self { mut files, mut drop_ins } = self.clone();
        for step in steps {
            match step.clone() {
                Step::Edit { file, to: text, .. } | Step::PutOwned { file, text, .. } => {
                    files.retain(|found| found.name != file);
                    files.push(File { name: file, text: Ok(text) });
                }
                Step::RemoveOwned { file } | Step::RemoveIstios { file } => {
                    files.retain(|found| found.name != file);
                }
                Step::PutDropIn { network, text } => {
                    drop_ins.retain(|found| found.network != network);
                    drop_ins.push(DropIn { network, text: Ok(text) });
                }
                Step::RemoveDropIn { network } => drop_ins.retain(|found| found.network != network),
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        drop_ins.sort_by(|a, b| a.network.cmp(&b.network));
        Self { files, drop_ins }
    }

    /// Whether an entry of ours is in a file that a runtime could take, parked ones left out.
    #[must_use]
    pub fn has_us(&self) -> bool {
        let ours = |file: &File| {
            !is_parked(&file.name) && file.text.as_ref().is_ok_and(|text| contains(text) == Ok(true))
        };
        !self.drop_ins.is_empty() || self.files.iter().any(ours)
    }
}

impl Step {
    /// Whether it only takes away.
    #[must_use]
    pub fn takes_away(&self) -> bool {
        match self {
            Self::RemoveOwned { .. } | Self::RemoveIstios { .. } | Self::RemoveDropIn { .. } => true,
            Self::Edit { to, .. } => contains(to) == Ok(false),
            Self::PutOwned { .. } | Self::PutDropIn { .. } => false,
        }
    }
}

fn in_place(directory: &Directory, primary: &Found<'_>, why: String, wish: &Wish<'_>) -> Plan {
    let edited = match stands(primary.text, wish.entry) {
        Ok(true) => Ok(None),
        Ok(false) => insert(primary.text, wish.entry).map(Some),
        Err(error) => Err(error),
    };
    let edited = match edited {
        Ok(edited) => edited,
        Err(error) => return cannot(directory, primary, &error),
    };
    let target =
        primary.follows.map_or(Target::File(primary.name), |base| Target::Copied(primary.name, base));
    let mut steps = all_but(directory, &target);
    if let Some(step) = primary.follows.and_then(|base| into_base(directory, base, wish)) {
        if !wish.may_add && contains(primary.text) != Ok(true) {
            return Plan { steps, outcome: Err(not_yet()) };
        }
        // The owner of the copy has until the next write to bring our entry over.
        steps.push(step);
        return Plan { steps, outcome: Ok(chained(Way::InPlace, why, primary.name, Some(primary))) };
    }
    // An entry that is there already, and out of date or place, is mended whether the agent serves or not.
    if let Some(to) = edited {
        if !wish.may_add && contains(primary.text) != Ok(true) {
            return Plan { steps, outcome: Err(not_yet()) };
        }
        steps.push(Step::Edit { file: primary.name.to_owned(), from: primary.text.to_owned(), to });
    }
    Plan { steps, outcome: Ok(chained(Way::InPlace, why, primary.name, Some(primary))) }
}

/// Our entry for a list that the primary's is a copy of; `None` when it is there, or cannot be.
fn into_base(directory: &Directory, base: &str, wish: &Wish<'_>) -> Option<Step> {
    let file = directory.files.iter().find(|file| file.name == base)?;
    let from = file.text.as_ref().ok()?;
    if stands(from, wish.entry) == Ok(true) {
        return None;
    }
    let to = insert(from, wish.entry).ok()?;
    Some(Step::Edit { file: base.to_owned(), from: from.clone(), to })
}

fn owned(directory: &Directory, primary: &Found<'_>, why: String, wish: &Wish<'_>) -> Plan {
    let first = directory.others().first().map_or("", |file| file.name.as_str());
    let Some(name) = OWNED_NAMES.into_iter().find(|name| *name < first) else {
        return Plan {
            steps: leave(directory),
            outcome: Err(format!("no list of our own could sort before {first}")),
        };
    };
    let text = if primary.list { insert(primary.text, wish.entry) } else { wrap(primary.text, wish.entry) };
    let text = match text {
        Ok(text) => text,
        Err(error) => return cannot(directory, primary, &error),
    };
    let mut steps = all_but(directory, &Target::File(name));
    let there = directory.files.iter().find(|file| file.name == name);
    if there.is_none_or(|file| file.text.as_ref() != Ok(&text)) {
        // One that is there follows the primary's, whether the agent serves or not.
        if there.is_none() && !wish.may_add {
            return Plan { steps, outcome: Err(not_yet()) };
        }
        steps.push(Step::PutOwned { file: name.to_owned(), text, like: primary.name.to_owned() });
    }
    Plan { steps, outcome: Ok(chained(Way::Owned, why, name, Some(primary))) }
}

fn drop_in_for(
    directory: &Directory,
    network: &str,
    text: Result<String, ConflistError>,
    primary: Option<&Found<'_>>,
    why: String,
    wish: &Wish<'_>,
) -> Plan {
    let text = match (text, primary) {
        (Ok(text), _) => text,
        (Err(error), Some(primary)) => return cannot(directory, primary, &error),
        (Err(error), None) => return Plan { steps: Vec::new(), outcome: Err(error.to_string()) },
    };
    let mut steps = all_but(directory, &Target::DropIn(network));
    let there = directory.drop_ins.iter().find(|drop_in| drop_in.network == network);
    if there.is_none_or(|drop_in| drop_in.text.as_ref() != Ok(&text)) {
        if there.is_none() && !wish.may_add {
            return Plan { steps, outcome: Err(not_yet()) };
        }
        steps.push(Step::PutDropIn { network: network.to_owned(), text });
    }
    let file = format!("{network}/{}", super::DROP_IN_FILE);
    Plan { steps, outcome: Ok(chained(Way::DropIn, why, &file, primary)) }
}

fn auxiliary(directory: &Directory, chain: &str, wish: &Wish<'_>) -> Plan {
    if !is_network_name(chain) {
        let outcome = Err(format!("the auxiliary chain {chain:?} is no network name"));
        return Plan { steps: Vec::new(), outcome };
    }
    let why = "the option names an auxiliary chain".to_owned();
    drop_in_for(directory, chain, drop_in(wish.entry), None, why, wish)
}

/// A list of our own without the primary's would defeat the primary's way of saying "not ready". A drop-in does
/// nothing without a list and stays, for the moment in which the list comes back.
fn absent(directory: &Directory, behind: Option<&str>, wish: &Wish<'_>) -> Plan {
    let waits = behind.map_or_else(
        || "no primary CNI has written its configuration yet".to_owned(),
        |meta| format!("only {meta} is here, and the primary that it calls has its configuration elsewhere"),
    );
    let owned = directory.files.iter().filter(|file| is_owned(&file.name));
    if wish.outlive && owned.clone().next().is_some() {
        return Plan {
            steps: Vec::new(),
            outcome: Err(format!("{waits}; our list of before the boot stays")),
        };
    }
    let steps = owned.map(|file| Step::RemoveOwned { file: file.name.clone() }).collect();
    Plan { steps, outcome: Err(waits) }
}

/// The primary's file cannot take our entry: what is half written is waited for, and what is otherwise wrong is left.
fn cannot(directory: &Directory, primary: &Found<'_>, error: &ConflistError) -> Plan {
    let steps = if error.may_pass() { Vec::new() } else { leave(directory) };
    Plan { steps, outcome: Err(format!("{}: {error}", primary.name)) }
}

fn all_but(directory: &Directory, target: &Target<'_>) -> Vec<Step> {
    let drop_ins = directory.drop_ins.iter().filter_map(|drop_in| match target {
        Target::DropIn(network) if *network == drop_in.network => None,
        _ => Some(Step::RemoveDropIn { network: drop_in.network.clone() }),
    });
    let files = directory.files.iter().filter_map(|file| match target {
        Target::File(name) if *name == file.name => None,
        Target::Copied(copy, base) if [*copy, *base].contains(&file.name.as_str()) => None,
        _ if is_owned(&file.name) => Some(Step::RemoveOwned { file: file.name.clone() }),
        _ => without_us(file),
    });
    drop_ins.chain(files).collect()
}

fn without_us(File { name, text }: &File) -> Option<Step> {
    let text = text.as_ref().ok()?;
    if contains(text) != Ok(true) {
        return None;
    }
    Some(Step::Edit { file: name.clone(), from: text.clone(), to: remove(text).ok()? })
}

fn chained(way: Way, why: String, file: &str, primary: Option<&Found<'_>>) -> Chained {
    Chained {
        way,
        why,
        file: file.to_owned(),
        primary: primary.map(|primary| primary.name.to_owned()),
        types: primary.map(|primary| primary.types.clone()).unwrap_or_default(),
    }
}

fn not_yet() -> String {
    "the agent does not serve yet, and pods would wait for it".to_owned()
}
