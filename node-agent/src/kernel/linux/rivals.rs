//! What would be chosen in place of our policy rule or our local route: a pod with CAP_NET_ADMIN can write both.
//!
//! Messages are read by hand, so that one of a shape that no crate knows is not overlooked.

use super::netlink::{Conversation, Kept, Refused, Request, attribute};
use super::route::LOOPBACK_INDEX;
use sluice_shared::contract::{MARK_PROXIED, ROUTE_TABLE, RULE_PRIORITY};
use sluice_shared::ids::Family;

// include/uapi/linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
// include/uapi/linux/fib_rules.h
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
/// `struct rtmsg` and `struct fib_rule_hdr`
const HEADER: usize = 12;

/// A default route of our table. Narrower ones are left alone: others, such as the CNI plugin for source-based routing,
/// may have them in the same table, and they take no packets but those to their own networks.
struct DefaultRoute {
    metric: u32,
    /// `local default dev lo`, for every source and every kind of service.
    delivers: bool,
    /// Chosen before one with a smaller metric, for some packets.
    special: bool,
}

/// Whether the table that was dumped delivers every packet locally.
pub(super) fn delivers(table: &[Kept]) -> bool {
    let ours = defaults(table).filter(|(_, route)| route.delivers).map(|(_, route)| route.metric).min();
    ours.is_some_and(|metric| rivals(table, metric).next().is_none())
}

/// Removes the default routes that would be chosen in place of ours.
pub(super) fn remove_routes(
    conversation: &mut Conversation,
    family: Family,
    table: &[Kept],
) -> Result<(), Refused> {
    // What the kernel gives a route that is written without one (`IP6_RT_PRIO_USER`).
    let metric = if family == Family::V4 { 0 } else { 1024 };
    remove(conversation, libc::RTM_DELROUTE, rivals(table, metric))
}

/// The rules among those dumped that take packets with our mark elsewhere before ours does. Only such as name the
/// whole mark: a rule that is about more than it has another purpose.
pub(super) fn rules(found: &[Kept]) -> impl Iterator<Item = &Kept> {
    found.iter().filter(|rule| {
        let Some(header) = rule.payload.first_chunk::<HEADER>() else { return false };
        let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mask = number(rule, FRA_FWMASK).unwrap_or(u32::MAX);
        let names_our_mark = number(rule, FRA_FWMARK).is_some_and(|mark| MARK_PROXIED.matches(mark))
            && mask & MARK_PROXIED.mask == MARK_PROXIED.mask;
        let elsewhere = header[7] != FR_ACT_TO_TBL || number(rule, FRA_TABLE) != Some(ROUTE_TABLE);
        names_our_mark
            && elsewhere
            && flags & FIB_RULE_INVERT == 0
            && number(rule, FRA_PRIORITY).unwrap_or(0) <= RULE_PRIORITY
    })
}

/// Removes those rules.
pub(super) fn remove_rules(conversation: &mut Conversation, found: &[Kept]) -> Result<(), Refused> {
    remove(conversation, libc::RTM_DELRULE, rules(found))
}

/// Deleting takes what a dump shows, as `ip route flush` does. What is gone already is success.
fn remove<'a>(
    conversation: &mut Conversation,
    kind: u16,
    rivals: impl Iterator<Item = &'a Kept>,
) -> Result<(), Refused> {
    for rival in rivals {
        match conversation.acknowledged(Request::new(kind, 0).fixed(&rival.payload)) {
            Err(refused) if !matches!(refused.errno(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Err(refused);
            }
            _ => tracing::warn!(
                what = if kind == libc::RTM_DELRULE { "policy rule" } else { "default route" },
                table = ROUTE_TABLE,
                "somebody's was in the way of ours in a pod, and was removed"
            ),
        }
    }
    Ok(())
}

fn rivals(table: &[Kept], metric: u32) -> impl Iterator<Item = &Kept> {
    defaults(table)
        .filter(move |(_, route)| !route.delivers && (route.special || route.metric <= metric))
        .map(|(message, _)| message)
}

fn defaults(table: &[Kept]) -> impl Iterator<Item = (&Kept, DefaultRoute)> {
    table.iter().filter_map(|message| {
        let [_, destination, source, service, _, _, _, kind, ..] =
            *message.payload.first_chunk::<HEADER>()?;
        // A kernel that cannot filter dumps gives every table.
        let ours = destination == 0 && number(message, RTA_TABLE) == Some(ROUTE_TABLE);
        let special = source != 0 || service != 0;
        let to_loopback = kind == libc::RTN_LOCAL && number(message, RTA_OIF) == Some(LOOPBACK_INDEX);
        let metric = number(message, RTA_PRIORITY).unwrap_or(0);
        ours.then_some((message, DefaultRoute { metric, delivers: to_loopback && !special, special }))
    })
}

fn number(message: &Kept, kind: u16) -> Option<u32> {
    attribute(message.payload.get(HEADER..)?, kind)?.try_into().ok().map(u32::from_ne_bytes)
}
