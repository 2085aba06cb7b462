//! The pods file as a value: read, checked, and compared with the version before.

use crate::names::{dns_label, dns_subdomain};
use crate::source::Event;
use crate::yaml::{self, Mistake, Step};
use serde::Deserialize;
use sluice_shared::facts::{NamespaceFacts, PodFacts};
use sluice_shared::ids::{PodRef, PodUid};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that one good version of the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    namespaces: BTreeMap<String, NamespaceFacts>,
    pods: BTreeMap<PodUid, PodFacts>,
}

/// The file as it is written. `pods` must be there, also when it is empty: a file that was cut off before it, or has just
/// been truncated, must not read as "every pod is gone".
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    namespaces: Vec<NamespaceFacts>,
    pods: Vec<PodFacts>,
}

impl Inventory {
    /// Reads a version of the file.
    ///
    /// # Errors
    /// The first mistake: one of YAML, of a field's type or value, or a namespace, uid or running pod that is there twice.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        if text.trim().is_empty() {
            let message = "the file is empty; for no pods at all, write `pods: []`";
            return Err(Mistake { at: None, field: String::new(), message: message.to_owned() });
        }
        let document: Document = yaml::parse(text)?;
        let mut inventory = Self::default();
        for (index, namespace) in document.namespaces.into_iter().enumerate() {
            let wrong = |field, message| Err(at(text, "namespaces", index, field, message));
            if let Err(why) = dns_label(&namespace.name) {
                return wrong("name", why);
            }
            if let Some(before) = inventory.namespaces.insert(namespace.name.clone(), namespace) {
                return wrong("name", format!("namespace {:?} is there twice", before.name));
            }
        }
        let mut running = BTreeSet::new();
        for (index, pod) in document.pods.into_iter().enumerate() {
            let wrong = |field, message| Err(at(text, "pods", index, field, message));
            if let Err((field, why)) = check_pod(&pod) {
                return wrong(field, why);
            }
            if !pod.phase.is_terminal() && !running.insert(pod.pod_ref()) {
                let message = format!("pod {} is there twice, and neither has ended", pod.pod_ref());
                return wrong("name", message);
            }
            if let Some(before) = inventory.pods.insert(pod.uid.clone(), pod) {
                return wrong("uid", format!("{} is the uid of pod {} too", before.uid, before.pod_ref()));
            }
        }
        Ok(inventory)
    }

    /// What has changed since `before`, in an order that holds at every step: namespaces before their pods, the end of a
    /// pod before the start of its successor, the end of a namespace last.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Event> {
        let gone = |pods: &BTreeMap<PodUid, PodFacts>, uid: &PodUid| !pods.contains_key(uid);
        let namespaces = changed(&before.namespaces, &self.namespaces).cloned().map(Event::Namespace);
        let pods_gone = before.pods.keys().filter(|uid| gone(&self.pods, uid)).cloned().map(Event::PodGone);
        let pods = changed(&before.pods, &self.pods).map(|pod| Event::Pod(Box::new(pod.clone())));
        let namespaces_gone = before
            .namespaces
            .keys()
            .filter(|name| !self.namespaces.contains_key(*name))
            .cloned()
            .map(Event::NamespaceGone);
        namespaces.chain(pods_gone).chain(pods).chain(namespaces_gone).collect()
    }

    /// How many namespaces and pods it has.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.namespaces.len(), self.pods.len())
    }
}

fn changed<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a V> {
    now.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(_, value)| value)
}

fn at(text: &str, list: &str, index: usize, field: &str, message: String) -> Mistake {
    let path = [Step::Key(list.to_owned()), Step::Index(index), Step::Key(field.to_owned())];
    Mistake::at_path(text, &path, message)
}

/// What the API server would have refused.
fn check_pod(pod: &PodFacts) -> Result<(), (&'static str, String)> {
    let PodRef { namespace, name } = pod.pod_ref();
    dns_label(&namespace).map_err(|why| ("namespace", why))?;
    dns_subdomain(&name).map_err(|why| ("name", why))?;
    dns_subdomain(&pod.service_account).map_err(|why| ("serviceAccount", why))?;
    if pod.probe_ports.contains(&0) {
        return Err(("probePorts", "0 is not a port".to_owned()));
    }
    if let Some(ip) = pod.ips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()) {
        return Err(("ips", format!("{ip} cannot be a pod's address")));
    }
    match &pod.netns {
        Some(path) if !path.starts_with('/') => Err(("netns", format!("{path:?} is not an absolute path"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(list: &str) -> Result<Inventory, String> {
        Inventory::parse(list).map_err(|mistake| mistake.to_string())
    }

    fn said(now: &str, before: &str) -> Vec<String> {
        let events = pods(now).unwrap().since(&pods(before).unwrap());
        let name = |event| match event {
            Event::Pod(pod) => format!("+{}", pod.uid),
            Event::PodGone(uid) => format!("-{uid}"),
            Event::Namespace(namespace) => format!("+ns {}", namespace.name),
            Event::NamespaceGone(name) => format!("-ns {name}"),
            other => format!("{other:?}"),
        };
        events.into_iter().map(name).collect()
    }

    const TWO: &str = "namespaces: [{name: shop, labels: {a: b}}, {name: old}]\n\
                       pods:\n- {uid: u1, name: web, namespace: shop}\n- {uid: u2, name: db, namespace: old}\n";

    #[test]
    fn only_what_changed_is_said_and_in_an_order_that_always_holds() {
        assert_eq!(said(TWO, "pods: []"), ["+ns old", "+ns shop", "+u1", "+u2"]);
        assert!(said(TWO, TWO).is_empty());
        let next = "namespaces: [{name: shop, labels: {a: c}}, {name: new}]\n\
                    pods:\n- {uid: u3, name: web, namespace: shop}\n- {uid: u4, name: db, namespace: new}\n";
        let expected = ["+ns new", "+ns shop", "-u1", "-u2", "+u3", "+u4", "-ns old"];
        assert_eq!(said(next, TWO), expected);
        let relabelled = TWO.replace("name: db,", "name: db, labels: {x: y},");
        assert_eq!(said(&relabelled, TWO), ["+u2"]);
    }

    #[test]
    fn every_mistake_is_named_with_line_and_field() {
        let pod = |rest: &str| format!("pods:\n- {{uid: u1, name: a, namespace: n{rest}}}\n");
        for (text, line, field, what) in [
            (String::new(), None, "", "empty"),
            (" \n".to_owned(), None, "", "empty"),
            ("namespaces: []\n".to_owned(), Some(1), "", "missing field `pods`"),
            ("pods: []\nnamespaces: [{name: A}]\n".to_owned(), Some(2), "namespaces[0].name", "DNS label"),
            (
                "pods: []\nnamespaces:\n- name: a\n- name: a\n".to_owned(),
                Some(4),
                "namespaces[1].name",
                "twice",
            ),
            (pod("") + "- {uid: u1, name: b, namespace: n}\n", Some(3), "pods[1].uid", "of pod n/a too"),
            (pod("") + "- {uid: u2, name: a, namespace: n}\n", Some(3), "pods[1].name", "there twice"),
            (pod(", ips: [nope]"), Some(2), "pods[0].ips[0]", "IP address"),
            (pod(", ips: ['127.0.0.1']"), Some(2), "pods[0].ips", "cannot be a pod's address"),
            (pod(", phase: Up"), Some(2), "pods[0].phase", "expected one of `Pending`"),
            (pod(", netns: var/run"), Some(2), "pods[0].netns", "absolute"),
            (pod(", probePorts: [0]"), Some(2), "pods[0].probePorts", "not a port"),
            (pod(", probePorts: [70000]"), Some(2), "pods[0].probePorts[0]", "70000"),
            (pod(", serviceAccount: ''"), Some(2), "pods[0].serviceAccount", "DNS name"),
            (pod(", hostNetwrok: true"), Some(2), "pods[0].hostNetwrok", "expected one of"),
            ("pods:\n- {uid: a/b, name: a, namespace: n}\n".to_owned(), Some(2), "pods[0].uid", "not valid"),
            (
                "pods:\n- {uid: a, name: \"a\\nb\", namespace: n}\n".to_owned(),
                Some(2),
                "pods[0].name",
                "DNS name",
            ),
            ("pods: []\n---\npods: []\n".to_owned(), None, "", "more than one document"),
        ] {
            let mistake = Inventory::parse(&text).unwrap_err();
            assert_eq!(mistake.field, field, "{text:?}: {mistake}");
            assert_eq!(mistake.at.map(|at| at.line), line, "{text:?}: {mistake}");
            assert!(mistake.message.contains(what), "{text:?}: {mistake}");
        }
    }

    #[test]
    fn an_ended_pod_may_share_its_name_with_its_successor() {
        let text = "pods:\n- {uid: u1, name: job, namespace: n, phase: Succeeded}\n- {uid: u2, name: job, namespace: n}\n";
        assert_eq!(pods(text).unwrap().counts(), (0, 2));
    }
}
