//! Whose a namespace is, when it is not known to be the pod's: what the runtime says of its other sandboxes. Asked only
//! where an address alone speaks for a namespace, and the runtime could not tell of the pod's own sandbox.

use super::choose::addresses;
use super::message::{PodSandbox, READY};
use super::{Runtime, first_that_shows, seen_from_here, verbose};
use crate::adopt::Wanted;
use futures_util::future::join_all;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A sandbox, and what the runtime names as its own.
pub(super) struct Named {
    id: String,
    uid: String,
    addresses: Vec<IpAddr>,
    path: Option<PathBuf>,
}

impl Runtime {
    /// Says whose it is, if the runtime names a namespace, or an address of the pod's, for another pod. A runtime that
    /// does not answer names nothing.
    pub(in crate::adopt) async fn names_for_another(&self, path: &Path, wanted: &Wanted) -> Option<String> {
        if !self.is_on() {
            return None;
        }
        let named = self.named.get(self.name_all()).await.ok()?;
        named.iter().find_map(|sandbox| sandbox.claims(path, wanted))
    }

    /// The ready sandboxes, each with what its status says. One that has none is left out.
    async fn name_all(&self) -> Result<Vec<Named>, String> {
        let listing = self.batch.get(first_that_shows(&self.sockets)).await?;
        let ready = listing.sandboxes.iter().filter(|sandbox| sandbox.state == READY);
        let named = join_all(ready.map(|sandbox| self.name(sandbox))).await;
        Ok(named.into_iter().flatten().collect())
    }

    async fn name(&self, sandbox: &PodSandbox) -> Option<Named> {
        let answer = self.status(&sandbox.id).await.ok()?;
        let status = answer.status.filter(|status| status.id == sandbox.id)?;
        let path = verbose::place(&answer.info).ok().and_then(|place| place.path);
        let uid = sandbox.metadata.as_ref().map_or_else(String::new, |metadata| metadata.uid.clone());
        Some(Named { id: sandbox.id.clone(), uid, addresses: addresses(&status), path })
    }
}

impl Named {
    fn claims(&self, path: &Path, wanted: &Wanted) -> Option<String> {
        let Self { id, uid, addresses, path: own } = self;
        if uid == wanted.uid.as_str() {
            return None;
        }
        let whose = format!("sandbox {id} of the pod with uid {uid}");
        if own.as_ref().is_some_and(|own| seen_from_here(own).iter().any(|seen| seen == path)) {
            return Some(format!("has its address, and the runtime says that it is that of {whose}"));
        }
        let is_wanted =
            |ip: &&IpAddr| wanted.ips.iter().any(|claim| claim.to_canonical() == ip.to_canonical());
        let address = addresses.iter().find(is_wanted)?;
        Some(format!("has its address, and the runtime says that {address} is that of {whose}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_shared::ids::{PodRef, PodUid};

    #[test]
    fn a_path_or_an_address_of_another_pods_is_its() {
        let (uid, pod) = (PodUid::new("u1").unwrap(), PodRef::new("demo", "a"));
        let wanted = Wanted { uid, pod, ips: vec!["10.0.0.2".parse().unwrap()] };
        let named = |uid: &str, ip: &str, path: &str| Named {
            id: "s".into(),
            uid: uid.into(),
            addresses: ip.parse().into_iter().collect(),
            path: Some(path.into()),
        };
        let claims = |named: Named| named.claims(Path::new("/run/netns/a"), &wanted);
        assert!(claims(named("u2", "", "/var/run/netns/a")).is_some_and(|why| why.contains("uid u2")));
        assert!(
            claims(named("u2", "::ffff:10.0.0.2", "/run/netns/b"))
                .is_some_and(|why| why.contains("10.0.0.2"))
        );
        assert_eq!(claims(named("u2", "10.0.0.3", "/run/netns/b")), None);
        assert_eq!(claims(named("u1", "10.0.0.2", "/run/netns/a")), None);
    }
}
