//! The policy rule, the local route, and what the routing tables say: rtnetlink in the calling thread's namespace.

use super::netlink::{Conversation, Kept, Refused, Request};
use super::rivals;
use crate::kernel::KernelError;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use sluice_shared::contract::{MARK_PROXIED, ROUTE_TABLE, RULE_PRIORITY};
use sluice_shared::ids::Family;
use sluice_shared::op::Presence;
use std::fs;
use std::net::IpAddr;

/// The loopback interface is the first that a namespace gets (`net/core/dev.c`).
pub(super) const LOOPBACK_INDEX: u32 = 1;
/// 1 when the calling thread's namespace has no IPv6 on `lo`; missing when the kernel has no IPv6 at all.
const LO_DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";

/// A socket for all of this in the namespace where it was opened.
pub(super) fn open() -> Result<Conversation, KernelError> {
    Ok(Conversation::open(NETLINK_ROUTE)?.strict())
}

/// Makes the rule `fwmark 0x111/0xfff lookup 100 pref 32764` be there, with none before it that takes our mark
/// elsewhere, or not be there.
pub(super) fn set_rule(
    conversation: &mut Conversation,
    family: Family,
    presence: Presence,
) -> Result<(), KernelError> {
    let (kind, flags) = match presence {
        Presence::Present => (libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
        Presence::Absent => (libc::RTM_DELRULE, 0),
    };
    let call = || format!("{} the {family} policy rule", verb(presence));
    let outcome = conversation.acknowledged(Request::new(kind, flags).fixed(&emitted(&our_rule(family))));
    settle(outcome, family, presence).map_err(|refused| refused.during(call()))?;
    if presence == Presence::Present
        && let Some(found) = policy_rules(conversation, family)?
    {
        rivals::remove_rules(conversation, &found).map_err(|refused| refused.during(call()))?;
    }
    Ok(())
}

/// Makes the route `local default dev lo table 100` be there, in place of any other default route that would be chosen
/// before it, or not be there.
pub(super) fn set_route(
    conversation: &mut Conversation,
    family: Family,
    presence: Presence,
) -> Result<(), KernelError> {
    let (kind, flags) = match presence {
        Presence::Present if has_route(conversation, family)? => return Ok(()),
        // With "replace" there is no moment at which packets with our mark find no route and leave by another table.
        Presence::Present => (libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE),
        Presence::Absent => (libc::RTM_DELROUTE, 0),
    };
    let call = || format!("{} the {family} local route (table {ROUTE_TABLE})", verb(presence));
    let outcome = conversation.acknowledged(Request::new(kind, flags).fixed(&emitted(&our_route(family))));
    settle(outcome, family, presence).map_err(|refused| refused.during(call()))?;
    if presence == Presence::Present
        && let Some(found) = routes_of_our_table(conversation, family)?
    {
        rivals::remove_routes(conversation, family, &found).map_err(|refused| refused.during(call()))?;
    }
    Ok(())
}

/// Whether the rule is there and nothing comes before it; where the namespace has no IPv6, the IPv6 one counts as
/// there.
pub(super) fn has_rule(conversation: &mut Conversation, family: Family) -> Result<bool, KernelError> {
    let wanted = our_rule(family);
    let Some(found) = policy_rules(conversation, family)? else { return Ok(true) };
    let is_ours = |found: &RuleMessage| {
        found.header.family == wanted.header.family
            && found.header.action == RuleAction::ToTable
            && wanted.attributes.iter().all(|attribute| {
                // The protocol only says who wrote it.
                matches!(attribute, RuleAttribute::Protocol(_)) || found.attributes.contains(attribute)
            })
            // Anything that narrows it makes it another rule.
            && !found.attributes.iter().any(|attribute| {
                matches!(
                    attribute,
                    RuleAttribute::Iifname(_)
                        | RuleAttribute::Oifname(_)
                        | RuleAttribute::Source(_)
                        | RuleAttribute::Destination(_)
                )
            })
    };
    let there = parsed(&found).any(|rule: RuleMessage| is_ours(&rule));
    Ok(there && rivals::rules(&found).next().is_none())
}

/// Whether the route is there and is the one that is chosen; where the namespace has no IPv6 on `lo`, the IPv6 one
/// counts as there.
pub(super) fn has_route(conversation: &mut Conversation, family: Family) -> Result<bool, KernelError> {
    let found = routes_of_our_table(conversation, family)?;
    Ok(found.is_none_or(|found| rivals::delivers(&found)) || without_ipv6(family))
}

/// The family's policy rules; `None` where the namespace has no IPv6.
fn policy_rules(conversation: &mut Conversation, family: Family) -> Result<Option<Vec<Kept>>, KernelError> {
    let mut question = RuleMessage::default();
    question.header.family = address_family(family);
    match conversation.dump(&Request::new(libc::RTM_GETRULE, 0).fixed(&emitted(&question))) {
        Ok(found) => Ok(Some(found)),
        Err(_) if without_ipv6(family) => Ok(None),
        Err(refused) => Err(refused.during(format!("list the {family} policy rules"))),
    }
}

/// The routes of table 100, and where the kernel cannot choose, those of all tables; `None` where the namespace has no
/// IPv6.
fn routes_of_our_table(
    conversation: &mut Conversation,
    family: Family,
) -> Result<Option<Vec<Kept>>, KernelError> {
    let mut question = RouteMessage::default();
    question.header.address_family = address_family(family);
    question.attributes.push(RouteAttribute::Table(ROUTE_TABLE));
    match conversation.dump(&Request::new(libc::RTM_GETROUTE, 0).fixed(&emitted(&question))) {
        Ok(found) => Ok(Some(found)),
        // Asked strictly, a table that was never used is ENOENT.
        Err(refused) if refused.errno() == Some(libc::ENOENT) => Ok(Some(Vec::new())),
        Err(_) if without_ipv6(family) => Ok(None),
        Err(refused) => Err(refused.during(format!("list the {family} routes"))),
    }
}

/// The addresses of the namespace's interfaces, loopback left out.
pub(super) fn addresses(conversation: &mut Conversation) -> Result<Vec<IpAddr>, KernelError> {
    let all = interface_addresses(conversation)?;
    Ok(all.into_iter().filter(|(index, _)| *index != LOOPBACK_INDEX).map(|(_, address)| address).collect())
}

/// The addresses of the namespace's interfaces, loopback included.
pub(super) fn all_addresses(conversation: &mut Conversation) -> Result<Vec<IpAddr>, KernelError> {
    Ok(interface_addresses(conversation)?.into_iter().map(|(_, address)| address).collect())
}

fn interface_addresses(conversation: &mut Conversation) -> Result<Vec<(u32, IpAddr)>, KernelError> {
    let question = emitted(&AddressMessage::default());
    let found = conversation
        .dump(&Request::new(libc::RTM_GETADDR, 0).fixed(&question))
        .map_err(|refused| refused.during("list the addresses"))?;
    let address = |message: &AddressMessage| {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        // IPv6 has no "local" unless the address has a peer.
        local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })
    };
    Ok(parsed(&found)
        .filter_map(|message: AddressMessage| Some((message.header.index, address(&message)?)))
        .collect())
}

/// The source address that this namespace's own connections to `destination` have.
pub(super) fn source_for(
    conversation: &mut Conversation,
    destination: IpAddr,
) -> Result<IpAddr, KernelError> {
    let call = || format!("ask for the route to {destination}");
    let mut question = RouteMessage::default();
    question.header.address_family = match destination {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    question.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    question.attributes.push(RouteAttribute::Destination(match destination {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }));
    let answer = conversation
        .one(Request::new(libc::RTM_GETROUTE, 0).fixed(&emitted(&question)))
        .map_err(|refused| refused.during(call()))?;
    let source = parsed(&[answer]).next().and_then(|route: RouteMessage| {
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })
    });
    source.ok_or_else(|| {
        let words = "the route has no source address".into();
        Refused { source: std::io::Error::from_raw_os_error(libc::ENETUNREACH), words }.during(call())
    })
}

/// Whether this is about IPv6 in a namespace without it.
fn without_ipv6(family: Family) -> bool {
    family == Family::V6 && fs::read_to_string(LO_DISABLE_IPV6).map_or(true, |value| value.trim() != "0")
}

/// What is there already, or gone already, is success; so is whatever IPv6 refuses where there is none.
fn settle(outcome: Result<(), Refused>, family: Family, presence: Presence) -> Result<(), Refused> {
    let Err(refused) = outcome else { return Ok(()) };
    let settled = match presence {
        Presence::Present => refused.errno() == Some(libc::EEXIST),
        Presence::Absent => matches!(refused.errno(), Some(libc::ENOENT | libc::ESRCH)),
    };
    if settled || without_ipv6(family) { Ok(()) } else { Err(refused) }
}

fn our_rule(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = RuleAction::ToTable;
    rule.header.table = ROUTE_TABLE as u8;
    rule.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(MARK_PROXIED.value),
        RuleAttribute::FwMask(MARK_PROXIED.mask),
        RuleAttribute::Table(ROUTE_TABLE),
    ];
    rule
}

fn our_route(family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: address_family(family),
        table: ROUTE_TABLE as u8,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Table(ROUTE_TABLE), RouteAttribute::Oif(LOOPBACK_INDEX)];
    route
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// What could be read; a message of a shape that the crate does not know is none of ours.
fn parsed<T: Parseable<[u8]>>(found: &[Kept]) -> impl Iterator<Item = T> {
    found.iter().filter_map(|message| T::parse(&message.payload).ok())
}

fn verb(presence: Presence) -> &'static str {
    match presence {
        Presence::Present => "add",
        Presence::Absent => "remove",
    }
}
