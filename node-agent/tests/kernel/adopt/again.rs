//! What is old: an address that is another pod's by now, a process's number and a namespace's inode that came again.

use super::node::{Node, Pod};
use super::runtime::Manner;
use sluice_agent::adopt::{Stale, Way};
use std::path::PathBuf;

/// The runtime shows the other pod's sandbox. Of the pod, whose object still has the address, it shows none, and the agent
/// has not heard of the other one.
pub fn named_for_another() {
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.2"]));
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    let path = node.bind("cni-u2", &other.handle());
    cri.sandboxes.lock().expect("lock").push(other.sandbox(&path, 0));
    node.refuses(&pod, "the runtime says that it is that of sandbox");

    // Mounted elsewhere than the runtime says: the address is the other pod's all the same.
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    node.bind("cni-u2", &other.handle());
    cri.sandboxes.lock().expect("lock").push(other.sandbox(&PathBuf::from("/run/netns/cni-u2"), 0));
    node.refuses(&pod, "the runtime says that 10.0.0.2 is that of sandbox");

    // One that has nothing to do with the node's pods says nothing about them.
    let elsewhere = Pod::new("u3", &["10.0.0.9"]);
    *cri.sandboxes.lock().expect("lock") = vec![elsewhere.sandbox(&PathBuf::from("/run/netns/cni-u3"), 0)];
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let found = node.find(&pod.wanted).expect("found by its address");
    assert_eq!((found.netns.id(), found.way), (other.id, Way::BindMount));
}

pub fn a_whole_list() {
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.3"]));
    let (mut node, cri) = Node::new(Some(Manner::Honest));
    let cri = cri.expect("a runtime");
    node.bind("cni-u1", &pod.handle());
    let path = node.bind("cni-u2", &other.handle());
    cri.sandboxes.lock().expect("lock").push(other.sandbox(&path, 0));
    node.knows(&other);
    node.refuses(&pod, "of this node, and none of this pod's");
    // One that is not ready may be left from when the node had this runtime.
    for sandbox in cri.sandboxes.lock().expect("lock").iter_mut() {
        sandbox.ready = false;
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(node.finds(&pod).way, Way::BindMount);
}

pub fn recycled() {
    let (mut node, _) = Node::new(None);
    let (pod, evil) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("evil", &["10.0.0.9"]));
    let pid = node.process(Some(&pod.ns), &pod.cgroup());
    let path = node.finds(&pod).path;
    assert_eq!(node.again(&pod, &path), Ok(()));
    node.end(pid);
    assert!(matches!(node.again(&pod, &path), Err(Stale::Closed(_))));
    // The same number, the same inode and the same address, but another pod's.
    let planted = format!("{}/{}", evil.cgroup(), pod.cgroup());
    for cgroup in ["", &evil.cgroup(), &planted] {
        node.process_again(pid, &pod.ns, cgroup);
        for complete in [true, false] {
            node.neighbours.complete = complete;
            // What is not known yet may be a pod.
            node.neighbours.known = complete.then(|| evil.wanted.uid.clone()).into_iter().collect();
            let again = node.again(&pod, &path);
            assert!(
                matches!(&again, Err(Stale::Anothers(why)) if why.contains("cgroup")),
                "{cgroup}: {again:?}"
            );
        }
        node.end(pid);
    }
    node.process_again(pid, &pod.ns, &pod.cgroup());
    assert_eq!(node.again(&pod, &path), Ok(()));
    pod.ns.ip("addr del 10.0.0.2/32 dev eth0");
    assert!(matches!(node.again(&pod, &path), Err(Stale::Anothers(why)) if why.contains("addresses")));
}

pub fn bind_mount() {
    let (mut node, _) = Node::new(None);
    let (pod, other) = (Pod::new("u1", &["10.0.0.2"]), Pod::new("u2", &["10.0.0.2"]));
    let path = node.bind("a", &pod.handle());
    assert_eq!(node.again(&pod, &path), Ok(()));
    pod.ns.ip("addr del 10.0.0.2/32 dev eth0");
    assert!(matches!(node.again(&pod, &path), Err(Stale::Anothers(why)) if why.contains("addresses")));
    node.unbind("a");
    node.bind("a", &other.handle());
    assert!(matches!(node.again(&pod, &path), Err(Stale::Anothers(why)) if why.contains(" is ")));
}
