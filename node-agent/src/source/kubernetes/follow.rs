//! Follows one resource for ever: all of it first, then every change, whatever becomes of the API server.
//!
//! A streaming list comes first: a watch that begins with everything that is there. Where the server refuses it, or takes
//! no notice of the request for one, a list and a watch from its version do. A version that the server no longer has
//! leads to a new list; one that it has never had is a failure. What is known stays in force until a whole list has said
//! otherwise, and of a list only the differences are passed on.

mod end;

use super::api::{Api, Failure, Target};
use super::known::{Change, Known};
use super::lines::{Line, Lines};
use super::message::{BookmarkMetadata, Frame, Page};
use super::report::Reporter;
use super::resource::{Named, Resource};
use crate::backoff::{Backoff, spread};
use crate::source::Event;
use end::{End, ended_by};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// The waits after a failure: the first, which doubles, and the longest.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// How long a list may take, however large.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// How many objects a page of a list has.
const PAGE: &str = "500";
/// After so long the server is to end a watch by itself, which spreads watches over its replicas; half as long at least.
const WATCH_FOR: Duration = Duration::from_secs(600);
/// A server that has not ended it by so much later is not there any more.
const GRACE: Duration = Duration::from_secs(30);
/// A streaming list in which nothing comes for so long, and no end either, is none.
const LIST_SILENCE: Duration = Duration::from_secs(10);
/// A watch that says nothing for so long, not even an error, works.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// A watch that the server ends sooner than this has failed.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// One resource, followed.
pub(super) struct Follower<R: Resource> {
    pub(super) api: Api,
    pub(super) resource: R,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) report: Reporter,
    known: Known<R>,
    /// The version to go on from. `None` before a list.
    version: Option<String>,
    /// Whether a whole list has been seen.
    listed: bool,
    /// Whether the server has streaming lists, as far as is known.
    streaming: bool,
    /// How many versions in a row the server no longer had, with no watch between them that worked.
    expired: u32,
}

impl<R: Resource> Follower<R> {
    pub(super) fn new(api: Api, resource: R, events: mpsc::Sender<Event>, report: Reporter) -> Self {
        Self {
            api,
            resource,
            events,
            report,
            known: Known::new(),
            version: None,
            listed: false,
            streaming: true,
            expired: 0,
        }
    }

    /// Follows until nobody listens.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = self.follow() => {}
            () = events.closed() => {}
        }
    }

    async fn follow(&mut self) {
        let [shortest, longest] = AGAIN;
        let mut backoff = Backoff::new(shortest);
        loop {
            let began = Instant::now();
            let plain_list = self.version.is_none() && !self.streaming;
            let end = if plain_list { self.list().await } else { self.watch().await };
            let wait = match end {
                End::Unheard => return,
                End::Well if plain_list || began.elapsed() >= TOO_SHORT => None,
                End::Well => Some(backoff.failed(longest, None, Instant::now())),
                End::NotStreaming(why) => {
                    tracing::info!(what = R::WHAT, why, "a streaming list is not to be had: they are listed");
                    self.streaming = false;
                    None
                }
                End::Expired(why) => {
                    let version = self.version.take();
                    tracing::info!(what = R::WHAT, version, "this version is gone: they are listed anew");
                    self.expired += 1;
                    if self.expired > 1 {
                        self.report.failed(&why, self.listed);
                    }
                    Some(backoff.failed(longest, why.retry_after(), Instant::now()))
                }
                End::Failed { why, relist } => {
                    if relist {
                        self.version = None;
                    }
                    self.report.failed(&why, self.listed);
                    Some(backoff.failed(longest, why.retry_after(), Instant::now()))
                }
            };
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Lists page by page. The first list may come from the server's memory, which may be a little old: it costs etcd
    /// nothing, when all nodes' agents start at once, and the watch brings the rest. Later ones may not: they would take
    /// what is known back in time.
    async fn list(&mut self) -> End {
        let target = self.resource.list();
        let target =
            if self.listed { target.with("limit", PAGE) } else { target.with("resourceVersion", "0") };
        self.known.begin_list();
        let mut page = target.clone();
        loop {
            let text = match self.api.fetch(&page, LIST_WITHIN).await {
                Ok(text) => text,
                Err(why) => return why.into(),
            };
            let Page { metadata, items } = match Page::read(&text) {
                Ok(page) => page,
                Err(why) => return why.into(),
            };
            for item in items {
                if let Err(end) = self.there(item.get().as_bytes()).await {
                    return end;
                }
            }
            if metadata.next.is_empty() {
                return self.is_listed(metadata.resource_version).await.err().unwrap_or(End::Well);
            }
            page = target.clone().with("continue", &metadata.next);
        }
    }

    /// Watches from the version that is known, or from a list that the watch begins with.
    async fn watch(&mut self) -> End {
        let listing = self.version.is_none();
        let lasts = spread(WATCH_FOR);
        let mut lines = match self.api.follow(&self.watch_target(lasts)).await {
            Ok(lines) => lines,
            Err(Failure::Status { code: 400 | 422, message, .. }) if listing => {
                return End::NotStreaming(message);
            }
            Err(why) => return why.into(),
        };
        if listing {
            self.known.begin_list();
            if let Err(end) = self.stream_list(&mut lines).await {
                return end;
            }
        }
        let until = Instant::now() + lasts + GRACE;
        // Of a server that no longer has the version it has just given, a list alone proves nothing.
        let mut good = listing && self.expired == 0;
        loop {
            let patience = if good { until.saturating_duration_since(Instant::now()) } else { GOOD_AFTER };
            match timeout(patience, lines.next()).await {
                Ok(Ok(Some(line))) => {
                    if let Err(end) = self.take(line).await {
                        return end;
                    }
                    if !std::mem::replace(&mut good, true) {
                        self.works();
                    }
                }
                Ok(Ok(None)) => return End::Well,
                Ok(Err(why)) => return why.into(),
                Err(_) if good => return Failure::Late(lasts + GRACE).into(),
                Err(_) => {
                    good = true;
                    self.works();
                }
            }
        }
    }

    /// A watch has shown that it works.
    fn works(&mut self) {
        self.expired = 0;
        self.report.works();
    }

    fn watch_target(&self, lasts: Duration) -> Target {
        let target = self.resource.watch().with("watch", "true").with("allowWatchBookmarks", "true");
        let target = target.with("timeoutSeconds", &lasts.as_secs().to_string());
        match &self.version {
            Some(version) => target.with("resourceVersion", version),
            None => target.with("sendInitialEvents", "true").with("resourceVersionMatch", "NotOlderThan"),
        }
    }

    /// The first part of a streaming list, up to the bookmark that says that it was all.
    async fn stream_list(&mut self, lines: &mut Lines) -> Result<(), End> {
        loop {
            let line = match timeout(LIST_SILENCE, lines.next()).await {
                Ok(line) => line?,
                Err(_) => {
                    return Err(End::NotStreaming(format!("no end of the list within {LIST_SILENCE:?}")));
                }
            };
            let Some(line) = line else {
                return Err(Failure::Transport("the watch ended within its list".to_owned()).into());
            };
            if self.take(line).await? {
                return Ok(());
            }
        }
    }

    /// Acts on one line. `true` when it was the one that ends a list.
    async fn take(&mut self, line: Line) -> Result<bool, End> {
        let text = match line {
            Line::Text(text) => text,
            // What it is about cannot be known, nor whether that is gone. A list takes longer objects.
            Line::TooLong if self.version.is_none() => {
                return Err(End::NotStreaming("an object is too long for a line".to_owned()));
            }
            Line::TooLong => {
                let why = Failure::Garbage("a change is too long to be read".to_owned());
                return Err(End::Failed { why, relist: true });
            }
        };
        let Frame { kind, object } = Frame::read(&text)?;
        let json = object.get().as_bytes();
        match kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let version = self.there(json).await?;
                self.passed(version);
            }
            "DELETED" => {
                let Named { metadata } =
                    serde_json::from_slice(json).map_err(|error| Failure::garbage(&error, json))?;
                if let Some(id) = self.known.gone(&metadata.key()) {
                    self.events.send(R::gone(id)).await?;
                }
                self.passed(metadata.resource_version);
            }
            "BOOKMARK" => return self.bookmark(json).await,
            "ERROR" => return Err(ended_by(json)),
            other => {
                tracing::debug!(what = R::WHAT, kind = other, "an unknown kind of change is passed over");
            }
        }
        Ok(false)
    }

    /// The version that a change leads to. Within a list an object's version is only its own.
    fn passed(&mut self, version: String) {
        if self.version.is_some() && !version.is_empty() {
            self.version = Some(version);
        }
    }

    async fn bookmark(&mut self, json: &[u8]) -> Result<bool, End> {
        let metadata = BookmarkMetadata::read(json)?;
        let ends_list = metadata.ends_list();
        match (&self.version, ends_list) {
            (None, true) => self.is_listed(metadata.resource_version).await?,
            (None, false) => return Err(End::NotStreaming("a watch began without the list".to_owned())),
            (Some(_), _) => self.passed(metadata.resource_version),
        }
        Ok(ends_list)
    }

    /// A whole list has been seen, at this version.
    async fn is_listed(&mut self, version: String) -> Result<(), End> {
        if version.is_empty() || version == "0" {
            return Err(Failure::Garbage("a list without a resourceVersion".to_owned()).into());
        }
        for id in self.known.end_list() {
            self.events.send(R::gone(id)).await?;
        }
        tracing::info!(
            what = R::WHAT,
            count = self.known.len(),
            version,
            streaming = self.streaming,
            "listed"
        );
        self.version = Some(version);
        if self.expired <= 1 {
            self.report.works();
        }
        if !std::mem::replace(&mut self.listed, true) && self.report.first_list_is_complete() {
            self.events.send(Event::Synced).await?;
        }
        Ok(())
    }

    /// An object is there. Says its version.
    async fn there(&mut self, json: &[u8]) -> Result<String, End> {
        let Named { metadata } =
            serde_json::from_slice(json).map_err(|error| Failure::garbage(&error, json))?;
        let key = metadata.key();
        match self.resource.read(json) {
            Ok(Some(facts)) => match self.known.there(&key, &R::id(&facts), &facts) {
                Change::None => {}
                Change::There { instead_of } => {
                    if let Some(before) = instead_of {
                        self.events.send(R::gone(before)).await?;
                    }
                    self.events.send(R::there(facts)).await?;
                }
                Change::Taken(other) => {
                    self.leave_out(&key, &format!("{other} goes by the same id"));
                }
            },
            Ok(None) => {
                if let Some(id) = self.known.gone(&key) {
                    self.events.send(R::gone(id)).await?;
                }
            }
            Err(why) => self.leave_out(&key, &why),
        }
        Ok(metadata.resource_version)
    }

    fn leave_out(&mut self, key: &str, why: &str) {
        if self.known.unfit(key, why) {
            self.report.unfit(key, why);
        }
    }
}
