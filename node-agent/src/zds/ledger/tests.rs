//! Any interleaving of pods, ztunnels, answers and lists: a model of several ztunnels follows the ledger step by step.

use super::*;
use crate::kernel::Netns;
use crate::zds::outbox::Step;
use proptest::prelude::*;
use sluice_shared::ids::NetnsId;
use std::collections::BTreeMap;
use std::fs::File;

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Act {
    /// The agent wants a pod, in one of a few namespaces, and hands it over.
    Add(u8, u8),
    /// The agent no longer wants a pod.
    Del(u8),
    Connect,
    Disconnect(usize),
    /// A connection takes its next step: a request goes out, or a list is made.
    Step(usize),
    /// The request is answered, or the list arrives.
    Answer(usize, bool),
    /// A connection gets on, some steps and answers in a row.
    Serve(usize),
}

/// A ztunnel as it would be after what it was told.
struct Model {
    connection: u64,
    step: Option<Step>,
    /// When the step was taken.
    taken: u64,
    /// Made when a list is asked for, delivered later.
    list: Option<Vec<Workload>>,
    begun: bool,
    snapshot_done: bool,
    up: BTreeMap<PodUid, NetnsId>,
}

struct World {
    ledger: Ledger,
    wanted: BTreeMap<PodUid, Workload>,
    models: Vec<Model>,
    tickets: Vec<(PodUid, Ticket)>,
    /// When a pod was last deleted, in acts.
    deleted: BTreeMap<PodUid, u64>,
    clock: u64,
    gone: Vec<oneshot::Receiver<()>>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            wanted: BTreeMap::new(),
            models: Vec::new(),
            tickets: Vec::new(),
            deleted: BTreeMap::new(),
            clock: 0,
            gone: Vec::new(),
            now: Instant::now(),
        }
    }

    fn act(&mut self, act: &Act) {
        self.clock += 1;
        match *act {
            Act::Add(pod, netns) => self.add(pod, netns),
            Act::Del(pod) => self.del(&uid(pod)),
            Act::Connect => self.connect(),
            Act::Disconnect(n) if !self.models.is_empty() => {
                let model = self.models.remove(n % self.models.len());
                self.ledger.disconnect(model.connection);
            }
            Act::Step(n) if !self.models.is_empty() => self.step(n % self.models.len()),
            Act::Answer(n, ok) if !self.models.is_empty() => self.answer(n % self.models.len(), ok),
            Act::Serve(n) if !self.models.is_empty() => {
                for _ in 0..8 {
                    self.answer(n % self.models.len(), true);
                    self.step(n % self.models.len());
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, pod: u8, netns: u8) {
        let workload = workload(pod, netns);
        // The agent's rule: who had the namespace before is deleted first.
        let before = |other: &&Workload| other.uid != workload.uid && netns_of(other) == netns_of(&workload);
        if let Some(before) = self.wanted.values().find(before).map(|before| before.uid.clone()) {
            self.del(&before);
        }
        let uid = workload.uid.clone();
        self.wanted.insert(uid.clone(), workload.clone());
        let mut ticket = self.ledger.add(workload.clone());
        if let Ok((peer, answer)) = ticket.answer.try_recv() {
            assert_eq!(answer, Ok(()));
            self.must_serve(peer.connection, &workload);
        }
        self.tickets.push((uid, ticket));
    }

    /// An Add that was answered without being told: it must be served there, and nothing under way may end that.
    fn must_serve(&self, connection: u64, workload: &Workload) {
        let newest = self.models.iter().rev().find(|model| model.snapshot_done).expect("one is ready");
        assert_eq!(newest.connection, connection, "an older one's word");
        assert_eq!(newest.up.get(&workload.uid).copied(), netns_of(workload), "it is not served");
        let ends = matches!(&newest.step, Some(Step::Del(uid, _) | Step::Evict(uid)) if *uid == workload.uid);
        assert!(!ends, "its Del is under way");
    }

    fn del(&mut self, uid: &PodUid) {
        self.wanted.remove(uid);
        self.deleted.insert(uid.clone(), self.clock);
        self.gone.extend(self.ledger.del(uid));
    }

    fn connect(&mut self) {
        let (peer, _) = self.ledger.connect(0);
        self.models.push(Model {
            connection: peer.connection,
            step: None,
            taken: 0,
            list: None,
            begun: false,
            snapshot_done: false,
            up: BTreeMap::new(),
        });
    }

    fn step(&mut self, n: usize) {
        let model = &mut self.models[n];
        if model.step.is_some() || model.list.is_some() {
            return;
        }
        if model.begun {
            model.step = self.ledger.next(model.connection, self.now).ok();
            model.taken = self.clock;
            if let Some(Step::Add(workload)) = &model.step {
                assert!(self.wanted.contains_key(&workload.uid), "{} came back", workload.uid);
            }
        }
        if !model.begun || matches!(model.step, Some(Step::Refresh)) {
            self.ledger.collect(model.connection);
            model.list = Some(self.wanted.values().cloned().collect());
        }
    }

    fn answer(&mut self, n: usize, ok: bool) {
        let Self { ledger, models, now, tickets, deleted, .. } = self;
        let model = &mut models[n];
        let connection = model.connection;
        if let Some(list) = model.list.take() {
            match model.step.take() {
                Some(_) => ledger.refresh(connection, list, *now),
                None => ledger.begin(connection, list),
            }
            model.begun = true;
            return;
        }
        match model.step.take() {
            Some(Step::Add(workload)) if ok => {
                model.serve(&workload);
                ledger.answered(connection, &workload, &Ok(()), *now);
                let since = deleted.get(&workload.uid).copied().unwrap_or(0);
                tickets.retain_mut(|(uid, ticket)| {
                    let answered =
                        *uid == workload.uid && matches!(ticket.answer.try_recv(), Ok((_, Ok(()))));
                    assert!(
                        !answered || since <= model.taken,
                        "an Add from before a Del was taken for one after it"
                    );
                    !answered
                });
            }
            Some(Step::Add(workload)) => {
                // ztunnel has stopped serving it where it was before, and tries by itself where it is now.
                model.up.remove(&workload.uid);
                ledger.answered(connection, &workload, &Err("no".into()), *now);
            }
            Some(Step::Del(uid, waiters)) => {
                model.up.remove(&uid);
                ledger.gone(connection, &uid);
                drop(waiters);
            }
            Some(Step::Evict(uid)) => {
                model.up.remove(&uid);
                ledger.gone(connection, &uid);
            }
            Some(Step::SnapshotSent) => {
                assert!(!std::mem::replace(&mut model.snapshot_done, true), "a second SnapshotSent");
                ledger.ready(connection);
            }
            Some(Step::Refuse(..) | Step::Keep(_) | Step::Refresh) | None => {}
        }
    }

    /// Everything is answered, with success, until nobody has anything to say.
    fn settle(&mut self) {
        if self.models.is_empty() {
            self.connect();
        }
        for _ in 0..500 {
            for n in 0..self.models.len() {
                self.answer(n, true);
                self.step(n);
            }
            if self.models.iter().all(|model| model.step.is_none() && model.list.is_none()) {
                self.now += std::time::Duration::from_secs(60);
                (0..self.models.len()).for_each(|n| self.step(n));
                if self.models.iter().all(|model| model.step.is_none() && model.list.is_none()) {
                    return;
                }
            }
        }
        panic!("it does not come to rest");
    }
}

impl Model {
    fn serve(&mut self, workload: &Workload) {
        let netns = netns_of(workload).expect("an Add without a namespace");
        let other = self.up.iter().find(|(uid, other)| **uid != workload.uid && **other == netns);
        assert_eq!(other, None, "{} shares {netns}", workload.uid);
        self.up.insert(workload.uid.clone(), netns);
    }
}

fn uid(pod: u8) -> PodUid {
    PodUid::new(format!("u{pod}")).unwrap()
}

fn netns_of(workload: &Workload) -> Option<NetnsId> {
    workload.netns.as_ref().map(|netns| netns.id())
}

fn workload(pod: u8, netns: u8) -> Workload {
    let id = NetnsId { dev: 4, inode: u64::from(netns) };
    let netns = Netns::new(File::open("/dev/null").unwrap().into(), id);
    Workload {
        uid: uid(pod),
        name: String::new(),
        namespace: String::new(),
        service_account: String::new(),
        netns: Some(Arc::new(netns)),
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0..4_u8, 0..4_u8).prop_map(|(pod, netns)| Act::Add(pod, netns)),
        2 => (0..4_u8).prop_map(Act::Del),
        1 => Just(Act::Connect),
        1 => any::<usize>().prop_map(Act::Disconnect),
        2 => any::<usize>().prop_map(Act::Serve),
        6 => any::<usize>().prop_map(Act::Step),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(n, ok)| Act::Answer(n, ok)),
    ];
    proptest::collection::vec(act, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_the_newest_serves_what_is_wanted_and_nobody_waits(acts in acts()) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
        }
        world.settle();
        let newest = world.models.last().unwrap();
        let wanted: BTreeMap<_, _> =
            world.wanted.values().map(|w| (w.uid.clone(), netns_of(w).unwrap())).collect();
        prop_assert_eq!(&newest.up, &wanted);
        for (_, ticket) in &mut world.tickets {
            prop_assert!(ticket.answer.try_recv() != Err(oneshot::error::TryRecvError::Empty), "an Add still waits");
        }
        for gone in &mut world.gone {
            prop_assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed), "a Del still waits");
        }
        for model in &world.models {
            for uid in world.wanted.keys() {
                let acked = world.ledger.state(uid).acked_by.contains(&model.connection);
                prop_assert_eq!(acked, model.up.contains_key(uid), "{} at {}", uid, model.connection);
            }
            // What was deleted is gone everywhere, also from those that are not the newest.
            prop_assert!(model.up.keys().all(|uid| world.wanted.contains_key(uid)));
        }
    }
}
