//! One way for probes, tried in some pods: connections that the agent makes itself, from the host to a listener of its own in
//! each pod, through a door that lets nothing else pass, beside others that have no door and must be captured.
//!
//! What reaches the listener counts only when it says what was to be said, comes from where it should, and was not brought
//! by ztunnel, which connects to whatever the plaintext that it captures was meant for.

use super::Strategy;
use crate::kernel::{KernelError, Netns, Pool, Trial, TrialEnd};
use crate::reconcile::{Context, Message};
use sluice_shared::cookie::Cookie;
use sluice_shared::ids::PodUid;
use sluice_shared::plan::{Flow, ProbeDoor, TrialDoor};
use sluice_shared::selftest::{Attempt, Way};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// How long a connection may take, there and back: a SYN that is lost is sent again after one second, and after three.
const PATIENCE: Duration = Duration::from_millis(3500);
/// How long a pod may take to put a door in its rules.
const SETTLES: Duration = Duration::from_secs(5);
/// How many connections a listener has at a time; ours are two, and ztunnel may bring both. Of more the oldest goes.
const CALLERS: usize = 16;

/// What is said on a connection: nobody else knows it.
type Word = [u8; 8];

/// A pod that is asked.
#[derive(Clone)]
pub struct Witness {
    /// Which.
    pub uid: PodUid,
    /// By name, for what is said of it.
    pub name: String,
    /// Its namespace.
    pub netns: Arc<Netns>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What tries a way with one address of a pod: a connection that has a door, and one that has none.
struct Line {
    ends: Trial,
    /// What the one with a door carries, where that is the way.
    cookie: Option<Cookie>,
    /// Where the listener is to see it come from.
    seen_from: IpAddr,
}

/// What came to a listener.
#[derive(Default)]
struct Met {
    /// By what it said.
    contacts: BTreeMap<Word, Contact>,
    /// Whether somebody was let go without having said anything: it may have been the agent.
    evicted: bool,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Contact {
    /// It came to the listener, from there.
    Direct(SocketAddr),
    /// Something in the pod brought it: ztunnel.
    Proxied,
    /// It came, or may have come, and who brought it could not be looked up.
    Unjudged,
    /// It did not come.
    Lost(String),
}

/// The lines of each pod, or why it has none.
type Lines = BTreeMap<PodUid, Result<Vec<Line>, String>>;

impl Strategy {
    /// Tries this way in these pods, all at once. Says of each what it has shown, in their order.
    pub(crate) async fn tried(&self, cx: &Arc<Context>, witnesses: &[Witness]) -> Vec<Attempt> {
        let mut lines = Lines::new();
        for witness in witnesses {
            lines.insert(witness.uid.clone(), self.lines(&cx.kernel, witness).await);
        }
        // Held until the end: dropping it takes the program off the agent's cgroup.
        let _carried = match carried(&cx.kernel, &lines).await {
            Ok(carried) => carried,
            Err(error) => return vec![Attempt::Unsound(error.to_string()); witnesses.len()],
        };
        self.set_trials(lines.values().flatten().flatten().map(Line::flow).collect()).await;
        for (uid, lines) in &lines {
            let doors = lines.iter().flatten().map(|line| ProbeDoor::Trial(line.door(self.way())));
            cx.host.set_trials(uid, doors.collect());
        }
        settled(cx, witnesses).await;
        let mut asked = Vec::new();
        for witness in witnesses.iter().cloned() {
            let lines = lines.remove(&witness.uid).unwrap_or_else(|| Ok(Vec::new()));
            let (cx, is_open) = (Arc::clone(cx), cx.host.has_trials(&witness.uid));
            asked.push(tokio::spawn(async move {
                match lines {
                    Ok(lines) if is_open => match in_pod(&cx.kernel, &witness, lines).await {
                        // Its doors go before its rules and its link do.
                        Attempt::Blocked(why) if !cx.host.has_trials(&witness.uid) => {
                            Attempt::Unsound(format!("{why}; the pod was leaving"))
                        }
                        shown => shown,
                    },
                    Ok(_) => {
                        Attempt::Unsound(format!("{}: its rules could not be changed in time", witness.name))
                    }
                    Err(why) => Attempt::Unsound(format!("{}: {why}", witness.name)),
                }
            }));
        }
        let mut attempts = Vec::new();
        for answer in asked {
            attempts.push(answer.await.unwrap_or_else(|error| Attempt::Unsound(error.to_string())));
        }
        for witness in witnesses {
            cx.host.set_trials(&witness.uid, Vec::new());
        }
        self.set_trials(BTreeSet::new()).await;
        settled(cx, witnesses).await;
        attempts
    }

    /// Sockets for each address of a pod.
    async fn lines(&self, kernel: &Pool, witness: &Witness) -> Result<Vec<Line>, String> {
        let (netns, ips, way) = (Arc::clone(&witness.netns), witness.ips.clone(), self.way());
        let snat = self.snat_sources();
        let made = kernel.run(move |kernel| {
            let line = |ends: Trial, ip: &IpAddr| {
                let cookie = (way == Some(Way::Cookie)).then(|| kernel.new_cookie()).transpose()?;
                let seen_from = match (snat, ip) {
                    (Some((v4, _)), IpAddr::V4(_)) => v4.into(),
                    (Some((_, v6)), IpAddr::V6(_)) => v6.into(),
                    (None, _) => ends.probe.address.ip(),
                };
                Ok(Line { ends, cookie, seen_from })
            };
            let mut made = Vec::new();
            let mut missing = None;
            for ip in &ips {
                match kernel.trial(&netns, *ip) {
                    Ok(ends) => made.push(line(ends, ip)?),
                    // IPv6 was switched off in the pod, say: nobody can probe it there.
                    Err(error) if error.is_of(io::ErrorKind::AddrNotAvailable) => missing = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match missing {
                Some(error) if made.is_empty() => Err(error),
                _ => Ok::<Vec<Line>, KernelError>(made),
            }
        });
        made.await.map_err(|error| error.to_string())
    }
}

impl Line {
    /// The connection that has a door, as the pod's own socket would see it but for what the host's table does to it.
    fn flow(&self) -> Flow {
        let (local, remote) = (self.ends.listener.address, self.ends.probe.address);
        Flow { local: (local.ip(), local.port()), remote: (remote.ip(), remote.port()) }
    }

    /// The door that it has. The host's table may give it another port.
    fn door(&self, way: Option<Way>) -> TrialDoor {
        let Flow { local, remote } = self.flow();
        let from_port = (way != Some(Way::Snat)).then_some(remote.1);
        TrialDoor { from: self.seen_from, from_port, to: local, cookie: self.cookie }
    }
}

/// Has the agent's own connections carry what the lines say, if they do.
async fn carried(kernel: &Pool, lines: &Lines) -> Result<Option<Box<dyn Send>>, KernelError> {
    let cookies = lines.values().flatten().flatten();
    let cookies: Vec<_> =
        cookies.filter_map(|line| Some((line.ends.listener.address.ip(), line.cookie?))).collect();
    if cookies.is_empty() {
        return Ok(None);
    }
    kernel.run(move |kernel| kernel.carry_cookies(&cookies)).await.map(Some)
}

/// Waits until these pods have acted on what they are told, so long at most.
async fn settled(cx: &Arc<Context>, witnesses: &[Witness]) {
    let mut waits = Vec::new();
    for witness in witnesses {
        let (done, wait) = oneshot::channel();
        if cx.registry.send_existing(&witness.uid, Message::Resettle(vec![done])) {
            waits.push(wait);
        }
    }
    let all = async {
        for wait in waits {
            let _ = wait.await;
        }
    };
    let _ = tokio::time::timeout(SETTLES, all).await;
}

/// What a pod shows: every address must pass, and captures what has no door.
async fn in_pod(kernel: &Arc<Pool>, witness: &Witness, lines: Vec<Line>) -> Attempt {
    let asked: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let (kernel, netns) = (Arc::clone(kernel), Arc::clone(&witness.netns));
            tokio::spawn(async move { on_line(&kernel, &netns, line).await })
        })
        .collect();
    let mut worst = Attempt::Passed;
    for answer in asked {
        let answer = answer.await.unwrap_or_else(|error| Attempt::Unsound(error.to_string()));
        match (&worst, &answer) {
            (_, Attempt::Unsound(_)) | (Attempt::Passed, Attempt::Blocked(_)) => worst = answer,
            _ => {}
        }
    }
    match worst {
        Attempt::Passed => Attempt::Passed,
        Attempt::Blocked(why) => Attempt::Blocked(format!("{}: {why}", witness.name)),
        Attempt::Unsound(why) => Attempt::Unsound(format!("{}: {why}", witness.name)),
    }
}

async fn on_line(kernel: &Arc<Pool>, netns: &Arc<Netns>, line: Line) -> Attempt {
    let Line { ends: Trial { listener, probe, control }, seen_from, .. } = line;
    let to = listener.address;
    let (words, met) = match words(kernel).await {
        Ok(words) => (words, Arc::new(Mutex::new(Met::default()))),
        Err(error) => return Attempt::Unsound(error.to_string()),
    };
    let hearing = match heard(listener) {
        Ok(listener) => {
            tokio::spawn(hear(listener, Arc::clone(kernel), Arc::clone(netns), words, Arc::clone(&met)))
        }
        Err(error) => return Attempt::Unsound(format!("listening at {to}: {error}")),
    };
    let (probed, controlled) = tokio::join!(say(probe, to, words[0]), say(control, to, words[1]));
    hearing.abort();
    let met = met.lock().unwrap_or_else(PoisonError::into_inner);
    let contact = |word: Word, said: Result<(), String>| match (met.contacts.get(&word), said) {
        (Some(contact), Ok(())) => contact.clone(),
        (Some(Contact::Unjudged), Err(_)) => Contact::Unjudged,
        (None, Err(_)) if met.evicted => Contact::Unjudged,
        (Some(_), Err(why)) => Contact::Lost(format!("it came, but no answer went back: {why}")),
        (None, Ok(())) => Contact::Lost("somebody else answered".into()),
        (None, Err(why)) => Contact::Lost(why),
    };
    // Whether an answer came back or not: it should not have come at all.
    if matches!(met.contacts.get(&words[1]), Some(Contact::Direct(_))) {
        return Attempt::Unsound(format!("what has no door is not captured at {to}"));
    }
    drop(controlled);
    match contact(words[0], probed) {
        Contact::Direct(from) if from.ip() == seen_from => Attempt::Passed,
        Contact::Direct(from) => Attempt::Blocked(format!("at {} it comes from {}", to.ip(), from.ip())),
        Contact::Unjudged => {
            Attempt::Unsound(format!("at {} what came could not be looked at in time", to.ip()))
        }
        Contact::Proxied => Attempt::Blocked(format!("at {} it is captured", to.ip())),
        Contact::Lost(why) => Attempt::Blocked(format!("at {}: {why}", to.ip())),
    }
}

impl Met {
    /// What came by itself did, whoever says the same after it.
    fn note(&mut self, word: Word, contact: Contact) {
        let known = self.contacts.entry(word).or_insert(Contact::Unjudged);
        if !matches!(known, Contact::Direct(_)) && contact != Contact::Unjudged {
            *known = contact;
        }
    }
}

/// What is said on both connections.
async fn words(kernel: &Pool) -> Result<[Word; 2], KernelError> {
    let word = |cookie: Cookie| {
        let option = cookie.option();
        let mut word = Word::default();
        word.copy_from_slice(&option[option.len() - size_of::<Word>()..]);
        word
    };
    kernel.run(move |kernel| Ok([word(kernel.new_cookie()?), word(kernel.new_cookie()?)])).await
}

fn heard(end: TrialEnd) -> io::Result<TcpListener> {
    TcpListener::from_std(end.socket.into())
}

/// Takes connections, as long as it is let, and notes who says one of the words and how it came.
async fn hear(
    listener: TcpListener,
    kernel: Arc<Pool>,
    netns: Arc<Netns>,
    words: [Word; 2],
    met: Arc<Mutex<Met>>,
) {
    // Ends with this, which whoever holds its handle ends.
    let (mut callers, mut live) = (tokio::task::JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while callers.try_join_next().is_some() {}
        live.retain(|caller| !caller.is_finished());
        if live.len() == CALLERS
            && let Some(oldest) = live.pop_front()
        {
            oldest.abort();
            met.lock().unwrap_or_else(PoisonError::into_inner).evicted = true;
        }
        let (kernel, netns, met) = (Arc::clone(&kernel), Arc::clone(&netns), Arc::clone(&met));
        live.push_back(callers.spawn(async move {
            let _ = answer(stream, peer, &kernel, netns, words, &met).await;
        }));
    }
}

async fn answer(
    mut stream: TcpStream,
    peer: SocketAddr,
    kernel: &Pool,
    netns: Arc<Netns>,
    words: [Word; 2],
    met: &Mutex<Met>,
) -> io::Result<()> {
    let mut word = Word::default();
    stream.read_exact(&mut word).await?;
    if !words.contains(&word) {
        return Ok(());
    }
    let note = |contact| met.lock().unwrap_or_else(PoisonError::into_inner).note(word, contact);
    // The threads that look into namespaces may have much else to do.
    note(Contact::Unjudged);
    // Whoever connects from within the pod has a socket there, whatever address it gives itself.
    let sockets = kernel.run(move |kernel| kernel.sockets(&netns)).await.map_err(io::Error::other)?;
    let from = (peer.ip().to_canonical(), peer.port());
    let within = sockets.iter().any(|socket| socket.flow.local == from);
    let contact = if within { Contact::Proxied } else { Contact::Direct(peer) };
    note(contact);
    stream.write_all(&word).await
}

/// Connects, says a word, and hears it back.
async fn say(end: TrialEnd, to: SocketAddr, word: Word) -> Result<(), String> {
    let said = async {
        let socket = TcpSocket::from_std_stream(end.socket.into());
        let mut stream = socket.connect(to).await?;
        stream.write_all(&word).await?;
        let mut echo = Word::default();
        stream.read_exact(&mut echo).await?;
        if echo == word { Ok(()) } else { Err(io::Error::other("something else came back")) }
    };
    match tokio::time::timeout(PATIENCE, said).await {
        Ok(said) => said.map_err(|error: io::Error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_by_itself_did_whoever_repeats_it() {
        let direct = Contact::Direct(SocketAddr::from(([10, 0, 0, 254], 40_000)));
        let table = [
            (vec![Contact::Unjudged], Contact::Unjudged),
            (vec![Contact::Unjudged, direct.clone()], direct.clone()),
            (vec![direct.clone(), Contact::Unjudged, Contact::Proxied], direct.clone()),
            (vec![Contact::Proxied, Contact::Unjudged], Contact::Proxied),
            (vec![Contact::Unjudged, Contact::Proxied, direct.clone()], direct),
        ];
        for (said, expected) in table {
            let mut met = Met::default();
            said.iter().for_each(|contact| met.note(Word::default(), contact.clone()));
            assert_eq!(met.contacts[&Word::default()], expected, "{said:?}");
        }
    }
}
