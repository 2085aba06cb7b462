//! What the pods were, when: from the log of changes, since when each had its addresses and since when its
//! connections must not leave in plaintext. Pure: the judge of a capture must not look anywhere else.

use super::manifests::SELECTOR;
use crate::cluster::watch::seen::{Object, Pod};
use crate::cluster::watch::{Change, What};
use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT, MODE_NONE};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// A time from which on, and until when if it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first moment.
    pub from: SystemTime,
    /// Its last moment, if it has ended.
    pub until: Option<SystemTime>,
}

/// A pod's life as the API server showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// `metadata.uid`
    pub uid: String,
    /// `namespace/name`
    pub name: String,
    /// When it was first seen.
    pub seen: SystemTime,
    /// Its addresses, each with the time in which it can have been its own.
    pub addresses: Vec<(IpAddr, Span)>,
    /// When nothing that it begins may leave in plaintext.
    pub captured: Vec<Span>,
    /// When peers could know that it is reached over HBONE.
    pub hbone: Vec<Span>,
}

/// A pod may be let go before its watchers hear that it was: what it begins so shortly before they hear is not held
/// against it.
const HEARD_LATE: Duration = Duration::from_secs(2);

impl Span {
    fn from(from: SystemTime) -> Self {
        Self { from, until: None }
    }

    /// Whether it holds `at`.
    #[must_use]
    pub fn holds(&self, at: SystemTime) -> bool {
        self.from <= at && self.until.is_none_or(|until| at < until)
    }

    fn end(&mut self, at: SystemTime) {
        self.until.get_or_insert(at);
    }
}

impl Life {
    /// Whether `ip` can have been its own at `at`.
    #[must_use]
    pub fn had(&self, ip: IpAddr, at: SystemTime) -> bool {
        self.addresses.iter().any(|(own, span)| *own == ip && span.holds(at))
    }

    /// Whether nothing that it begins may leave in plaintext at `at`.
    #[must_use]
    pub fn must_be_captured(&self, at: SystemTime) -> bool {
        self.captured.iter().any(|span| span.holds(at))
    }

    /// Whether peers knew by `at`, for `settled` at least, that it is reached over HBONE.
    #[must_use]
    pub fn is_hbone(&self, at: SystemTime, settled: Duration) -> bool {
        self.hbone.iter().any(|span| span.holds(at) && span.from + settled <= at)
    }
}

/// Pods' lives from the log of changes. Pods that were made at `guarded` or later are guarded from their first packet
/// on if they are of the mesh then; those before it, when no agent or plugin was on the nodes, once they are reported
/// `enabled`.
#[must_use]
pub fn lives(log: &[Change], guarded: SystemTime) -> Vec<Life> {
    let mut told =
        Telling { guarded, namespaces: BTreeMap::new(), lives: BTreeMap::new(), early: BTreeSet::new() };
    for change in log {
        match &change.what {
            What::Is(Object::Namespace(namespace)) => {
                told.namespaces.insert(namespace.name.clone(), namespace.labels.clone());
                told.judge_all(&namespace.name, change.at);
            }
            What::Is(Object::Pod(pod)) => told.pod(pod, change.at),
            What::Is(Object::Service(_)) => {}
            What::PodGone(uid) => told.gone(uid, change.at),
        }
    }
    told.lives.into_values().map(|(_, life)| life).collect()
}

struct Telling {
    guarded: SystemTime,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    lives: BTreeMap<String, (Pod, Life)>,
    /// Pods that were made under guard and heard of before their namespace: the two come by different watches.
    early: BTreeSet<String>,
}

/// Whether a pod's labels, and those of its namespace, put it into the mesh. Said here once more, in the plainest words,
/// since what the tests expect must not come from the code that they test.
fn is_wanted(pod: &Pod, namespace: &BTreeMap<String, String>) -> bool {
    let own = pod.labels.get(LABEL_DATAPLANE_MODE).map(String::as_str);
    let theirs = namespace.get(LABEL_DATAPLANE_MODE).map(String::as_str);
    let labelled = own == Some(MODE_AMBIENT) || (theirs == Some(MODE_AMBIENT) && own != Some(MODE_NONE));
    let selected = pod.labels.get(SELECTOR.0).is_some_and(|value| value == SELECTOR.1);
    (labelled || selected) && !pod.host_network && !pod.sidecar && pod.namespace != "kube-system"
}

impl Telling {
    fn pod(&mut self, pod: &Pod, at: SystemTime) {
        // The host's addresses are not the pod's.
        if pod.host_network {
            return;
        }
        let empty = Life {
            uid: pod.uid.clone(),
            name: pod.full_name(),
            seen: at,
            addresses: Vec::new(),
            captured: Vec::new(),
            hbone: Vec::new(),
        };
        let new = !self.lives.contains_key(&pod.uid);
        let (known, life) = self.lives.entry(pod.uid.clone()).or_insert_with(|| (pod.clone(), empty));
        *known = pod.clone();
        address(life, pod, at);
        let fresh = new && at >= self.guarded && pod.ips.is_empty();
        if fresh && !self.namespaces.contains_key(&pod.namespace) {
            self.early.insert(pod.uid.clone());
        }
        self.judge(&pod.uid, at, fresh);
    }

    fn gone(&mut self, uid: &str, at: SystemTime) {
        if let Some((_, life)) = self.lives.get_mut(uid) {
            let addresses = life.addresses.iter_mut().map(|(_, span)| span);
            addresses.chain(&mut life.captured).chain(&mut life.hbone).for_each(|span| span.end(at));
        }
    }

    fn judge_all(&mut self, namespace: &str, at: SystemTime) {
        let here = self.lives.iter().filter(|(_, (pod, _))| pod.namespace == namespace);
        let uids: Vec<String> = here.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            let made =
                if self.early.remove(&uid) { self.lives.get(&uid).map(|(_, life)| life.seen) } else { None };
            self.judge(&uid, made.unwrap_or(at), made.is_some());
        }
    }

    /// Looks at a pod anew. `fresh` says that it was made just now, under guard.
    fn judge(&mut self, uid: &str, at: SystemTime, fresh: bool) {
        let Some((pod, life)) = self.lives.get_mut(uid) else { return };
        let empty = BTreeMap::new();
        let wanted = is_wanted(pod, self.namespaces.get(&pod.namespace).unwrap_or(&empty)) && !pod.ended();
        let enabled = pod.hbone();
        begin_or_end(&mut life.captured, wanted, fresh || enabled, at, HEARD_LATE);
        begin_or_end(&mut life.hbone, enabled, true, at, Duration::ZERO);
    }
}

/// The spans of a state that holds from when it `may_begin` until it is no longer `wanted`, `early` less.
fn begin_or_end(spans: &mut Vec<Span>, wanted: bool, may_begin: bool, at: SystemTime, early: Duration) {
    let open = spans.last_mut().filter(|span| span.until.is_none());
    match open {
        Some(open) if !wanted => open.end((at - early).max(open.from)),
        None if wanted && may_begin => spans.push(Span::from(at)),
        _ => {}
    }
}

/// An address may have been used before it was shown, back to when the pod was first seen; one that is no longer shown,
/// or whose pod has ended, is no longer its own.
fn address(life: &mut Life, pod: &Pod, at: SystemTime) {
    let no_longer = |ip: &IpAddr| pod.ended() || !pod.ips.contains(ip);
    // A status without addresses is one that the kubelet has not filled yet.
    if pod.ended() || !pod.ips.is_empty() {
        life.addresses.iter_mut().filter(|(ip, _)| no_longer(ip)).for_each(|(_, span)| span.end(at));
    }
    for ip in pod.ips.iter().filter(|_| !pod.ended()) {
        if !life.addresses.iter().any(|(own, span)| own == ip && span.until.is_none()) {
            life.addresses.push((*ip, Span::from(life.seen)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::watch::seen::Namespace;
    use sluice_shared::contract::{LABEL_DATAPLANE_MODE, MODE_AMBIENT};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn namespace(seconds: u64, ambient: bool) -> Change {
        let label = (LABEL_DATAPLANE_MODE.to_owned(), MODE_AMBIENT.to_owned());
        let labels = ambient.then_some(label).into_iter().collect();
        let namespace = Namespace { name: "demo".into(), labels };
        Change { at: at(seconds), what: What::Is(Object::Namespace(namespace)) }
    }

    fn pod(seconds: u64, ips: &[&str], edit: impl FnOnce(&mut Pod)) -> Change {
        let mut pod = Pod { uid: "u".into(), namespace: "demo".into(), name: "a".into(), ..Pod::default() };
        pod.ips = ips.iter().map(|text| ip(text)).collect();
        edit(&mut pod);
        Change { at: at(seconds), what: What::Is(Object::Pod(Box::new(pod))) }
    }

    fn enabled(pod: &mut Pod) {
        pod.redirection = Some("enabled".into());
    }

    #[test]
    fn a_pod_made_in_the_mesh_is_guarded_from_its_first_packet() {
        let log = [namespace(0, true), pod(10, &[], |_| {}), pod(12, &["10.77.1.2"], |_| {})];
        let life = &lives(&log, at(5))[0];
        assert!(life.had(ip("10.77.1.2"), at(11)) && life.must_be_captured(at(11)));
        assert!(!life.must_be_captured(at(9)) && !life.is_hbone(at(12), Duration::ZERO));
    }

    #[test]
    fn a_namespace_that_is_heard_of_after_its_pod_counts_from_the_pods_beginning() {
        let log = [pod(10, &[], |_| {}), namespace(11, true), pod(12, &["10.77.1.2"], |_| {})];
        assert_eq!(lives(&log, at(5))[0].captured, [Span::from(at(10))]);
        assert!(lives(&log, at(15))[0].captured.is_empty(), "made before there was a guard");
        let joined = [namespace(1, false), pod(10, &[], |_| {}), namespace(11, true)];
        assert!(
            lives(&joined, at(5))[0].captured.is_empty(),
            "it joins later, and is guarded once it is enabled"
        );
    }

    #[test]
    fn one_made_before_there_was_a_guard_is_guarded_once_it_is_enabled() {
        let made = [namespace(0, true), pod(10, &[], |_| {}), pod(12, &["10.77.1.2"], |_| {})];
        assert!(!lives(&made, at(15))[0].must_be_captured(at(30)));
        let log = [made.as_slice(), &[pod(20, &["10.77.1.2"], enabled)]].concat();
        let life = &lives(&log, at(15))[0];
        assert!(!life.must_be_captured(at(19)) && life.must_be_captured(at(20)));
        assert!(
            life.is_hbone(at(23), Duration::from_secs(3)) && !life.is_hbone(at(22), Duration::from_secs(3))
        );
    }

    #[test]
    fn labels_say_who_is_in_the_mesh() {
        let ambient = BTreeMap::from([(LABEL_DATAPLANE_MODE.to_owned(), MODE_AMBIENT.to_owned())]);
        let pod = |labels: &[(&str, &str)]| Pod {
            namespace: "demo".into(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Pod::default()
        };
        let outside = BTreeMap::new();
        assert!(is_wanted(&pod(&[]), &ambient) && !is_wanted(&pod(&[]), &outside));
        assert!(is_wanted(&pod(&[(LABEL_DATAPLANE_MODE, MODE_AMBIENT)]), &outside));
        assert!(!is_wanted(&pod(&[(LABEL_DATAPLANE_MODE, MODE_NONE)]), &ambient));
        assert!(is_wanted(&pod(&[SELECTOR]), &outside), "the tests' own selector");
        assert!(!is_wanted(&pod(&[(SELECTOR.0, "no")]), &outside));
        assert!(!is_wanted(&Pod { host_network: true, ..pod(&[SELECTOR]) }, &ambient));
        assert!(!is_wanted(&Pod { sidecar: true, ..pod(&[]) }, &ambient));
        assert!(!is_wanted(&Pod { namespace: "kube-system".into(), ..pod(&[]) }, &ambient));
    }

    #[test]
    fn it_is_let_go_a_little_before_that_is_heard() {
        let log = [
            namespace(0, false),
            pod(10, &["10.77.1.2"], |_| {}),
            namespace(20, true),
            pod(21, &["10.77.1.2"], enabled),
            namespace(30, false),
        ];
        let life = &lives(&log, at(0))[0];
        assert_eq!(life.captured, [Span { from: at(21), until: Some(at(28)) }]);
    }

    #[test]
    fn addresses_end_with_the_pod_and_with_its_phase() {
        let gone = Change { at: at(30), what: What::PodGone("u".into()) };
        let log = [namespace(0, true), pod(10, &["10.77.1.2"], |_| {}), gone];
        assert!(!lives(&log, at(0))[0].had(ip("10.77.1.2"), at(30)));
        let ended = pod(20, &["10.77.1.2"], |pod| pod.phase = "Succeeded".into());
        let log = [namespace(0, true), pod(10, &["10.77.1.2"], |_| {}), ended];
        let life = &lives(&log, at(0))[0];
        assert!(life.had(ip("10.77.1.2"), at(19)) && !life.had(ip("10.77.1.2"), at(20)));
    }

    #[test]
    fn a_pod_that_comes_back_from_a_reboot_has_its_new_address_from_the_beginning() {
        let log = [
            namespace(0, true),
            pod(10, &[], |_| {}),
            pod(12, &["10.77.1.2"], enabled),
            pod(40, &["10.77.1.9"], enabled),
        ];
        let life = &lives(&log, at(0))[0];
        assert!(life.had(ip("10.77.1.9"), at(38)) && life.must_be_captured(at(38)));
        assert!(!life.had(ip("10.77.1.2"), at(40)));
    }
}
