//! Whether a namespace is a pod's, by the addresses in it. Pure.

use super::{Neighbours, Wanted};
use sluice_shared::ids::{NetnsId, PodUid};
use std::net::IpAddr;
use std::path::PathBuf;

/// How many of a pod's addresses are in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// None.
    None,
    /// Some, where the pod has several.
    Some,
    /// Every one.
    All,
}

/// A namespace that might be the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// Which.
    pub netns: NetnsId,
    /// The addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
}

/// Why none of the candidates is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// None has an address of the pod's.
    #[error("{}", nowhere(*looked_at))]
    Nowhere {
        /// How many there were.
        looked_at: usize,
    },
    /// Several have.
    #[error("{} have its address: which is the pod's cannot be told", list(paths))]
    Ambiguous {
        /// Which.
        paths: Vec<PathBuf>,
    },
    /// It has an address of another pod as well.
    #[error("{} has its address, and {address} of the pod with uid {other} as well", path.display())]
    Shared {
        /// Which.
        path: PathBuf,
        /// The other pod's address.
        address: IpAddr,
        /// The other pod.
        other: PodUid,
    },
}

/// How many of `claimed` are in `found`.
#[must_use]
pub fn fit(claimed: &[IpAddr], found: &[IpAddr]) -> Fit {
    let there = |ip: &&IpAddr| found.iter().any(|address| address.to_canonical() == ip.to_canonical());
    match claimed.iter().filter(there).count() {
        0 => Fit::None,
        some if some < claimed.len() => Fit::Some,
        _ => Fit::All,
    }
}

/// The one candidate that has the pod's addresses. One with all of them comes before one with some; two that fit
/// equally well are refused, and so is one that has another pod's address: whoever can add addresses to a namespace of
/// its own must not get another's identity by it.
///
/// # Errors
/// Says why none is taken.
pub fn only<'a>(
    candidates: &'a [Candidate],
    wanted: &Wanted,
    neighbours: &Neighbours,
) -> Result<&'a Candidate, Unfit> {
    let fits = |candidate: &Candidate| fit(&wanted.ips, &candidate.addresses);
    let best = candidates.iter().map(fits).max().unwrap_or(Fit::None);
    if best == Fit::None {
        return Err(Unfit::Nowhere { looked_at: candidates.len() });
    }
    let fitting: Vec<_> = candidates.iter().filter(|candidate| fits(candidate) == best).collect();
    let [candidate] = fitting[..] else {
        return Err(Unfit::Ambiguous { paths: fitting.into_iter().map(|c| c.path.clone()).collect() });
    };
    let others =
        |address: &IpAddr| Some((*address, neighbours.addresses.get(&address.to_canonical())?.clone()));
    if let Some((address, other)) = candidate.addresses.iter().find_map(others) {
        return Err(Unfit::Shared { path: candidate.path.clone(), address, other });
    }
    Ok(candidate)
}

fn nowhere(looked_at: usize) -> String {
    match looked_at {
        0 => "there is none".into(),
        1 => "the one that is there has none of its addresses".into(),
        several => format!("none of the {several} that are there has any of its addresses"),
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_shared::ids::PodRef;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn wanted(addresses: &[&str]) -> Wanted {
        Wanted { uid: PodUid::new("u1").unwrap(), pod: PodRef::new("demo", "a"), ips: ips(addresses) }
    }

    fn candidate(name: &str, addresses: &[&str]) -> Candidate {
        let inode = name.bytes().map(u64::from).sum();
        Candidate { path: name.into(), netns: NetnsId { dev: 4, inode }, addresses: ips(addresses) }
    }

    #[test]
    fn addresses_are_compared_as_what_they_are() {
        assert_eq!(fit(&ips(&["10.0.0.2"]), &ips(&["::ffff:10.0.0.2", "fe80::1"])), Fit::All);
        assert_eq!(fit(&ips(&["10.0.0.2", "fd00::2"]), &ips(&["10.0.0.2"])), Fit::Some);
        assert_eq!(fit(&ips(&["10.0.0.2"]), &ips(&["10.0.0.3"])), Fit::None);
    }

    #[test]
    fn exactly_one_candidate_is_taken() {
        let nobody = Neighbours::default();
        let (ours, other) = (candidate("a", &["10.0.0.2", "fe80::1"]), candidate("b", &["10.0.0.3"]));
        let wanted = wanted(&["10.0.0.2"]);
        assert_eq!(only(&[other.clone(), ours.clone()], &wanted, &nobody), Ok(&ours));
        assert_eq!(only(&[other], &wanted, &nobody), Err(Unfit::Nowhere { looked_at: 1 }));
        let planted = candidate("c", &["10.0.0.2"]);
        let refused = only(&[ours, planted], &wanted, &nobody).unwrap_err();
        assert_eq!(refused.to_string(), "a and c have its address: which is the pod's cannot be told");
    }

    #[test]
    fn one_with_both_families_comes_before_one_with_one() {
        let (half, whole) = (candidate("a", &["10.0.0.2"]), candidate("b", &["10.0.0.2", "fd00::2"]));
        let both = [half, whole.clone()];
        assert_eq!(only(&both, &wanted(&["10.0.0.2", "fd00::2"]), &Neighbours::default()), Ok(&whole));
    }

    #[test]
    fn a_pod_that_takes_anothers_address_does_not_get_its_identity() {
        let evil = PodUid::new("evil").unwrap();
        let neighbours = Neighbours {
            addresses: [("10.0.0.9".parse().unwrap(), evil.clone())].into(),
            known: [evil].into(),
            complete: true,
        };
        let planted = candidate("a", &["10.0.0.9", "10.0.0.2"]);
        let refused = only(&[planted], &wanted(&["10.0.0.2"]), &neighbours).unwrap_err();
        assert!(refused.to_string().contains("10.0.0.9 of the pod with uid evil"), "{refused}");
    }
}
