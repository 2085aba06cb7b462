//! Antagonists: our entry is back within a second of the last writer, we write at most once a second, nothing of theirs
//! is lost, and a fight is named.

use crate::Check;
use crate::antagonists::{Antagonist, CILIUM, Multus, OVN, aws, by_rename, exclusive, in_place, other_mesh};
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE};
use anyhow::{Context, Result, ensure};
use sluice_shared::install::State;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub const CHECKS: [Check; 11] = [
    ("aws-node: the whole file by rename, again and again", renames),
    ("Calico: truncated in place, a gap, mode 600", gaps),
    ("50 rewrites a second", storm),
    ("cilium-agent with cni.exclusive=true, against an entry in place", exclusive_in_place),
    ("cilium-agent with cni.exclusive=true, against a list of our own", exclusive_owned),
    ("netd's watchdog: the file goes for a while and comes back pristine", watchdog),
    ("Multus: a generator that follows the primary and removes its own at its end", generator),
    ("kube-router: rm -f *.conf, then a list", kube_router),
    ("minikube: everybody else's file parked as .mk_disabled", minikube),
    ("another mesh that edits the same file", two_meshes),
    ("the directory itself replaced", replaced),
];

fn renames(parent: &Path, name: &str) -> Result<String> {
    let file = "10-aws.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    let mut worst = Duration::ZERO;
    for generation in 1..=6 {
        by_rename(&node.conf().join(file), &aws(generation), 0o644)?;
        worst = worst.max(node.converges(Libcni::Old)?);
        node.is_theirs(file, &aws(generation))?;
        std::thread::sleep(Duration::from_millis(170 * generation));
    }
    let state = node.state()?;
    ensure!(state.repairs >= 5, "{state:?}");
    Ok(format!("6 rewrites, back after {} ms at the worst", worst.as_millis()))
}

fn gaps(parent: &Path, name: &str) -> Result<String> {
    let file = "10-calico.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o600)])?;
    node.start_chained(Libcni::Old)?;
    let mut worst = Duration::ZERO;
    for (generation, gap) in (1..).zip([50, 50, 5, 200, 600, 50]) {
        in_place(&node.conf().join(file), &aws(generation), Duration::from_millis(gap), 0o600)?;
        worst = worst.max(node.converges(Libcni::Old)?);
        node.is_theirs(file, &aws(generation))?;
        let mode = fs::metadata(node.conf().join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "mode {mode:o}");
    }
    Ok(format!("6 rewrites with gaps to 600 ms, back after {} ms at the worst", worst.as_millis()))
}

fn storm(parent: &Path, name: &str) -> Result<String> {
    let file = "10-aws.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    let (before, path) = (node.state()?.writes, node.conf().join(file));
    let mut generation = 0;
    let began = Instant::now();
    let storm = Antagonist::start(Duration::from_millis(8), move || {
        generation += 1;
        // Both kinds of writers, and neither may lose anything to us.
        match generation % 2 {
            0 => by_rename(&path, &aws(generation), 0o644)?,
            _ => in_place(&path, &aws(generation), Duration::from_millis(1), 0o644)?,
        }
        Ok(true)
    });
    let lasts = Duration::from_secs(6);
    std::thread::sleep(lasts);
    let during = node.state()?;
    let last = storm.end()?;
    ensure!(last >= 50 * lasts.as_secs(), "{last} rewrites in {lasts:?} are no storm");
    let took = node.converges(Libcni::Old)?;
    node.is_theirs(file, &aws(last))?;
    let (seconds, writes) = (began.elapsed().as_secs_f64(), node.state()?.writes - before);
    #[allow(clippy::cast_precision_loss, reason = "a handful of writes")]
    let most = seconds.ceil() + 1.0;
    ensure!((writes as f64) <= most, "{writes} writes in {seconds:.1} s");
    ensure!(during.state == State::Fighting && during.fight.is_some(), "the fight has no name: {during:?}");
    Ok(format!("{last} rewrites, {writes} of ours in {seconds:.1} s, back after {} ms", took.as_millis()))
}

fn exclusive_in_place(parent: &Path, name: &str) -> Result<String> {
    against_cilium(parent, name, &[])
}

fn exclusive_owned(parent: &Path, name: &str) -> Result<String> {
    against_cilium(parent, name, &["--way=owned"])
}

fn against_cilium(parent: &Path, name: &str, options: &[&str]) -> Result<String> {
    let other = ("90-old.conflist", &*aws(0), 0o600);
    let mut node = Node::new(parent, name, &[("05-cilium.conflist", CILIUM, 0o644), other])?.options(options);
    let cilium = exclusive(node.conf());
    let began = Instant::now();
    node.start()?;
    node.until("the fight is named", PATIENCE, |node| {
        let state = node.state()?;
        let fight = state.fight.as_ref().context("no fight")?;
        ensure!(fight.suspect.contains("cni.exclusive"), "{fight:?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    let (fought, seconds) = (node.state()?, began.elapsed().as_secs_f64());
    // Each write of ours is one or two operations: a parked list of ours goes as well.
    let rounds = fought.repairs + 1;
    #[allow(clippy::cast_precision_loss, reason = "a handful of writes")]
    let paced = rounds as f64 <= seconds + 1.0;
    ensure!(paced, "{rounds} rounds in {seconds:.1} s: {fought:?}");
    let parked = node.conf().join("90-old.conflist.cilium_bak");
    ensure!(parked.exists(), "the antagonist did nothing");
    cilium.end()?;
    // Its last word may have come at any moment, and nobody changes anything any more.
    let took = node.converges(Libcni::Old)?;
    node.remove()?;
    let names: Vec<_> =
        node.snapshot()?.into_keys().filter_map(|path| Some(path.file_name()?.to_owned())).collect();
    ensure!(names.len() == 3, "{names:?}");
    Ok(format!("{rounds} writes in {seconds:.1} s, then back after {} ms", took.as_millis()))
}

fn watchdog(parent: &Path, name: &str) -> Result<String> {
    let file = "10-gke-ptp.conflist";
    let mut worst = Duration::ZERO;
    for (number, options) in
        [&[][..], &["--way=owned"], &["--runtime=containerd://2.1.0"]].into_iter().enumerate()
    {
        let mut node =
            Node::new(parent, &format!("{name}-{number}"), &[(file, &aws(0), 0o644)])?.options(options);
        let libcni = if number == 2 { Libcni::New } else { Libcni::Old };
        node.start_chained(libcni)?;
        for gap in [100, 900] {
            fs::remove_file(node.conf().join(file))?;
            node.promptly("the node is NotReady, as netd means it", |node| {
                ensure!(node.network(libcni).is_err(), "pods would start");
                Ok(())
            })?;
            std::thread::sleep(Duration::from_millis(gap));
            ensure!(node.network(libcni).is_err(), "we made the node Ready without its primary");
            by_rename(&node.conf().join(file), &aws(0), 0o644)?;
            worst = worst.max(node.converges(libcni)?);
            node.is_theirs(file, &aws(0))?;
        }
    }
    Ok(format!("3 ways, NotReady each time, back after {} ms at the worst", worst.as_millis()))
}

fn generator(parent: &Path, name: &str) -> Result<String> {
    let file = "10-calico.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o600)])?;
    let before = node.snapshot()?;
    let own = node.conf().join("00-multus.conf");
    let multus = Multus::Thin.start(node.conf(), file);
    node.until("multus has its file", PATIENCE, |_| fs::metadata(&own).map(drop).context("no file"))?;
    node.start()?;
    let chained = |node: &Node| {
        let text = fs::read_to_string(&own).context("multus has no file")?;
        ensure!(text.matches("sluice-cni").count() == 1, "multus does not call us once: {text}");
        node.once(Libcni::Old)?;
        node.is_theirs(file, &aws(0))
    };
    node.until("multus calls us once", PATIENCE, chained)?;
    // The installer says so a moment after the write.
    std::thread::sleep(Duration::from_millis(500));
    let (writes, generated) = (node.state()?.writes, multus.count());
    std::thread::sleep(Duration::from_secs(3));
    ensure!(node.state()?.writes == writes && multus.count() == generated, "two that follow each other");
    // It ends, and takes its file along: from that moment on the runtime goes by the primary's, which has us.
    multus.end()?;
    fs::remove_file(&own)?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        node.once(Libcni::Old).context("after the end of multus")?;
        ensure!(!own.exists(), "somebody has made multus' file anew");
        std::thread::sleep(Duration::from_millis(5));
    }
    node.is_theirs(file, &aws(0))?;
    ensure!(node.state()?.writes == writes, "its end made us write");
    // It comes back; then the primary goes, on which it waits: the node is NotReady, and not by us Ready.
    let multus = Multus::Thin.start(node.conf(), file);
    node.until("multus calls us once again", PATIENCE, chained)?;
    fs::remove_file(node.conf().join(file))?;
    node.until("multus has removed its file", PATIENCE, |_| {
        ensure!(!own.exists(), "it is there");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(1200));
    ensure!(node.network(Libcni::Old).is_err(), "we made the node Ready without its primary");
    by_rename(&node.conf().join(file), &aws(0), 0o600)?;
    node.promptly("all of it is back", chained)?;
    node.remove()?;
    node.until("multus calls us no more", PATIENCE, |_| {
        let text = fs::read_to_string(&own)?;
        ensure!(!text.contains("sluice-cni"), "{text}");
        Ok(())
    })?;
    multus.end()?;
    fs::remove_file(&own)?;
    node.is_as(&before)?;
    Ok(format!(
        "{writes} write of ours, no circle; in the chain when it ends, NotReady while its primary is gone"
    ))
}

fn kube_router(parent: &Path, name: &str) -> Result<String> {
    let old = "10-kuberouter.conf";
    let mut node = Node::new(parent, name, &[(old, &OVN.replace("ovn-k8s-cni-overlay", "bridge"), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    for entry in fs::read_dir(node.conf())? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "conf") {
            fs::remove_file(path)?;
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let list = "10-kuberouter.conflist";
    in_place(&node.conf().join(list), &aws(1), Duration::from_millis(20), 0o644)?;
    let took = node.converges(Libcni::Old)?;
    node.promptly("we are in the list, and our own is gone", |node| {
        ensure!(!node.conf().join("00-sluice.conflist").exists(), "both");
        node.once(Libcni::Old)
    })?;
    node.is_theirs(list, &aws(1))?;
    Ok(format!("from a list of our own to an entry in theirs in {} ms", took.as_millis()))
}

fn minikube(parent: &Path, name: &str) -> Result<String> {
    let file = "1-k8s.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o644)])?.options(&["--way=owned"]);
    let before = node.snapshot()?;
    node.start_chained(Libcni::Old)?;
    let ours = node.conf().join("00-sluice.conflist");
    fs::rename(&ours, node.conf().join("00-sluice.conflist.mk_disabled"))?;
    node.converges(Libcni::Old)?;
    node.promptly("the parked one is gone", |node| {
        ensure!(!node.conf().join("00-sluice.conflist.mk_disabled").exists(), "it is there");
        Ok(())
    })?;
    node.remove()?;
    node.is_as(&before)?;
    Ok("back, and nothing parked is left".to_owned())
}

fn two_meshes(parent: &Path, name: &str) -> Result<String> {
    let file = "10-aws.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o600)])?;
    let linkerd = other_mesh(node.conf().join(file));
    node.start()?;
    let both = |node: &Node| {
        let network = node.network(Libcni::Old)?;
        ensure!(network.ours() == 1 && network.types.iter().any(|kind| kind == "linkerd-cni"), "{network:?}");
        Ok(())
    };
    node.until("both are in the chain", PATIENCE, both)?;
    for generation in 1..=3 {
        by_rename(&node.conf().join(file), &aws(generation), 0o600)?;
        node.promptly("both are in the chain again", both)?;
        std::thread::sleep(Duration::from_millis(1100));
    }
    let (writes, theirs) = (node.state()?.writes, linkerd.count());
    std::thread::sleep(Duration::from_secs(2));
    let state = node.state()?;
    ensure!(state.writes == writes && linkerd.count() == theirs, "they go on without end: {state:?}");
    node.remove()?;
    let network = node.network(Libcni::Old)?;
    ensure!(network.ours() == 0 && network.types.iter().any(|kind| kind == "linkerd-cni"), "{network:?}");
    linkerd.end()?;
    Ok(format!("{writes} writes of ours, {theirs} of theirs, then peace; removal leaves theirs"))
}

fn replaced(parent: &Path, name: &str) -> Result<String> {
    let file = "10-aws.conflist";
    let mut node = Node::new(parent, name, &[(file, &aws(0), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    let mut worst = Duration::ZERO;
    for generation in 1..=3 {
        fs::rename(node.conf(), node.dir.join(format!("old{generation}")))?;
        std::thread::sleep(Duration::from_millis(50));
        fs::create_dir(node.conf())?;
        by_rename(&node.conf().join(file), &aws(generation), 0o644)?;
        worst = worst.max(node.converges(Libcni::Old)?);
        node.is_theirs(file, &aws(generation))?;
    }
    Ok(format!("3 times, back after {} ms at the worst", worst.as_millis()))
}
